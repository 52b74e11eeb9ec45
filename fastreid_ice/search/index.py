"""A search index over images: their features, their paths, and the model that made them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastreid_ice.search.storage import Entry, read_folder, write_folder
from fastreid_ice.search.vectors import KINDS, Vectors, build_vectors, choose_kind

UNKNOWN_SIZE = -1


@dataclass(frozen=True)
class Fingerprint:
    """Which model made the features.

    Attributes:
        sha256: of the model (its checkpoint and what it makes of it), "" if unknown.
        input_size: (height, width) in pixels to which images were scaled, or None.
    """

    sha256: str = ""
    input_size: tuple[int, int] | None = None

    def __str__(self) -> str:
        size = "unknown input size" if self.input_size is None else "input {} x {}".format(*self.input_size)
        return f"{self.sha256[:12] or 'unknown'} ({size})"


class FileState(NamedTuple):
    """Size in bytes and time of the last change in ns; both -1 where there is no file."""

    size: int
    mtime_ns: int


def file_state(path: str | os.PathLike) -> FileState:
    """The state of a file now."""
    try:
        found = os.stat(path)
    except OSError:
        return FileState(UNKNOWN_SIZE, UNKNOWN_SIZE)
    return FileState(found.st_size, found.st_mtime_ns)


class SearchIndex:
    """Find the images whose features are most similar to a query's, by cosine similarity.

    Small sets are searched exactly. Beyond ``EXACT_UP_TO`` numbers (2^26: 262,144 images of 256 dimensions) faiss's
    inverted lists are used, with vectors in half precision and as many cells per query as find 97 % of the true 10
    nearest. The kind is chosen again whenever images are added; lists are made anew when their number has doubled.

    Args:
        fingerprint: of the model that makes the features.
        kind: "auto", "exact" or "ivf".
        root: folder to which relative paths refer.

    Attributes:
        paths: N paths as they were given, in the order in which they were added.

    Example:
        >>> index = SearchIndex()
        >>> index.add(np.eye(3, dtype=np.float32), ["a.jpg", "b.jpg", "c.jpg"])
        >>> similarities, indices = index.search(np.array([[0.0, 0.8, 0.6]], np.float32), k=2)
        >>> [index.paths[i] for i in indices[0]], similarities.round(2).tolist()
        (['b.jpg', 'c.jpg'], [[0.800000011920929, 0.6000000238418579]])
    """

    def __init__(
        self, fingerprint: Fingerprint | None = None, *, kind: str = "auto", root: str | os.PathLike = "."
    ) -> None:
        if kind != "auto" and kind not in KINDS:
            raise ValueError(
                f"There is no kind of search index called {kind!r}; choose one of auto, {', '.join(KINDS)}."
            )
        self.fingerprint = fingerprint or Fingerprint()
        self.kind = kind
        self.root = Path(root)
        self.vectors: Vectors | None = None
        self._set_entries([])
        self._next_number = 0

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def paths(self) -> list[str]:
        return [entry.path for entry in self.entries]

    def full_path(self, position: int) -> Path:
        """Where the image at this position lies."""
        return self.root / self.entries[position].path

    def add(
        self,
        features: Tensor | np.ndarray,
        paths: Sequence[str | os.PathLike],
        states: Sequence[FileState] | None = None,
    ) -> None:
        """Add images. A path that is in the index already is replaced: adding the same images twice changes nothing.

        Args:
            features: (n, D) float, L2-normalised or not; only their direction counts.
            paths: n different paths.
            states: of the n files when their features were made; None asks the disk now.

        Raises:
            ValueError: lengths or dimensions disagree, a path occurs twice, a value is NaN or infinite.
        """
        names = [os.fspath(path) for path in paths]
        rows = unit_rows(features, self._dimensions(), names)
        if len(set(names)) < len(names):
            twice, times = Counter(names).most_common(1)[0]
            raise ValueError(f"The path {twice} occurs {times} times among the {len(names)} images to add.")
        if not names:
            return
        if states is None:
            states = [file_state(self.root / name) for name in names]
        self.remove(set(names).intersection(self.paths))
        numbers = np.arange(self._next_number, self._next_number + len(names), dtype=np.int64)
        self._insert(rows, numbers)
        self._next_number += len(names)
        added = [Entry(name, *state, int(number)) for name, state, number in zip(names, states, numbers)]
        self._set_entries(self.entries + added)

    def remove(self, paths: Collection[str | os.PathLike]) -> None:
        """Remove images; the others keep their order.

        Raises:
            KeyError: a path that is not in the index; nothing is removed then.
        """
        names = {os.fspath(path) for path in paths}
        gone = [entry.number for entry in self.entries if entry.path in names]
        if len(gone) < len(names):
            missing = min(names.difference(self.paths))
            raise KeyError(f"The search index holds no image {missing}.")
        if self.vectors is not None and gone:
            self.vectors.remove(np.array(gone, np.int64))
            self._set_entries([entry for entry in self.entries if entry.path not in names])

    def search(self, queries: Tensor | np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k most similar images of each query, the most similar first.

        Args:
            queries: (Q, D) features made by the same model; only their direction counts.
            k: how many; all images if there are fewer.

        Returns:
            Cosine similarities (Q, min(k, N)) float32 and positions in ``paths`` (Q, min(k, N)) int64.

        Raises:
            ValueError: the index is empty, k is below 1, dimensions disagree, a value is NaN or infinite.
        """
        if self.vectors is None or not self.entries:
            raise ValueError("The search index holds no image.")
        if k < 1:
            raise ValueError(f"At least one image must be asked for, found k = {k}.")
        rows = unit_rows(queries, self._dimensions())
        similarities, found = self.vectors.search(rows, min(k, len(self)))
        return similarities, np.searchsorted(self._numbers, found)

    def save(self, folder: str | os.PathLike) -> None:
        """Write the index as a folder, whole or not at all; an older index there is replaced.

        Raises:
            ValueError: the index is empty, or the folder holds something else, which would be lost.
            OSError: it cannot be written.
        """
        if self.vectors is None or not self.entries:
            raise ValueError("The search index holds no image; there is nothing to write.")
        size = self.fingerprint.input_size
        header = {
            "dimensions": self._dimensions(),
            "kind": self.kind,
            "next_number": self._next_number,
            "root": str(self.root.absolute()),
            "model_sha256": self.fingerprint.sha256,
            "input_size": None if size is None else list(size),
        }
        write_folder(Path(folder), header, self.vectors, self.entries)

    @classmethod
    def open(cls, folder: str | os.PathLike, fingerprint: Fingerprint | None = None) -> SearchIndex:
        """Read an index that :meth:`save` wrote.

        Args:
            folder: where it is.
            fingerprint: of the model that makes the queries; None takes any.

        Raises:
            FileNotFoundError: there is no index.
            ValueError: it is damaged, of another format, or was made by another model.
        """
        header, vectors, entries = read_folder(Path(folder))
        size = None if header.input_size is None else (header.input_size[0], header.input_size[1])
        index = cls(Fingerprint(header.model_sha256, size), kind=header.kind, root=header.root)
        if fingerprint is not None and fingerprint != index.fingerprint:
            raise ValueError(
                f"The search index {folder} was made with the model {index.fingerprint}, the query's is {fingerprint}: "
                "their features cannot be compared. Name another folder (--index), or remove this one to build it anew."
            )
        index.vectors, index._next_number = vectors, header.next_number
        index._set_entries(entries)
        return index

    def _set_entries(self, entries: list[Entry]) -> None:
        self.entries = entries
        self._numbers = np.array([entry.number for entry in entries], np.int64)  # ascending

    def _dimensions(self) -> int | None:
        return None if self.vectors is None else self.vectors.index.d

    def _insert(self, rows: np.ndarray, numbers: np.ndarray) -> None:
        """Add vectors, to a new index if another kind fits the new number of images or there are twice as many."""
        total = len(self) + len(rows)
        kind = choose_kind(total, rows.shape[1]) if self.kind == "auto" else self.kind
        old = self.vectors
        if old is not None and kind == old.kind and (kind == "exact" or total <= 2 * old.trained_on):
            old.add(rows, numbers)
            return
        if old is not None and len(old):
            old_rows, old_numbers = old.contents()
            rows, numbers = np.concatenate([old_rows, rows]), np.concatenate([old_numbers, numbers])
        self.vectors = build_vectors(rows, numbers, kind)


def unit_rows(
    features: Tensor | np.ndarray, dimensions: int | None = None, names: Sequence[str] | None = None
) -> np.ndarray:
    """Features as contiguous float32 rows of unit length; zero rows stay zero, similar to nothing.

    Args:
        features: (n, D) of any float type.
        dimensions: D that is needed, or None.
        names: n names for error messages, or None.

    Raises:
        ValueError: another shape, or a NaN or infinite value, with the name of the first such row.
    """
    array = features.detach().float().cpu().numpy() if isinstance(features, torch.Tensor) else np.asarray(features)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"Features of shape (images, dimensions) are needed, found {array.shape}.")
    if dimensions is not None and array.shape[1] != dimensions:
        raise ValueError(f"The search index holds features of {dimensions} dimensions, found {array.shape[1]}.")
    if names is not None and len(names) != len(array):
        raise ValueError(f"There are {len(array)} rows of features for {len(names)} paths.")
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        name = f"image {names[bad[0]]}" if names is not None else f"row {bad[0]}"
        raise ValueError(f"The features of {len(bad)} of {len(array)} images are NaN or infinite, first of {name}.")
    rows = np.array(array, np.float32, order="C")  # a copy
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    norms[norms == 0] = 1
    rows /= norms
    return rows
