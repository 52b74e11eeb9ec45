"""k-reciprocal encoding of Zhong et al. (CVPR 2017) in torch index operations."""

from __future__ import annotations

import torch
from torch import Tensor

from fastreid_ice.clustering.definitions import half_length
from fastreid_ice.clustering.torch_ops.sparse_rows import (
    BYTES_PER_ENTRY,
    SparseRows,
    expand_ranges,
    from_keys,
    stack_rows,
    sum_by_key,
)


def k_reciprocal_encoding(
    features: Tensor, ranks: Tensor, similarities: Tensor, k1: int, k2: int, memory_budget_mb: int
) -> SparseRows:
    """(N, D) float32, (N, K) int64 -> (N, N) float32; see :func:`fastreid_ice.clustering.k_reciprocal_encoding`.

    Products are cheap here: all are made anew, and the ``similarities`` (N, K) of the search are not looked up.
    """
    images = len(ranks)
    full = reciprocal(ranks)  # (N, K) bool
    nearest = ranks[:, : half_length(k1)]  # (N, h)
    half = reciprocal(nearest)  # (N, h) bool
    entries = ranks.shape[1] * (nearest.shape[1] + 1)
    parts = []
    for chunk in _chunks(images, entries, memory_budget_mb):  # all that is int64 is as small as a chunk
        keys = _expanded_keys(ranks, full, nearest, half, *chunk)  # sorted i * N + j
        weights = softened(features, keys, chunk, memory_budget_mb)
        parts.append(from_keys(keys, weights, images, chunk))
    encoding = stack_rows(parts)
    return encoding if k2 == 1 else averaged(encoding, ranks[:, :k2], memory_budget_mb)


def _chunks(images: int, entries_per_image: int, memory_budget_mb: int) -> list[tuple[int, int]]:
    size = max(1, memory_budget_mb * 2**20 // (BYTES_PER_ENTRY * entries_per_image))
    return [(start, min(start + size, images)) for start in range(0, images, size)]


def _contains(sorted_keys: Tensor, keys: Tensor) -> Tensor:
    if len(sorted_keys) == 0:
        return torch.zeros_like(keys, dtype=torch.bool)
    position = torch.searchsorted(sorted_keys, keys).clamp_(max=len(sorted_keys) - 1)
    return sorted_keys[position] == keys


def reciprocal(ranks: Tensor) -> Tensor:
    """(N, K), -1 for none -> (N, K) bool: [i, a] is True when i is in the list of ranks[i, a]."""
    images = len(ranks)
    rows = torch.arange(images, device=ranks.device)[:, None]
    forward = (rows * images + ranks)[ranks >= 0].sort().values
    return _contains(forward, ranks * images + rows)


def _expanded_keys(ranks: Tensor, full: Tensor, nearest: Tensor, half: Tensor, start: int, stop: int) -> Tensor:
    """Sorted keys i * N + j of the expanded reciprocal sets of rows start..stop."""
    images = len(ranks)
    rows = torch.arange(start, stop, device=ranks.device) * images
    own, is_own = ranks[start:stop], full[start:stop]  # (B, K)
    own_keys = (rows[:, None] + own)[is_own].sort().values
    keys = rows[:, None, None] + nearest[own]  # (B, K, h)
    present = half[own]  # (B, K, h)
    common = (_contains(own_keys, keys) & present).sum(dim=2)  # (B, K)
    joins = (3 * common > 2 * present.sum(dim=2)) & is_own  # (B, K)
    return torch.cat([own_keys, keys[present & joins[:, :, None]]]).unique()


def softened(features: Tensor, keys: Tensor, rows: tuple[int, int], memory_budget_mb: int) -> Tensor:
    """Softmax of minus the squared distance over each of these rows; exp(2 s) cannot overflow as |s| <= 1."""
    images, (start, stop) = len(features), rows
    similarities = []
    for part in keys.split(max(1, memory_budget_mb * 2**20 // (12 * features.shape[1]))):
        similarities.append((features[part // images] * features[part % images]).sum(dim=1))
    weights = torch.cat(similarities).mul_(2).exp_()
    owner = keys // images - start
    totals = torch.segment_reduce(weights, "sum", lengths=torch.bincount(owner, minlength=stop - start))
    return weights / totals[owner]


def averaged(encoding: SparseRows, nearest: Tensor, memory_budget_mb: int) -> SparseRows:
    """Query expansion: row i becomes the mean of the rows of its nearest images (N, k2), of which -1 is none."""
    images, k2 = nearest.shape
    indptr, indices, values = encoding
    counts = (nearest >= 0).sum(dim=1)  # (N,)
    parts = []
    largest = int((indptr[1:] - indptr[:-1]).max())
    for start, stop in _chunks(images, k2 * largest, memory_budget_mb):
        images_of_part = nearest[start:stop].flatten()
        bounds = torch.stack([indptr[images_of_part], indptr[images_of_part + 1]], dim=1)
        owner, entry = expand_ranges(bounds.masked_fill(images_of_part[:, None] < 0, 0))
        keys, sums = sum_by_key((start + owner // k2) * images + indices[entry], values[entry])
        parts.append(from_keys(keys, sums / counts[keys // images], images, (start, stop)))
    return stack_rows(parts)
