"""The stages after the search in torch index operations, for features on an accelerator.

The same definitions as the compiled kernels; sums run over sorted keys, so a result does not depend on the order in
which threads finish. Work is cut into chunks of rows whose expansion fits the memory budget.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .jaccard import least_overlap
from .reciprocal import half_length

# Rough number of bytes alive per expanded entry: keys, sorted keys, their order, values and copies of these.
BYTES_PER_ENTRY = 64


class SparseRows(NamedTuple):
    """A square sparse matrix in rows, columns sorted; plain tensors, as torch's own CSR tensors are in beta.

    Attributes:
        indptr: (N + 1,) int64, where each row's entries begin.
        indices: (E,) int64, their columns.
        values: (E,) float32.
    """

    indptr: Tensor
    indices: Tensor
    values: Tensor


def encode_on_device(features: Tensor, ranks: Tensor, k1: int, k2: int, budget_mb: int = 256) -> SparseRows:
    """k-reciprocal encoding: (N, D) float32, (N, K) int64 -> (N, N) float32."""
    images = len(ranks)
    full = _reciprocal(ranks)  # (N, K) bool
    nearest = ranks[:, : half_length(k1)]  # (N, h)
    half = _reciprocal(nearest)  # (N, h) bool
    entries = ranks.shape[1] * (nearest.shape[1] + 1)
    chunks = _chunks(images, entries, budget_mb)
    keys = torch.cat([_expanded_keys(ranks, full, nearest, half, *chunk) for chunk in chunks])  # sorted i * N + j
    weights = _softened(features, keys, images, budget_mb)
    encoding = _rows(keys, weights, images)
    return encoding if k2 == 1 else _averaged(encoding, ranks[:, :k2], budget_mb)


def _chunks(images, entries_per_image, budget_mb):
    size = max(1, budget_mb * 2**20 // (BYTES_PER_ENTRY * entries_per_image))
    return [(start, min(start + size, images)) for start in range(0, images, size)]


def _rows(keys, values, images):
    """Sorted keys i * N + j and their values -> SparseRows."""
    sizes = torch.bincount(keys // images, minlength=images)
    return SparseRows(torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]), keys % images, values)


def _contains(sorted_keys, keys):
    if len(sorted_keys) == 0:
        return torch.zeros_like(keys, dtype=torch.bool)
    position = torch.searchsorted(sorted_keys, keys).clamp_(max=len(sorted_keys) - 1)
    return sorted_keys[position] == keys


def _reciprocal(ranks):
    """(N, K) -> (N, K) bool: [i, a] is True when i is in the list of ranks[i, a]."""
    images = len(ranks)
    rows = torch.arange(images, device=ranks.device)[:, None]
    forward = (rows * images + ranks).flatten().sort().values
    return _contains(forward, ranks * images + rows)


def _expanded_keys(ranks, full, nearest, half, start, stop):
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


def _softened(features, keys, images, budget_mb):
    """Softmax of minus the squared distance over each row; exp(2 s) cannot overflow as |s| <= 1."""
    similarities = []
    for part in keys.split(max(1, budget_mb * 2**20 // (12 * features.shape[1]))):
        similarities.append((features[part // images] * features[part % images]).sum(dim=1))
    weights = torch.cat(similarities).mul_(2).exp_()
    sizes = torch.bincount(keys // images, minlength=images)
    totals = torch.segment_reduce(weights, "sum", lengths=sizes)  # (N,)
    return weights / totals[keys // images]


def _expand_ranges(bounds):
    """(M, 2) begins and ends -> (owner, position) of every position in every range, in order."""
    sizes = bounds[:, 1] - bounds[:, 0]
    owner = torch.repeat_interleave(sizes)
    shift = bounds[:, 0] - (sizes.cumsum(0) - sizes)
    return owner, shift[owner] + torch.arange(len(owner), device=bounds.device)


def _sum_by_key(keys, values):
    """Add the values of equal keys: sorted unique keys, sums."""
    keys, order = keys.sort(stable=True)
    keys, sizes = keys.unique_consecutive(return_counts=True)
    return keys, torch.segment_reduce(values[order], "sum", lengths=sizes)


def _averaged(encoding, nearest, budget_mb):
    """Query expansion: row i becomes the mean of the rows of its nearest images (N, k2)."""
    images, k2 = nearest.shape
    indptr, indices, values = encoding
    keys, sums = [], []
    largest = int((indptr[1:] - indptr[:-1]).max())
    for start, stop in _chunks(images, k2 * largest, budget_mb):
        images_of_part = nearest[start:stop].flatten()
        owner, entry = _expand_ranges(torch.stack([indptr[images_of_part], indptr[images_of_part + 1]], dim=1))
        part = _sum_by_key((start + owner // k2) * images + indices[entry], values[entry])
        keys.append(part[0])
        sums.append(part[1] / k2)
    return _rows(torch.cat(keys), torch.cat(sums), images)


def jaccard_on_device(encoding: SparseRows, eps: float, budget_mb: int = 256) -> SparseRows:
    """Distances <= eps between the rows of an encoding, symmetric, diagonal included."""
    indptr, columns, values = encoding
    images = len(indptr) - 1
    rows = torch.repeat_interleave(indptr[1:] - indptr[:-1])  # row of each entry
    order = columns.sort(stable=True).indices  # entries by column, rows ascending
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    ends = torch.bincount(columns, minlength=images).cumsum(0)
    bounds = torch.stack([place, ends[columns]], dim=1)  # of the partners j >= i that an entry meets
    keys, overlaps = [], []
    for entries in _balanced_rows(indptr, bounds[:, 1] - bounds[:, 0], budget_mb):
        owner, partner = _expand_ranges(bounds[entries])
        partner = order[partner]
        minima = torch.minimum(values[entries][owner], values[partner])
        pairs, sums = _sum_by_key(rows[entries][owner] * images + rows[partner], minima)
        close = sums >= least_overlap(eps)
        keys.append(pairs[close])
        overlaps.append(sums[close])
    return _graph(torch.cat(keys), torch.cat(overlaps), images)


def _balanced_rows(indptr, work, budget_mb):
    """Cut the rows where the work of their entries fills the budget: slices of entries."""
    limit = max(1, budget_mb * 2**20 // BYTES_PER_ENTRY)
    total = torch.cat([work.new_zeros(1), work.cumsum(0)])[indptr]  # (N + 1,) work before each row
    row, last = 0, len(indptr) - 1
    while row < last:
        stop = max(row + 1, int(torch.searchsorted(total, total[row] + limit, right=True)) - 1)
        stop = min(stop, last)
        yield slice(int(indptr[row]), int(indptr[stop]))
        row = stop


def _graph(keys, overlaps, images):
    """Mirror pairs (i, j >= i) with their overlaps: their distances."""
    distances = (1 - overlaps / (2 - overlaps)).clamp_(min=0)
    row, column = keys // images, keys % images
    off = row != column
    keys, order = torch.cat([keys, column[off] * images + row[off]]).sort()
    return _rows(keys, torch.cat([distances, distances[off]])[order], images)


def dbscan_on_device(graph: SparseRows, min_samples: int = 4) -> Tensor:
    """Labels (N,) int64 on the graph's device; see :func:`fastreid_ice.clustering.dbscan`."""
    indptr, column, _ = graph
    images = len(indptr) - 1
    sizes = indptr[1:] - indptr[:-1]
    core = sizes >= min_samples  # (N,)
    row = torch.repeat_interleave(sizes)
    inner = core[row] & core[column]
    first = _components(row[inner], column[inner], images)  # (N,) first core image of each component
    founders = core & (first == torch.arange(images, device=first.device))
    labels = torch.where(core, (founders.cumsum(0) - 1)[first], images)
    border = core[column] & ~core[row]
    labels = labels.scatter_reduce(0, row[border], labels[column[border]], "amin")
    return labels.masked_fill(labels == images, -1)


def _components(row, column, images):
    """Lowest image of each connected component, by passing minima along edges and pointer jumping."""
    first = torch.arange(images, device=row.device)
    while True:
        lowest = first.scatter_reduce(0, row, first[column], "amin")  # of the neighbours
        lowest = lowest.scatter_reduce(0, first, lowest, "amin")  # handed to the root
        lowest = lowest[lowest]
        if torch.equal(lowest, first):
            return first
        first = lowest
