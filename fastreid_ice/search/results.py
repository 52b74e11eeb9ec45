"""What an update of an index has changed, and what a search has found, as rows and as a csv file."""

from __future__ import annotations

import csv
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastreid_ice.files import replacing

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
        with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows((query, rank, f"{similarity:.6f}", path) for query, rank, similarity, path in self.rows())


def check_output(path: str | os.PathLike, endings: Collection[str] = ()) -> None:
    """Refuse a file that could not be written at the end, before the work begins.

    Args:
        path: file to write later; missing folders will be made.
        endings: with the dot, in small letters, that are possible; none: any.

    Raises:
        ValueError: another ending.
        IsADirectoryError: it is a folder.
        NotADirectoryError, PermissionError: its folder is a file, or may not be written.
    """
    path = Path(path)
    if endings and path.suffix.lower() not in endings:
        raise ValueError(f"{path} cannot be written: its name must end in one of {', '.join(sorted(endings))}.")
    if path.is_dir():
        raise IsADirectoryError(f"{path} cannot be written: it is a folder.")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: {above} is a file.")
    if not os.access(above, os.W_OK):
        raise PermissionError(f"{path} cannot be written: the folder {above} is read-only for you.")
