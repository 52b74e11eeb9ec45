"""k-reciprocal encoding of Zhong et al. (CVPR 2017) over sparse rows, in compiled CPU kernels.

Image i becomes a sparse row of weights over its k-reciprocal neighbours. Work and memory are O(N k).
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array
from torch import Tensor

from fastreid_ice.clustering.definitions import half_length
from fastreid_ice.clustering.numba_kernels.common import REASSOCIATE, Entries, assemble, dot, grown
from fastreid_ice.compiled import njit
from fastreid_ice.parallel import map_rows


def k_reciprocal_encoding(
    features: Tensor, ranks: Tensor, similarities: Tensor, k1: int, k2: int, memory_budget_mb: int
) -> csr_array:
    """(N, N) float32, columns sorted within a row; see :func:`fastreid_ice.clustering.k_reciprocal_encoding`."""
    lists = ranks.cpu().numpy().astype(np.int32)
    weights = _reciprocal_weights(features.cpu().numpy(), lists, similarities.cpu().numpy(), half_length(k1))
    return weights if k2 == 1 else _query_expansion(weights, np.ascontiguousarray(lists[:, :k2]))


def _reciprocal_weights(features: np.ndarray, ranks: np.ndarray, similarities: np.ndarray, half_list: int) -> csr_array:
    """(N, D) float32, (N, K) int32, (N, K) float32 -> (N, N) float32, without the query expansion."""
    images, length = ranks.shape
    full = np.empty((images, length), np.int32)
    full_sizes = np.empty(images, np.int32)
    half = np.empty((images, min(half_list, length)), np.int32)
    half_sizes = np.empty(images, np.int32)
    map_rows(lambda a, b: _reciprocal_sets(ranks, full, full_sizes, half, half_sizes, a, b), images)
    return assemble(
        map_rows(
            lambda a, b: _expand_rows(features, ranks, similarities, full, full_sizes, half, half_sizes, a, b), images
        ),
        images,
    )


def _query_expansion(weights: csr_array, nearest: np.ndarray) -> csr_array:
    """Row i becomes the mean of the rows of its nearest images (N, k2) int32."""
    images = len(nearest)
    indptr, indices, data = weights.indptr, weights.indices, weights.data
    return assemble(map_rows(lambda a, b: _average_rows(nearest, indptr, indices, data, a, b), images), images)


@njit(cache=True, nogil=True)
def _position(ranks: np.ndarray, row: int, image: int, length: int) -> int:
    """Where ``image`` stands among the first ``length`` neighbours of ``row``; -1 if it does not."""
    found = -1
    for position in range(length):
        if ranks[row, position] == image:
            found = position
    return found


@njit(cache=True, nogil=True)
def _reciprocal_sets(
    ranks: np.ndarray,
    full: np.ndarray,
    full_sizes: np.ndarray,
    half: np.ndarray,
    half_sizes: np.ndarray,
    start: int,
    stop: int,
) -> None:
    """Fill the sets {j in list(i) : i in list(j)} over whole lists and over the first ``half.shape[1]`` entries."""
    length = ranks.shape[1]
    for i in range(start, stop):
        full_size = half_size = 0
        for rank in range(length):
            j = ranks[i, rank]
            position = _position(ranks, j, i, length)
            if position < 0:
                continue
            full[i, full_size] = j
            full_size += 1
            if rank < half.shape[1] and position < half.shape[1]:
                half[i, half_size] = j
                half_size += 1
        full_sizes[i] = full_size
        half_sizes[i] = half_size


@njit(cache=True, nogil=True)
def _expanded_set(
    i: int,
    full: np.ndarray,
    full_sizes: np.ndarray,
    half: np.ndarray,
    half_sizes: np.ndarray,
    stamps: np.ndarray,
    members: np.ndarray,
) -> int:
    """Write the expanded reciprocal set of i to ``members``, sorted; returns its size.

    A member's half set joins when more than 2/3 of it lies in the reciprocal set of i. ``stamps[x]`` is 2i + 1
    for x in the reciprocal set and 2i for x that joined; it never has to be cleared.
    """
    for a in range(full_sizes[i]):
        members[a] = full[i, a]
        stamps[full[i, a]] = 2 * i + 1
    size = full_sizes[i]
    for a in range(full_sizes[i]):
        candidate = full[i, a]
        common = 0
        for b in range(half_sizes[candidate]):
            common += stamps[half[candidate, b]] == 2 * i + 1
        if 3 * common <= 2 * half_sizes[candidate]:
            continue
        for b in range(half_sizes[candidate]):
            x = half[candidate, b]
            if stamps[x] < 2 * i:
                stamps[x] = 2 * i
                members[size] = x
                size += 1
    members[:size].sort()
    return size


@njit(cache=True, nogil=True, fastmath=REASSOCIATE)
def _soften(similarities: np.ndarray) -> None:
    """Softmax of minus the squared Euclidean distance 2 - 2 s, in place."""
    largest = similarities.max()
    total = np.float32(0)
    for a in range(similarities.shape[0]):
        similarities[a] = np.exp(2 * (similarities[a] - largest))
        total += similarities[a]
    similarities /= total


@njit(cache=True, nogil=True)
def _expand_rows(
    features: np.ndarray,
    ranks: np.ndarray,
    similarities: np.ndarray,
    full: np.ndarray,
    full_sizes: np.ndarray,
    half: np.ndarray,
    half_sizes: np.ndarray,
    start: int,
    stop: int,
) -> Entries:
    """Rows start..stop of the weights: (sizes, columns, values)."""
    length = ranks.shape[1]
    stamps = np.full(ranks.shape[0], -1, np.int64)
    members = np.empty(length * (half.shape[1] + 1), np.int32)
    sizes = np.empty(stop - start, np.int64)
    columns = np.empty((stop - start) * length * 2, np.int32)
    values = np.empty(columns.shape[0], np.float32)
    used = 0
    for i in range(start, stop):
        size = _expanded_set(i, full, full_sizes, half, half_sizes, stamps, members)
        sizes[i - start] = size
        columns, values = grown(columns, used + size), grown(values, used + size)
        for a in range(size):
            x = members[a]
            columns[used + a] = x
            rank = _position(ranks, i, x, length)
            if rank >= 0:
                values[used + a] = similarities[i, rank]
                continue
            rank = _position(ranks, x, i, length)
            values[used + a] = similarities[x, rank] if rank >= 0 else dot(features[i], features[x])
        if size:
            _soften(values[used : used + size])
        used += size
    return sizes, columns[:used].copy(), values[:used].copy()


@njit(cache=True, nogil=True)
def _average_rows(
    nearest: np.ndarray, indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, start: int, stop: int
) -> Entries:
    """Rows start..stop of the query expansion: the mean of the rows of the nearest images."""
    sums = np.zeros(indptr.shape[0] - 1, np.float32)
    members = np.empty(1024, np.int32)
    sizes = np.empty(stop - start, np.int64)
    columns = np.empty((stop - start) * 64, np.int32)
    values = np.empty(columns.shape[0], np.float32)
    used = 0
    for i in range(start, stop):
        size = 0
        for a in range(nearest.shape[1]):
            j = nearest[i, a]
            members = grown(members, size + indptr[j + 1] - indptr[j])
            for entry in range(indptr[j], indptr[j + 1]):
                column = indices[entry]
                if sums[column] == 0:
                    members[size] = column
                    size += 1
                sums[column] += data[entry]
        members[:size].sort()
        sizes[i - start] = size
        columns, values = grown(columns, used + size), grown(values, used + size)
        for a in range(size):
            columns[used] = members[a]
            values[used] = sums[members[a]] / nearest.shape[1]
            sums[members[a]] = 0
            used += 1
    return sizes, columns[:used].copy(), values[:used].copy()
