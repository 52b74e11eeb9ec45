"""Jaccard distances between sparse rows of weights, only those up to eps, in compiled CPU kernels."""

import numpy as np
from numba import njit
from scipy import sparse

from .parallel import map_rows
from .reciprocal import _assemble, _grown

# Rounding in the sums moves a distance by about 1e-7. Distances that equal eps (they exist at round values
# such as 0.5, where weights are equal) count as "within eps" however a path rounds.
TOLERANCE = 1e-6


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
    columns = encoding.T.tocsr()
    threshold = np.float32(least_overlap(eps))
    rows = (encoding.indptr, encoding.indices, encoding.data)
    by_column = (columns.indptr, columns.indices, columns.data)
    upper = _assemble(map_rows(lambda a, b: _overlaps(*rows, *by_column, threshold, a, b), images), images)
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
def _overlaps(indptr, indices, data, column_indptr, column_indices, column_data, threshold, start, stop):
    """Pairs (i, j >= i) of rows start..stop with an overlap of at least ``threshold``: (sizes, columns, overlaps)."""
    sums = np.zeros(indptr.shape[0] - 1, np.float32)
    members = np.empty(indptr.shape[0] - 1, np.int32)
    sizes = np.empty(stop - start, np.int64)
    columns = np.empty((stop - start) * 16, np.int32)
    values = np.empty(columns.shape[0], np.float32)
    used = 0
    for i in range(start, stop):
        touched = 0
        for entry in range(indptr[i], indptr[i + 1]):
            column, weight = indices[entry], data[entry]
            first = column_indptr[column]
            begin = first + np.searchsorted(column_indices[first : column_indptr[column + 1]], i)
            for other in range(begin, column_indptr[column + 1]):
                j = column_indices[other]
                if sums[j] == 0:
                    members[touched] = j
                    touched += 1
                sums[j] += min(weight, column_data[other])
        columns, values = _grown(columns, used + touched), _grown(values, used + touched)
        size = 0
        for a in range(touched):
            if sums[members[a]] >= threshold:
                columns[used + size] = members[a]
                size += 1
        columns[used : used + size].sort()
        for a in range(used, used + size):
            values[a] = sums[columns[a]]
        for a in range(touched):
            sums[members[a]] = 0
        sizes[i - start] = size
        used += size
    return sizes, columns[:used].copy(), values[:used].copy()


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
