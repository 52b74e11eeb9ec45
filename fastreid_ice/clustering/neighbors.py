"""The k nearest images of each image."""

import contextlib
import logging

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# Candidates kept beyond k, so that rounding in the matrix product cannot push a true neighbour off the list.
SPARE = 8


def nearest_neighbors(features: Tensor, k: int, rows=None, memory_budget_mb=256, allow_tf32=False):
    """Find the k most similar images of each image, itself included.

    Neighbours are ranked by similarity (inner product, summed in float64 and rounded to float32), equal ones by
    index, as a plain exact search ranks them. With more than k identical images an image need not be
    in its own list.

    Args:
        features: (N, D) float32 unit rows (see prepare_features), on any device.
        k: length of a list, capped at N.
        rows: (start, stop) to search for only these images, default all.
        memory_budget_mb: bounds the scratch memory, in MiB.
        allow_tf32: let CUDA find the candidates in TF32.

    Returns:
        similarities (n, K) float32 and ranks (n, K) int64 on the device of the features, K = min(k, N).
    """
    images, dimensions = features.shape
    start, stop = rows if rows is not None else (0, images)
    length = min(k, images)
    bytes_per_row = 8 * images + 16 * (length + SPARE) * dimensions
    chunk = max(1, min(stop - start, memory_budget_mb * 2**20 // bytes_per_row))
    similarities = features.new_empty(stop - start, length)
    ranks = torch.empty(stop - start, length, dtype=torch.int64, device=features.device)
    with _tf32(allow_tf32):
        for first in range(start, stop, chunk):
            part = slice(first - start, min(first + chunk, stop) - start)
            queries = features[first : first + chunk][: stop - first]
            similarities[part], ranks[part] = _search_chunk(queries, features, length)
    return similarities, ranks


@contextlib.contextmanager
def _tf32(allowed):
    """Set whether CUDA matrix products may use TF32, and put the user's setting back afterwards."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _search_chunk(queries, features, length):
    """(B, D), (N, D) -> similarities (B, length), ranks (B, length)."""
    approximate = queries @ features.t()  # (B, N)
    kept = min(length + SPARE, len(features))
    values, candidates = approximate.topk(kept, dim=1)  # (B, kept)
    exact = _exact_similarities(queries, features, candidates)  # (B, kept)
    similarities, ranks = _sort_candidates(exact, candidates, length)
    if kept == len(features):
        return similarities, ranks
    # The product is off by less than its margin. Where the list's last entry is not clear of the best image that
    # was left out (many equal images), all images within the margin are candidates.
    margin = 2 * rounding_margin(features.shape[1])
    unclear = (values[:, -1] >= similarities[:, -1] - margin).nonzero().flatten()
    for row in unclear.tolist():
        every = (approximate[row] >= similarities[row, -1] - 2 * margin).nonzero().flatten()[None]  # (1, M)
        exact = _exact_similarities(queries[row : row + 1], features, every)
        row_similarities, row_ranks = _sort_candidates(exact, every, length)
        similarities[row], ranks[row] = row_similarities[0], row_ranks[0]
    return similarities, ranks


def rounding_margin(dimensions: int) -> float:
    """How far a float32 inner product of unit vectors may be off: far above what is ever seen, far below a gap."""
    return float(np.finfo(np.float32).eps) * max(8.0, dimensions**0.5)


def _exact_similarities(queries, features, candidates):
    """(B, D), (N, D), (B, M) -> (B, M) float32, summed in float64."""
    products = features[candidates].double().mul_(queries.double()[:, None, :])  # (B, M, D)
    return products.sum(dim=2).float()


def _sort_candidates(similarities, candidates, length):
    """Order by similarity, then index: (B, M), (B, M) -> the first ``length`` of both."""
    candidates, order = candidates.sort(dim=1)
    similarities, by_similarity = similarities.gather(1, order).sort(dim=1, descending=True, stable=True)
    return similarities[:, :length], candidates.gather(1, by_similarity)[:, :length]
