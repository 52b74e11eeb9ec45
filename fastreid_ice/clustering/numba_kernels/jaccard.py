"""Jaccard distances between sparse rows of weights, only those up to eps, in compiled CPU kernels."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from fastreid_ice.clustering.definitions import least_overlap
from fastreid_ice.clustering.numba_kernels.common import Entries, assemble, grown
from fastreid_ice.compiled import njit
from fastreid_ice.parallel import map_rows

# Sums that are looked through together: a cache line.
PART_BITS = 4
PART = 1 << PART_BITS

# A row that touches fewer sums than a third of all lists the parts they lie in; else all parts are looked through.
SWEEP = 3

# So few pairs of a row are put in order by insertion; a giant cluster's rows are sorted.
FEW = 32


def jaccard_distances(encoding: csr_array, eps: float, memory_budget_mb: int) -> csr_array:
    """Distances <= eps between the rows of an encoding; see :func:`fastreid_ice.clustering.jaccard_distances`.

    Args:
        encoding: (N, N) csr_array float32, columns sorted within a row, rows that sum to 1 (or are empty).
        eps: largest distance to keep, below 1.
        memory_budget_mb: not needed: a thread holds one row of sums.

    Returns:
        (N, N) csr_array float32, symmetric, with its diagonal (stored zeros), columns sorted.
    """
    images = encoding.shape[0]
    indptr, indices, data = encoding.indptr, encoding.indices, encoding.data
    ends, rows, weights, places = _transposed(encoding)
    threshold = np.float32(max(least_overlap(eps), np.finfo(np.float32).tiny))  # images that share nothing are no pair
    parts = map_rows(
        lambda a, b: _overlaps(indptr, indices, data, ends, rows, weights, places, threshold, a, b), images
    )
    upper = assemble(parts, images)
    upper.data = np.maximum(1 - upper.data / (2 - upper.data), 0)
    return _symmetric(upper)


def _symmetric(upper: csr_array) -> csr_array:
    """Mirror an upper triangle with sorted columns, its diagonal kept."""
    images = upper.shape[0]
    indptr = np.zeros(images + 1, np.int64)
    row = np.repeat(np.arange(images, dtype=np.int32), np.diff(upper.indptr))
    mirrored = np.bincount(upper.indices[upper.indices != row], minlength=images)
    np.cumsum(np.diff(upper.indptr) + mirrored, out=indptr[1:])
    indices = np.empty(indptr[-1], np.int32)
    values = np.empty(indptr[-1], np.float32)
    _mirror(upper.indptr, upper.indices, upper.data, indptr[:-1].copy(), indices, values)
    return csr_array((values, indices, indptr), shape=upper.shape)


def _transposed(encoding: csr_array) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The columns of a matrix (indptr, rows ascending, weights), and where each entry of the rows stands in them."""
    images, entries = encoding.shape[0], encoding.nnz
    ends = np.zeros(images + 1, np.int64)
    np.cumsum(np.bincount(encoding.indices, minlength=images), out=ends[1:])
    rows, weights = np.empty(entries, np.int32), np.empty(entries, np.float32)
    places = np.empty(entries, np.int32 if entries < 2**31 else np.int64)
    _transpose(encoding.indptr, encoding.indices, encoding.data, ends[:-1].copy(), rows, weights, places)
    return ends, rows, weights, places


@njit(cache=True, nogil=True)
def _transpose(
    indptr: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    free: np.ndarray,
    rows: np.ndarray,
    weights: np.ndarray,
    places: np.ndarray,
) -> None:
    """Write the columns; ``free`` holds their beginnings."""
    for i in range(indptr.shape[0] - 1):
        for entry in range(indptr[i], indptr[i + 1]):
            place = free[indices[entry]]
            free[indices[entry]] += 1
            rows[place] = i
            weights[place] = data[entry]
            places[entry] = place


@njit(cache=True, nogil=True)
def _overlaps(
    indptr: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    ends: np.ndarray,
    rows: np.ndarray,
    weights: np.ndarray,
    places: np.ndarray,
    threshold: np.float32,
    start: int,
    stop: int,
) -> Entries:
    """Pairs (i, j >= i) of rows start..stop with an overlap of at least ``threshold``: (sizes, columns, overlaps).

    ``ends`` is the indptr of the columns, ``rows`` and ``weights`` their entries. From the place of its own entry on, a
    column holds the rows j >= i. Adding up takes no decisions; what reached the threshold is found afterwards, in parts
    of PART sums. (Arrays are grown outside of the inner functions: returning them costs more than a part.)
    """
    images = indptr.shape[0] - 1
    parts = images // PART + 1
    sums = np.zeros(parts * PART, np.float32)
    listed, chosen = np.zeros(parts, np.uint8), np.empty(parts + 1, np.int32)
    sizes = np.empty(stop - start, np.int64)
    columns = np.empty((stop - start) * 8 + PART, np.int32)
    values = np.empty(columns.shape[0], np.float32)
    used = 0
    for i in range(start, stop):
        before, work, count = used, 0, 0
        for entry in range(indptr[i], indptr[i + 1]):
            work += ends[indices[entry] + 1] - places[entry]
        sparse_row = images - i > SWEEP * work
        for entry in range(indptr[i], indptr[i + 1]):
            own = slice(np.int64(places[entry]), ends[indices[entry] + 1])
            if sparse_row:
                count = _add_and_list(sums, rows[own], weights[own], data[entry], listed, chosen, count)
            else:
                _add(sums, rows[own], weights[own], data[entry])
        if not sparse_row:
            for part in range(i >> PART_BITS, parts):
                chosen[count] = part
                count += 1
        hits = _clear_low(sums, chosen, count, listed, threshold)
        columns, values = grown(columns, used + hits * PART), grown(values, used + hits * PART)
        used = _take(sums, chosen, hits, threshold, columns, values, used)
        if sparse_row:
            _sort_pairs(columns[before:used], values[before:used])
        sizes[i - start] = used - before
    return sizes, columns[:used].copy(), values[:used].copy()


@njit(cache=True, nogil=True)
def _add(sums: np.ndarray, rows: np.ndarray, weights: np.ndarray, weight: np.float32) -> None:
    """Add the minima of a column's weights and one weight to the sums of its rows."""
    for a in range(rows.shape[0]):
        other = weights[a]
        sums[np.uint32(rows[a])] += min(other, weight)


@njit(cache=True, nogil=True)
def _add_and_list(
    sums: np.ndarray,
    rows: np.ndarray,
    weights: np.ndarray,
    weight: np.float32,
    listed: np.ndarray,
    chosen: np.ndarray,
    count: int,
) -> int:
    """The same, and list the parts in which the sums lie; returns how many of ``chosen`` are filled."""
    for a in range(rows.shape[0]):
        j = np.uint32(rows[a])
        sums[j] += min(weights[a], weight)
        part = j >> np.uint32(PART_BITS)
        chosen[count] = part
        count += 1 - listed[part]
        listed[part] = 1
    return count


@njit(cache=True, nogil=True)
def _clear_low(sums: np.ndarray, chosen: np.ndarray, count: int, listed: np.ndarray, threshold: np.float32) -> int:
    """Clear the chosen parts that nowhere reach the threshold; the others move to the front. Returns their number."""
    hits = 0
    for a in range(count):
        part = chosen[a]
        listed[part] = 0
        first = np.int64(part) << PART_BITS
        hit = np.int32(0)
        for b in range(PART):
            hit |= np.int32(sums[np.uint64(first + b)] >= threshold)
        if hit:
            chosen[hits] = part
            hits += 1
        else:
            for b in range(PART):
                sums[np.uint64(first + b)] = 0
    return hits


@njit(cache=True, nogil=True)
def _take(
    sums: np.ndarray,
    chosen: np.ndarray,
    hits: int,
    threshold: np.float32,
    columns: np.ndarray,
    values: np.ndarray,
    used: int,
) -> int:
    """Collect what reached the threshold from the chosen parts, and clear them."""
    for a in range(hits):
        first = np.int64(chosen[a]) << PART_BITS
        for b in range(PART):
            j = np.uint64(first + b)
            if sums[j] >= threshold:
                columns[used], values[used] = first + b, sums[j]
                used += 1
            sums[j] = 0
    return used


@njit(cache=True, nogil=True)
def _sort_pairs(columns: np.ndarray, values: np.ndarray) -> None:
    """Put pairs in the order of their columns, in place."""
    if columns.shape[0] > FEW:
        order = np.argsort(columns)
        columns[:] = columns[order]
        values[:] = values[order]
        return
    for a in range(1, columns.shape[0]):
        column, value = columns[a], values[a]
        b = a
        while b > 0 and columns[b - 1] > column:
            columns[b], values[b] = columns[b - 1], values[b - 1]
            b -= 1
        columns[b], values[b] = column, value


@njit(cache=True, nogil=True)
def _mirror(
    indptr: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    free: np.ndarray,
    mirrored_indices: np.ndarray,
    mirrored_data: np.ndarray,
) -> None:
    """Write each entry (i, j) to rows i and j; ``free`` holds the next free place of each row."""
    for i in range(free.shape[0]):
        for entry in range(indptr[i], indptr[i + 1]):
            j = indices[entry]
            mirrored_indices[free[i]] = j
            mirrored_data[free[i]] = data[entry]
            free[i] += 1
            if j != i:
                mirrored_indices[free[j]] = i
                mirrored_data[free[j]] = data[entry]
                free[j] += 1
