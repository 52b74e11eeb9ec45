"""Approximate neighbours from faiss indexes, for sets too large for an exact search, with their recall."""

import logging

import faiss
import numpy as np
import torch

from .neighbors import search_in_float64

logger = logging.getLogger(__name__)

HNSW_LINKS = 32  # per image and layer; faiss's M
RECALL_SAMPLE = 256  # images whose true neighbours are computed


def approximate_neighbors(features, k, kind="hnsw", rows=None, seed=0, memory_budget_mb=256):
    """Find about the k most similar images of each image with a faiss index on the CPU.

    Images for which the index returns fewer than k (HNSW among many identical images) are searched exactly.

    Args:
        features: (N, D) float32 unit rows; copied to the CPU if they are elsewhere.
        k: length of a list, capped at N.
        kind: "ivf" (inverted lists, 4 sqrt(N) cells, 1/16 of them probed) or "hnsw" (navigable graph).
        rows: (start, stop) to search for only these images, default all.
        seed: of the sample for the recall.
        memory_budget_mb: bounds the scratch memory of exact searches, in MiB.

    Returns:
        similarities (n, K) float32, ranks (n, K) int64, and the recall: the share of the true neighbours of up to
        256 sampled images of the rows that the lists hold (1.0 if there are no rows).
    """
    start, stop = rows if rows is not None else (0, len(features))
    vectors = features.detach().cpu()
    length = min(k, len(vectors))
    if start == stop:
        return torch.empty(0, length), torch.empty(0, length, dtype=torch.int64), 1.0
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        index = _build_index(vectors.numpy(), length, kind)
        similarities, ranks = (torch.from_numpy(found) for found in index.search(vectors[start:stop].numpy(), length))
    finally:
        faiss.omp_set_num_threads(before)
    short = (ranks < 0).any(dim=1).nonzero().flatten()
    similarities[short], ranks[short] = search_in_float64(vectors, short + start, length, memory_budget_mb)
    recall = _recall(vectors, ranks, start, seed, memory_budget_mb)
    logger.info("Approximate search (CLUSTERING.KNN %s): recall %.4f at %d neighbours.", kind, recall, length)
    return similarities.to(features.device), ranks.to(features.device), recall


def _build_index(vectors, length, kind):
    images, dimensions = vectors.shape
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dimensions, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 80
        index.hnsw.efSearch = max(64, 2 * length)
    else:
        cells = max(1, min(int(4 * np.sqrt(images)), images // 39))  # 39 images train a cell, as faiss asks for
        quantizer = faiss.IndexFlatIP(dimensions)
        index = faiss.IndexIVFFlat(quantizer, dimensions, cells, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = max(1, cells // 16)
        index.train(vectors)
    index.add(vectors)
    return index


def _recall(vectors, ranks, start, seed, memory_budget_mb):
    """Share of the true lists of a sample of rows that ``ranks`` (n, K) holds."""
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randperm(len(ranks), generator=generator)[:RECALL_SAMPLE]
    truth = search_in_float64(vectors, sample + start, ranks.shape[1], memory_budget_mb)[1]
    return (truth[:, :, None] == ranks[sample][:, None, :]).any(dim=2).double().mean().item()
