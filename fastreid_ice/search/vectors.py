"""Unit vectors with numbers in a faiss index: exact for small sets, inverted lists for large ones."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

logger = logging.getLogger(__name__)

KINDS = ("exact", "ivf")

# Up to this many numbers (images x dimensions) an exact search of one query stays within some 25 ms.
EXACT_UP_TO = 2**26
TARGET_RECALL = 0.97
CELLS = 8  # of the inverted lists: this times sqrt(images)
CELL_SAMPLE = 40  # images per cell that k-means sees; faiss asks for at least 39
CELL_PASSES = 6  # of that k-means
CALIBRATION_QUERIES = 256
CALIBRATION_NEIGHBORS = 10
TOLERANCE = 1e-6  # of float32 products of unit rows
BLOCK = 65_536  # rows that are added at a time


def choose_kind(images: int, dimensions: int) -> str:
    """The kind of index for a set of this size: "exact" or "ivf"."""
    return "exact" if images * dimensions <= EXACT_UP_TO else "ivf"


@dataclass
class Vectors:
    """Unit rows with a number each.

    Attributes:
        index: the faiss index: ``IndexIDMap2`` over ``IndexFlatIP`` ("exact": float32) or ``IndexIVFScalarQuantizer``
            ("ivf": half precision, not residual).
        kind: "exact" or "ivf".
        cells_probed: inverted lists looked into per query; 0 for "exact".
        recall: share of the true 10 nearest that ``cells_probed`` found when the index was built; 1.0 for "exact".
        trained_on: number of rows when it was built.
    """

    index: Any  # faiss's stubs know only the base class
    kind: str
    cells_probed: int
    recall: float
    trained_on: int

    def __len__(self) -> int:
        return self.index.ntotal

    def add(self, rows: np.ndarray, numbers: np.ndarray) -> None:
        """Add unit rows (n, D) float32 with their numbers (n,) int64, which must be new."""
        for first in range(0, len(rows), BLOCK):
            block = slice(first, first + BLOCK)
            self.index.add_with_ids(np.ascontiguousarray(rows[block]), numbers[block])

    def remove(self, numbers: np.ndarray) -> None:
        """Remove the rows with these numbers (n,) int64."""
        self.index.remove_ids(numbers)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k most similar rows of each query, the most similar first.

        Args:
            queries: (Q, D) float32 unit rows.
            k: at most the number of rows.

        Returns:
            Cosine similarities (Q, k) float32 and numbers (Q, k) int64.
        """
        if self.kind == "exact":
            return self.index.search(queries, k)
        similarities, numbers = self._probe(queries, k, self.cells_probed)
        short = np.flatnonzero((numbers < 0).any(axis=1))  # the cells held fewer than k
        if len(short):
            similarities[short], numbers[short] = self._probe(queries[short], k, self.index.nlist)
        return similarities, numbers

    def _probe(self, queries: np.ndarray, k: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
        effort: Any = faiss.SearchParametersIVF()
        effort.nprobe = cells
        return self.index.search(queries, k, params=effort)

    def contents(self) -> tuple[np.ndarray, np.ndarray]:
        """All rows (N, D) float32 and their numbers (N,) int64, by ascending number."""
        if self.kind == "exact":
            flat: Any = faiss.downcast_index(self.index.index)
            rows = faiss.vector_to_array(flat.codes).view(np.float32).reshape(len(self), -1)
            numbers = faiss.vector_to_array(self.index.id_map)
        else:
            rows, numbers = self._lists()
        order = np.argsort(numbers)
        return np.ascontiguousarray(rows[order], dtype=np.float32), numbers[order]

    def _lists(self) -> tuple[np.ndarray, np.ndarray]:
        lists, dimensions = self.index.invlists, self.index.d
        rows = np.empty((len(self), dimensions), np.float16)
        numbers = np.empty(len(self), np.int64)
        start = 0
        for cell in range(self.index.nlist):
            size = lists.list_size(cell)
            if size == 0:
                continue
            part = slice(start, start + size)
            codes = faiss.rev_swig_ptr(lists.get_codes(cell), size * self.index.code_size)
            rows[part] = codes.view(np.float16).reshape(size, dimensions)
            numbers[part] = faiss.rev_swig_ptr(lists.get_ids(cell), size)
            start += size
        return rows, numbers


def build_vectors(rows: np.ndarray, numbers: np.ndarray, kind: str, target_recall: float = TARGET_RECALL) -> Vectors:
    """Index unit rows.

    For "ivf" the true neighbours of up to 256 rows are computed, and the number of cells to look into is raised until
    the index finds ``target_recall`` of their 10 nearest others.

    Args:
        rows: (N, D) float32, unit length, N >= 1.
        numbers: (N,) int64, all different.
        kind: "exact" or "ivf".
        target_recall: in (0, 1].
    """
    dimensions = rows.shape[1]
    if kind == "exact":
        vectors = Vectors(faiss.IndexIDMap2(faiss.IndexFlatIP(dimensions)), kind, 0, 1.0, len(rows))
        vectors.add(rows, numbers)
        return vectors
    started = time.perf_counter()
    vectors = Vectors(_trained_lists(rows), kind, 1, 0.0, len(rows))
    vectors.add(rows, numbers)
    _calibrate(vectors, rows, numbers, target_recall)
    logger.info(
        "Indexed %d images in %d cells in %.1f s. A query looks into %d cells and finds %.1f %% of its neighbours.",
        *(len(rows), vectors.index.nlist, time.perf_counter() - started, vectors.cells_probed, 100 * vectors.recall),
    )
    return vectors


def _trained_lists(rows: np.ndarray) -> Any:
    images, dimensions = rows.shape
    cells = max(1, min(int(CELLS * images**0.5), images // 39))
    quantizer = faiss.IndexFlatIP(dimensions)
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, dimensions, cells, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    training = index.cp
    training.spherical = True  # else a long mean attracts images by its length, and cells become unequal
    training.niter, training.max_points_per_centroid = CELL_PASSES, CELL_SAMPLE
    index.train(rows)
    return index


def _calibrate(vectors: Vectors, rows: np.ndarray, numbers: np.ndarray, target_recall: float) -> None:
    """Set ``cells_probed``, half as many more at a time until the target is reached, and ``recall``."""
    k = min(CALIBRATION_NEIGHBORS + 1, len(rows))  # each image finds itself as well
    sample = np.random.default_rng(0).permutation(len(rows))[:CALIBRATION_QUERIES]
    queries = rows[sample]
    truth, _ = faiss.knn(queries, rows, k, metric=faiss.METRIC_INNER_PRODUCT)
    order = np.argsort(numbers)
    while True:
        found = vectors.search(queries, k)[1]  # (Q, k)
        positions = order[np.searchsorted(numbers[order], found)]
        exact = np.einsum("qd,qkd->qk", queries, rows[positions])  # not the half-precision ones
        hits = (exact >= truth[:, -1:] - TOLERANCE).sum(axis=1) - 1
        vectors.recall = float(hits.mean() / (k - 1)) if k > 1 else 1.0
        if vectors.recall >= target_recall or vectors.cells_probed >= vectors.index.nlist:
            return
        vectors.cells_probed = min(vectors.cells_probed + (vectors.cells_probed + 1) // 2, vectors.index.nlist)
