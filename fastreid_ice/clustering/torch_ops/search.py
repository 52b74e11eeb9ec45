"""Exact neighbours by a float32 product: candidates by top-k, sums in float64, unclear rows once more."""

from __future__ import annotations

import torch
from torch import Tensor

from fastreid_ice.clustering.float64_search import COLUMNS, search_in_float64, sort_candidates
from fastreid_ice.clustering.torch_ops import faiss_gpu
from fastreid_ice.precision import products_in_tf32

# Candidates kept beyond k, so that rounding in the matrix product rarely leaves a row unclear.
SPARE = 8
TF32_SPARE = 32

Candidates = tuple[Tensor, Tensor]  # products and images (B, kept) of B queries


def nearest_neighbors(
    features: Tensor, length: int, rows: tuple[int, int], memory_budget_mb: int, allow_tf32: bool
) -> tuple[Tensor, Tensor]:
    """Lists of ``length`` <= N entries of rows (start, stop); see :func:`fastreid_ice.clustering.nearest_neighbors`."""
    start, stop = rows
    spare = TF32_SPARE if allow_tf32 else SPARE
    kept = min(length + spare, len(features))
    chunk = rows_at_once(len(features), kept, memory_budget_mb)
    similarities = features.new_empty(stop - start, length)
    ranks = torch.empty(stop - start, length, dtype=torch.int64, device=features.device)
    unclear = [ranks.new_empty(0)]
    with products_in_tf32(allow_tf32):
        for first in range(start, stop, chunk):
            last = min(first + chunk, stop)
            part = slice(first - start, last - start)
            found = _search_chunk(features[first:last], features, length, kept, memory_budget_mb, allow_tf32)
            similarities[part], ranks[part] = found[:2]
            unclear.append(found[2] + first)
    again = torch.cat(unclear)
    similarities[again - start], ranks[again - start] = search_in_float64(features, again, length, memory_budget_mb)
    return similarities, ranks


def rows_at_once(images: int, kept: int, memory_budget_mb: int) -> int:
    """Rows whose products with a block of columns fit the budget, with what top-k and its merging need beside them.

    Example:
        >>> rows_at_once(1_000_000, 38, 256), rows_at_once(32_621, 38, 256)
        (509, 1017)
    """
    return max(1, memory_budget_mb * 2**20 // (8 * min(COLUMNS, images) + 72 * kept))


def _search_chunk(
    queries: Tensor, features: Tensor, length: int, kept: int, memory_budget_mb: int, allow_tf32: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, D), (N, D) -> similarities (B, length), ranks (B, length), indices of the rows left unclear.

    A row is unclear where an image outside the candidates may, within the error of the product, belong into its
    list: when many images are equally near.
    """
    found = _largest_products(queries, features, kept, allow_tf32)
    return rank_candidates(queries, features, found, length, memory_budget_mb, allow_tf32)


def rank_candidates(
    queries: Tensor, features: Tensor, found: Candidates, length: int, memory_budget_mb: int, allow_tf32: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The first ``length`` of the candidates of each query, ordered by :func:`sort_candidates`.

    Args:
        queries: (B, D) float32 unit rows.
        features: (N, D) float32 unit rows.
        found: products and images (B, kept), largest first; minus infinity for an image that may not be in a list.
        length: entries of a list, at most kept.
        memory_budget_mb: bounds the scratch memory, in MiB.
        allow_tf32: whether the products were made in TF32.

    Returns:
        similarities (B, length) float32, ranks (B, length) int64, and the numbers of the rows left unclear.
    """
    values, candidates = found
    kept = candidates.shape[1]
    similarities = values.new_empty(len(queries), length, dtype=torch.float64)
    ranks = torch.empty_like(candidates[:, :length])
    part = max(1, memory_budget_mb * 2**20 // (24 * kept * features.shape[1]))
    for first in range(0, len(queries), part):
        rows = slice(first, first + part)
        products = features[candidates[rows]].double().mul_(queries[rows].double()[:, None, :])  # (b, kept, D)
        exact = products.sum(dim=2).masked_fill_(values[rows] == -torch.inf, -torch.inf)
        similarities[rows], ranks[rows] = sort_candidates(exact, candidates[rows], length)
    if kept == len(features):
        return similarities.float(), ranks, candidates.new_empty(0)
    last = values[:, -1]
    unclear = (last + product_error(features, allow_tf32) >= similarities[:, -1]) & (last > -torch.inf)
    return similarities.float(), ranks, unclear.nonzero().flatten()


def _largest_products(queries: Tensor, features: Tensor, count: int, allow_tf32: bool) -> Candidates:
    """The largest products of each query and their images, in float32 or TF32; by faiss-gpu where it is there."""
    if not allow_tf32 and faiss_gpu.is_usable(features, count):
        return faiss_gpu.largest_products(queries, features, count)
    largest = no_candidates(queries)
    for first, columns in zip(range(0, len(features), COLUMNS), features.split(COLUMNS)):
        largest = with_columns(largest, queries @ columns.t(), first, count)
    return largest


def no_candidates(queries: Tensor) -> Candidates:
    """Before the first of :func:`with_columns`."""
    return queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)


def with_columns(largest: Candidates, products: Tensor, first: int, count: int) -> Candidates:
    """The ``count`` largest of those found and of the products (B, C) with the images from ``first`` on."""
    values, images = products.topk(min(count, products.shape[1]), dim=1)
    values, images = torch.cat([largest[0], values], dim=1), torch.cat([largest[1], images + first], dim=1)
    values, order = values.topk(min(count, values.shape[1]), dim=1)  # (B, at most count), largest first
    return values, images.gather(1, order)


def product_error(features: Tensor, allow_tf32: bool) -> float:
    """Bound on the error of an inner product of unit vectors: of its accumulation, and of TF32 inputs if allowed."""
    tf32 = features.is_cuda and allow_tf32
    return features.shape[1] * 2.0**-24 + (2.0**-9 if tf32 else 0.0)
