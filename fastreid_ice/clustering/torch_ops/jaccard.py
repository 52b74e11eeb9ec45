"""Jaccard distances between sparse rows of weights, only those up to eps, in torch index operations."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastreid_ice.clustering.definitions import least_overlap
from fastreid_ice.clustering.torch_ops.sparse_rows import (
    BYTES_PER_ENTRY,
    SparseRows,
    expand_ranges,
    from_keys,
    sum_by_key,
)


def jaccard_distances(encoding: SparseRows, eps: float, memory_budget_mb: int) -> SparseRows:
    """Distances <= eps between the rows of an encoding; see :func:`fastreid_ice.clustering.jaccard_distances`."""
    indptr, columns, values = encoding
    images = len(indptr) - 1
    rows = torch.repeat_interleave(indptr[1:] - indptr[:-1])  # row of each entry
    order = columns.sort(stable=True).indices  # entries by column, rows ascending
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    ends = torch.bincount(columns, minlength=images).cumsum(0)
    bounds = torch.stack([place, ends[columns]], dim=1)  # of the partners j >= i that an entry meets
    keys, overlaps = [], []
    for entries in _balanced_rows(indptr, bounds[:, 1] - bounds[:, 0], memory_budget_mb):
        owner, partner = expand_ranges(bounds[entries])
        partner = order[partner]
        minima = torch.minimum(values[entries][owner], values[partner])
        pairs, sums = sum_by_key(rows[entries][owner] * images + rows[partner], minima)
        close = sums >= least_overlap(eps)
        keys.append(pairs[close])
        overlaps.append(sums[close])
    return _graph(torch.cat(keys), torch.cat(overlaps), images)


def _balanced_rows(indptr: Tensor, work: Tensor, memory_budget_mb: int) -> Iterator[slice]:
    """Cut the rows where the work of their entries fills the budget: slices of entries."""
    limit = max(1, memory_budget_mb * 2**20 // BYTES_PER_ENTRY)
    total = torch.cat([work.new_zeros(1), work.cumsum(0)])[indptr]  # (N + 1,) work before each row
    row, last = 0, len(indptr) - 1
    while row < last:
        stop = max(row + 1, int(torch.searchsorted(total, total[row] + limit, right=True)) - 1)
        stop = min(stop, last)
        yield slice(int(indptr[row]), int(indptr[stop]))
        row = stop


def _graph(keys: Tensor, overlaps: Tensor, images: int) -> SparseRows:
    """Mirror pairs (i, j >= i) with their overlaps: their distances."""
    distances = (1 - overlaps / (2 - overlaps)).clamp_(min=0)
    row, column = keys // images, keys % images
    off = row != column
    keys, order = torch.cat([keys, column[off] * images + row[off]]).sort()
    return from_keys(keys, torch.cat([distances, distances[off]])[order], images)
