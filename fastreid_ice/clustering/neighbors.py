"""The k nearest images of each image."""

import contextlib

import torch
from torch import Tensor

from . import faiss_gpu
from .kernels import GRID
from .pruned_search import pruned_neighbors

# Candidates kept beyond k, so that rounding in the matrix product rarely leaves a row unclear.
SPARE = 8
TF32_SPARE = 32


def nearest_neighbors(features: Tensor, k: int, rows=None, backend="auto", memory_budget_mb=256, allow_tf32=False):
    """Find the k most similar images of each image, itself included.

    Neighbours are ranked by similarity (inner product, summed in float64, on a grid of 2^-32), equal ones by
    index, as a plain exact search ranks them. With more than k identical images an image need not be
    in its own list.

    Args:
        features: (N, D) float32 unit rows (see prepare_features), on any device.
        k: length of a list, capped at N.
        rows: (start, stop) to search for only these images, default all.
        backend: "numba" (CPU), "torch" or "auto"; the result does not depend on it.
        memory_budget_mb: bounds the scratch memory of the torch path, in MiB.
        allow_tf32: let CUDA find the candidates in TF32; the result stays exact.

    Returns:
        similarities (n, K) float32 and ranks (n, K) int64 on the device of the features, K = min(k, N).
    """
    rows = rows if rows is not None else (0, len(features))
    length = min(k, len(features))
    if backend == "torch" or (backend == "auto" and features.device.type != "cpu"):
        return _search_in_torch(features, length, rows, memory_budget_mb, allow_tf32)
    similarities, ranks, crowded = pruned_neighbors(features, length, rows)
    similarities, ranks = torch.from_numpy(similarities), torch.from_numpy(ranks).long()
    crowded = torch.from_numpy(crowded).nonzero().flatten()
    similarities[crowded], ranks[crowded] = search_in_float64(features, crowded + rows[0], length, memory_budget_mb)
    return similarities, ranks


def _search_in_torch(features, length, rows, memory_budget_mb, allow_tf32):
    start, stop = rows
    images, dimensions = features.shape
    spare = TF32_SPARE if allow_tf32 else SPARE
    chunk = max(1, memory_budget_mb * 2**20 // (8 * images + 24 * (length + spare) * dimensions))
    similarities = features.new_empty(stop - start, length)
    ranks = torch.empty(stop - start, length, dtype=torch.int64, device=features.device)
    unclear = []
    with _tf32(allow_tf32):
        for first in range(start, stop, chunk):
            last = min(first + chunk, stop)
            part = slice(first - start, last - start)
            similarities[part], ranks[part], again = _search_chunk(features[first:last], features, length, spare)
            unclear.append(again + first)
    unclear = torch.cat(unclear)
    again = search_in_float64(features, unclear, length, memory_budget_mb)
    similarities[unclear - start], ranks[unclear - start] = again
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


def _search_chunk(queries, features, length, spare):
    """(B, D), (N, D) -> similarities (B, length), ranks (B, length), indices of the rows left unclear.

    A row is unclear where an image outside the candidates may, within the error of the product, belong into its
    list: when many images are equally near.
    """
    kept = min(length + spare, len(features))
    values, candidates = _largest_products(queries, features, kept)  # (B, kept)
    products = features[candidates].double().mul_(queries.double()[:, None, :])  # (B, kept, D)
    similarities, ranks = _sort_candidates(products.sum(dim=2), candidates, length)
    if kept == len(features):
        return similarities.float(), ranks, candidates.new_empty(0)
    unclear = values[:, -1] + _product_error(features) >= similarities[:, -1]
    return similarities.float(), ranks, unclear.nonzero().flatten()


def _largest_products(queries, features, count):
    """The largest products of each query, in float32 or as torch.backends says; by faiss-gpu where it is there."""
    if not torch.backends.cuda.matmul.allow_tf32 and faiss_gpu.is_usable(features, count):
        return faiss_gpu.largest_products(queries, features, count)
    return (queries @ features.t()).topk(count, dim=1)


def _product_error(features):
    """Bound on the error of an inner product of unit vectors: of its accumulation, and of TF32 inputs if allowed."""
    tf32 = features.is_cuda and torch.backends.cuda.matmul.allow_tf32
    return features.shape[1] * 2.0**-24 + (2.0**-9 if tf32 else 0.0)


def search_in_float64(features, images, length, memory_budget_mb):
    """Search the given images with whole rows of float64 similarities: (M,) -> (M, length) twice."""
    similarities = features.new_empty(len(images), length)
    ranks = torch.empty(len(images), length, dtype=torch.int64, device=features.device)
    block = max(1, memory_budget_mb * 2**20 // (16 * features.shape[1]))
    done = 0
    for part in images.split(max(1, memory_budget_mb * 2**20 // (48 * len(features)))):
        queries = features[part].double()  # (B, D)
        whole = torch.cat([queries @ keys.double().t() for keys in features.split(block)], dim=1)  # (B, N)
        everyone = torch.arange(len(features), device=features.device).expand_as(whole)
        found = _sort_candidates(whole, everyone, length)
        similarities[done : done + len(part)], ranks[done : done + len(part)] = found
        done += len(part)
    return similarities, ranks


def _sort_candidates(similarities, candidates, length):
    """Order by similarity on the grid, then index: (B, M) float64, (B, M) -> the first ``length`` of both."""
    candidates, order = candidates.sort(dim=1)
    similarities = (similarities.gather(1, order) * GRID).round_().div_(GRID)
    similarities, by_similarity = similarities.sort(dim=1, descending=True, stable=True)
    return similarities[:, :length], candidates.gather(1, by_similarity)[:, :length]
