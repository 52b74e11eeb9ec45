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
    index_type,
    sum_by_key,
)


def jaccard_distances(encoding: SparseRows, eps: float, memory_budget_mb: int) -> SparseRows:
    """Distances <= eps between the rows of an encoding; see :func:`fastreid_ice.clustering.jaccard_distances`."""
    indptr, columns, values = encoding
    images = len(indptr) - 1
    partner_rows, partner_values, place, ends = _transposed(encoding)
    keys, overlaps = [], []
    for start, stop in _balanced_rows(indptr, ends[columns] - place, memory_budget_mb):
        entries = slice(int(indptr[start]), int(indptr[stop]))
        row = start + torch.repeat_interleave(indptr[start + 1 : stop + 1] - indptr[start:stop])  # of each entry
        bounds = torch.stack([place[entries], ends[columns[entries]]], dim=1).long()
        owner, partner = expand_ranges(bounds)  # an entry and, in its column, itself and those of the rows below
        minima = torch.minimum(values[entries][owner], partner_values[partner])
        pairs, sums = sum_by_key(row[owner] * images + partner_rows[partner], minima)
        close = sums >= least_overlap(eps)
        keys.append(pairs[close])
        overlaps.append(sums[close])
    return _graph(torch.cat(keys), torch.cat(overlaps), images)


def _transposed(encoding: SparseRows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The entries by column, rows ascending: their rows (E,), their values (E,), where each entry of the rows stands
    among them (E,), and where each column ends (N,)."""
    indptr, columns, values = encoding
    images, entries = len(indptr) - 1, len(columns)
    small = index_type(max(images, entries))
    order = columns.sort(stable=True).indices  # (E,) int64, the only whole array of that type
    place = torch.empty(entries, dtype=small, device=columns.device)
    place[order] = torch.arange(entries, dtype=small, device=columns.device)
    rows = torch.repeat_interleave((indptr[1:] - indptr[:-1]).to(small))
    ends = torch.bincount(columns, minlength=images).cumsum(0).to(small)
    return rows[order], values[order], place, ends


def _balanced_rows(indptr: Tensor, work: Tensor, memory_budget_mb: int) -> Iterator[tuple[int, int]]:
    """Cut the rows where the work of their entries fills the budget: (start, stop) of rows."""
    limit = max(1, memory_budget_mb * 2**20 // BYTES_PER_ENTRY)
    total = torch.zeros(len(work) + 1, dtype=torch.int64, device=work.device)
    torch.cumsum(work, dim=0, out=total[1:])
    total = total[indptr]  # (N + 1,) work before each row
    row, last = 0, len(indptr) - 1
    while row < last:
        stop = max(row + 1, int(torch.searchsorted(total, total[row] + limit, right=True)) - 1)
        stop = min(stop, last)
        yield row, stop
        row = stop


def _graph(keys: Tensor, overlaps: Tensor, images: int) -> SparseRows:
    """Mirror pairs (i, j >= i) with their overlaps: their distances."""
    distances = (1 - overlaps / (2 - overlaps)).clamp_(min=0)
    row, column = keys // images, keys % images
    off = row != column
    keys, order = torch.cat([keys, column[off] * images + row[off]]).sort()
    return from_keys(keys, torch.cat([distances, distances[off]])[order], images)
