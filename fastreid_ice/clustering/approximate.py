"""Approximate neighbours from faiss indexes, for sets too large for an exact search, with their recall."""

from __future__ import annotations

import logging
import time
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor

from fastreid_ice.clustering import distributed
from fastreid_ice.clustering.float64_search import search_in_float64

logger = logging.getLogger(__name__)

HNSW_LINKS = 32  # per image and layer; faiss's M
HNSW_BUILD = 64  # candidates while an image is linked; faiss's efConstruction
HNSW_MOST = 1024  # largest efSearch
CELL_SAMPLE = 64  # images per cell that k-means sees; faiss asks for at least 39
CELL_PASSES = 10  # of that k-means
RECALL_SAMPLE = 256  # images whose true neighbours are computed
TOLERANCE = 1e-6  # of float32 products of unit rows


def approximate_neighbors(
    features: Tensor,
    k: int,
    kind: str = "hnsw",
    rows: tuple[int, int] | None = None,
    seed: int = 0,
    memory_budget_mb: int = 256,
    target_recall: float = 0.9,
    shared: bool = False,
) -> tuple[Tensor, Tensor, float]:
    """Find about the k most similar images of each image with a faiss index on the CPU.

    The true neighbours of a sample are computed; the effort of the search (cells probed by "ivf", candidates kept by
    "hnsw") is doubled until the index finds ``target_recall`` of them. Images for which the index returns fewer than k
    (HNSW among many identical images) are searched exactly.

    Args:
        features: (N, D) float32 unit rows; copied to the CPU if they are elsewhere.
        k: length of a list, capped at N.
        kind: "ivf" (inverted lists: 4 sqrt(N) cells) or "hnsw" (navigable graph, built in parallel, so that its lists
            may differ a little from run to run).
        rows: (start, stop) to search for only these images, default all.
        seed: of the sample.
        memory_budget_mb: bounds the scratch memory of the exact searches for short lists, in MiB.
        target_recall: share of the sample's true neighbours to find, in (0, 1]. "ivf" reaches every target, if need be
            by probing all cells; "hnsw" may not, which is logged.
        shared: a collective: the first rank builds the index and sends it to the others, without the features, which
            all have. Else each process builds its own.

    Returns:
        similarities (n, K) float32, ranks (n, K) int64, and the recall over up to 256 sampled rows: the share of the
        entries that are as similar as the true K-th neighbour, so that equally similar images count alike (1.0 if
        there are no rows).
    """
    start, stop = rows if rows is not None else (0, len(features))
    vectors = features.detach().cpu()
    length = min(k, len(vectors))
    sample = torch.randperm(stop - start, generator=torch.Generator().manual_seed(seed))[:RECALL_SAMPLE]
    sampled = vectors[sample + start].numpy()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        search = _index(kind, vectors.numpy(), length, shared)
        if start == stop:
            return torch.empty(0, length), torch.empty(0, length, dtype=torch.int64), 1.0
        truth, _ = faiss.knn(sampled, vectors.numpy(), length, metric=faiss.METRIC_INNER_PRODUCT)
        least = torch.from_numpy(truth[:, -1:])
        while _recall(search(sampled, length)[0], least) < target_recall and search.effort < search.most:
            search.effort = min(2 * search.effort, search.most)
        similarities, ranks = search(vectors[start:stop].numpy(), length)
    finally:
        faiss.omp_set_num_threads(before)
    short = (ranks < 0).any(dim=1).nonzero().flatten()
    similarities[short], ranks[short] = search_in_float64(vectors, short + start, length, memory_budget_mb)
    recall = _recall(similarities[sample], least)
    level = logging.INFO if recall >= target_recall else logging.WARNING
    logger.log(
        level,
        "Approximate search (CLUSTERING.KNN %s, %s %d of %d): recall %.4f at %d neighbours, CLUSTERING.KNN_RECALL %g.",
        *(kind, search.unit, search.effort, search.most, recall, length, target_recall),
    )
    return similarities.to(features.device), ranks.to(features.device), recall


def _index(kind: str, vectors: np.ndarray, length: int, shared: bool) -> _IVF | _HNSW:
    """The index of this process: built here, or by the first rank."""
    index_class = _IVF if kind == "ivf" else _HNSW
    structure = None
    if not shared or distributed.is_first():
        start = time.perf_counter()
        structure = index_class.build(vectors)
        logger.info("CLUSTERING.KNN %s: indexed %d images in %.1f s.", kind, len(vectors), time.perf_counter() - start)
    if shared and distributed.in_group():
        structure = distributed.broadcast_arrays(structure)
    assert structure is not None
    return index_class(vectors, structure, length)


class _IVF:
    """Inverted lists; the effort is the number of cells probed per image."""

    unit = "cells"

    @staticmethod
    def build(vectors: np.ndarray) -> list[np.ndarray]:
        """The centroids of the cells (C, D) float32, and the cell of each image (N,) int64."""
        images = len(vectors)
        index = _IVF._empty(faiss.IndexFlatIP(vectors.shape[1]), max(1, min(int(4 * np.sqrt(images)), images // 39)))
        index.train(vectors)
        cells = index.quantizer.search(vectors, 1)[1][:, 0]
        return [index.quantizer.reconstruct_n(0, index.nlist), np.ascontiguousarray(cells)]

    @staticmethod
    def _empty(quantizer: faiss.IndexFlatIP, cells: int) -> faiss.IndexIVFFlat:
        index = faiss.IndexIVFFlat(quantizer, quantizer.d, cells, faiss.METRIC_INNER_PRODUCT)
        training = index.cp
        training.spherical = True  # else a long mean attracts images by its length, and cells become unequal
        training.niter, training.max_points_per_centroid = CELL_PASSES, CELL_SAMPLE
        return index

    def __init__(self, vectors: np.ndarray, structure: list[np.ndarray], length: int):
        centroids, cells = structure
        quantizer = faiss.IndexFlatIP(vectors.shape[1])
        quantizer.add(centroids)
        self._index = self._empty(quantizer, len(centroids))
        self._index.is_trained = True
        self._index.add_core(len(vectors), faiss.swig_ptr(vectors), None, faiss.swig_ptr(cells))
        self.effort, self.most = min(4, len(centroids)), len(centroids)

    def __call__(self, vectors: np.ndarray, k: int) -> tuple[Tensor, Tensor]:
        """Similarities and ranks (n, k) of these rows; -1 where fewer were found."""
        self._index.nprobe = self.effort
        return _as_tensors(*self._index.search(vectors, k))


class _HNSW:
    """Navigable graph; the effort is the number of candidates kept per image (efSearch)."""

    unit = "candidates"

    @staticmethod
    def build(vectors: np.ndarray) -> list[np.ndarray]:
        """The graph as bytes, without the vectors."""
        index = faiss.IndexHNSWFlat(vectors.shape[1], HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = HNSW_BUILD
        index.add(vectors)
        return [faiss.serialize_index(index, faiss.IO_FLAG_SKIP_STORAGE)]

    def __init__(self, vectors: np.ndarray, structure: list[np.ndarray], length: int):
        graph: Any = faiss.deserialize_index(structure[0])
        self._vectors = faiss.IndexFlatIP(vectors.shape[1])  # the graph does not own it
        self._vectors.add(vectors)
        graph.storage = self._vectors
        self._index = graph
        self.effort, self.most = length, max(length, HNSW_MOST)

    def __call__(self, vectors: np.ndarray, k: int) -> tuple[Tensor, Tensor]:
        """Similarities and ranks (n, k) of these rows; -1 where fewer were found."""
        self._index.hnsw.efSearch = self.effort
        return _as_tensors(*self._index.search(vectors, k))


def _as_tensors(similarities: np.ndarray, ranks: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(similarities), torch.from_numpy(ranks)


def _recall(similarities: Tensor, least: Tensor) -> float:
    """Share of the similarities (n, K) that reach the true K-th ones, ``least`` (n, 1)."""
    return (similarities >= least - TOLERANCE).double().mean().item()
