"""What an update of an index has changed, and what a search has found, as rows and as a csv file."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from fastreid_ice.files import write_csv

COLUMNS = ("query", "rank", "similarity", "path")


@dataclass(frozen=True)
class GalleryUpdate:
    """What has happened to a folder since its index was last brought up to date; names relative to the folder.

    Attributes:
        added: new images.
        changed: images whose file has another size or time than when its features were made.
        removed: images whose file is gone.
        skipped: (name, reason) of files that cannot be read and were left out.
    """

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        parts = {"new": self.added, "changed": self.changed, "gone": self.removed, "unreadable": self.skipped}
        return ", ".join(f"{len(names)} {what}" for what, names in parts.items() if names) or "nothing has changed"


@dataclass(frozen=True)
class SearchResult:
    """The most similar images of each query.

    Attributes:
        queries: Q files.
        paths: for each query the k files found, the most similar first.
        similarities: (Q, k) float32 cosine similarities.
        update: what had changed in the gallery.
    """

    queries: tuple[str, ...]
    paths: tuple[tuple[str, ...], ...]
    similarities: np.ndarray
    update: GalleryUpdate

    def rows(self) -> list[tuple[str, int, float, str]]:
        """(query, rank from 1 on, similarity, path) of everything found."""
        return [
            (query, rank, float(similarity), path)
            for query, paths, similarities in zip(self.queries, self.paths, self.similarities)
            for rank, (path, similarity) in enumerate(zip(paths, similarities), start=1)
        ]

    def write_csv(self, path: str | os.PathLike) -> None:
        """Write :meth:`rows` under a header."""
        rows = ((query, rank, f"{similarity:.6f}", found) for query, rank, similarity, found in self.rows())
        write_csv(path, COLUMNS, rows)
