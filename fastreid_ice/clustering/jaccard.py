"""Jaccard distances between sparse rows of weights, only those up to eps, in compiled CPU kernels."""

import numpy as np
from numba import njit
from scipy import sparse

from .kernels import STRIP, assemble, grown, reaches
from .parallel import map_rows

# Rounding in the sums moves a distance by about 1e-7. Distances that equal eps (they exist at round values
# such as 0.5, where weights are equal) count as "within eps" however a path rounds.
TOLERANCE = 1e-6

# Looking through all sums in order is this many times cheaper per sum than visiting the touched ones once more.
SWEEP = 16


def least_overlap(eps: float) -> float:
    """The overlap m that a distance of eps stands for: 1 - m / (2 - m) <= eps is m >= 2 (1 - eps) / (2 - eps).

    Example:
        >>> round(least_overlap(0.5), 4), round(least_overlap(1.0), 4)
        (0.6667, 0.0)
    """
    eps = eps + TOLERANCE
    return max(2 * (1 - eps) / (2 - eps), 0.0)


def jaccard_rows(encoding: sparse.csr_array, eps: float) -> sparse.csr_array:
    """Distances d = 1 - m / (2 - m) <= eps, m = sum of the element-wise minima of two rows.

    Args:
        encoding: (N, N) csr_array float32, columns sorted within a row, rows that sum to 1 (or are empty).
        eps: largest distance to keep, below 1.

    Returns:
        (N, N) csr_array float32, symmetric, with its diagonal (stored zeros), columns sorted.
    """
    images = encoding.shape[0]
    columns = encoding.T.tocsr()  # rows ascending within a column
    places = np.empty(encoding.nnz, np.int32 if encoding.nnz < 2**31 else np.int64)
    _find_places(encoding.indptr, encoding.indices, columns.indptr[:-1].copy(), places)
    matrices = encoding.indptr, encoding.indices, encoding.data, columns.indptr, columns.indices, columns.data, places
    threshold = np.float32(least_overlap(eps))
    upper = assemble(map_rows(lambda a, b: _overlaps(*matrices, threshold, a, b), images), images)
    upper.data = np.maximum(1 - upper.data / (2 - upper.data), 0)
    return _symmetric(upper)


def _symmetric(upper):
    """Mirror an upper triangle with sorted columns, its diagonal kept."""
    images = upper.shape[0]
    indptr = np.zeros(images + 1, np.int64)
    row = np.repeat(np.arange(images), np.diff(upper.indptr))
    mirrored = np.bincount(upper.indices[upper.indices != row], minlength=images)
    np.cumsum(np.diff(upper.indptr) + mirrored, out=indptr[1:])
    indices = np.empty(indptr[-1], np.int32)
    values = np.empty(indptr[-1], np.float32)
    _mirror(upper.indptr, upper.indices, upper.data, indptr[:-1].copy(), indices, values)
    return sparse.csr_array((values, indices, indptr), shape=upper.shape)


@njit(cache=True, nogil=True)
def _find_places(indptr, indices, free, places):
    """Where each entry stands in its column; ``free`` holds the beginnings of the columns."""
    for i in range(indptr.shape[0] - 1):
        for entry in range(indptr[i], indptr[i + 1]):
            places[entry] = free[indices[entry]]
            free[indices[entry]] += 1


@njit(cache=True, nogil=True)
def _overlaps(indptr, indices, data, ends, rows, weights, places, threshold, start, stop):
    """Pairs (i, j >= i) of rows start..stop with an overlap of at least ``threshold``: (sizes, columns, overlaps).

    ``ends`` is the indptr of the columns, ``rows`` and ``weights`` their entries. From the place of its own entry on, a
    column holds the rows j >= i. Adding up takes no decisions; what reached the threshold is found afterwards.
    """
    images = indptr.shape[0] - 1
    sums = np.zeros(images, np.float32)
    sizes = np.empty(stop - start, np.int64)
    columns = np.empty((stop - start) * 8 + STRIP, np.int32)
    values = np.empty(columns.shape[0], np.float32)
    used = 0
    for i in range(start, stop):
        before, work = used, 0
        for entry in range(indptr[i], indptr[i + 1]):
            first, last = np.int64(places[entry]), ends[indices[entry] + 1]
            _add_minima(sums, rows[first:last], weights[first:last], data[entry])
            work += last - first
        if images - i <= SWEEP * work:
            columns, values, used = _sweep(sums, i, threshold, columns, values, used)
        else:
            for entry in range(indptr[i], indptr[i + 1]):
                first, last = np.int64(places[entry]), ends[indices[entry] + 1]
                columns, values, used = _collect(sums, rows[first:last], threshold, columns, values, used)
            order = np.argsort(columns[before:used])
            columns[before:used] = columns[before:used][order]
            values[before:used] = values[before:used][order]
        sizes[i - start] = used - before
    return sizes, columns[:used].copy(), values[:used].copy()


@njit(cache=True, nogil=True)
def _add_minima(sums, rows, weights, weight):
    for a in range(rows.shape[0]):
        other = weights[a]
        sums[np.uint32(rows[a])] += min(other, weight)


@njit(cache=True, nogil=True)
def _sweep(sums, i, threshold, columns, values, used):
    """Collect what reached the threshold from all sums j >= i, and clear them."""
    for first in range(i, sums.shape[0], STRIP):
        strip = sums[first : first + STRIP]
        if strip.shape[0] == STRIP and not reaches(strip, threshold):
            continue
        columns, values = grown(columns, used + STRIP), grown(values, used + STRIP)
        for a in range(strip.shape[0]):
            if strip[a] >= threshold:
                columns[used], values[used] = first + a, strip[a]
                used += 1
    sums[i:] = 0
    return columns, values, used


@njit(cache=True, nogil=True)
def _collect(sums, rows, threshold, columns, values, used):
    """Collect what reached the threshold from the sums of one column's rows, and clear them."""
    columns, values = grown(columns, used + rows.shape[0]), grown(values, used + rows.shape[0])
    for a in range(rows.shape[0]):
        j = np.uint32(rows[a])
        if sums[j] >= threshold:
            columns[used], values[used] = rows[a], sums[j]
            used += 1
        sums[j] = 0
    return columns, values, used


@njit(cache=True, nogil=True)
def _mirror(indptr, indices, data, free, mirrored_indices, mirrored_data):
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
