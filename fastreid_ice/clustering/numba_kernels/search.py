"""Exact neighbours of all images on a CPU, at half the products and those in half precision.

The centred features c = x - mean, rounded to bfloat16 where the CPU multiplies that fast, give an estimate of every
similarity together with a proven bound on its error. Estimates within the bound of an image's k-th best are its
candidates; only these are computed exactly. The matrix of estimates is symmetric: each block is made once and
scanned for its rows and for its columns.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastreid_ice.clustering.definitions import GRID
from fastreid_ice.clustering.float64_search import search_in_float64
from fastreid_ice.clustering.numba_kernels.common import dot, dot_four
from fastreid_ice.clustering.numba_kernels.estimates import estimators
from fastreid_ice.compiled import njit
from fastreid_ice.parallel import map_rows

BLOCK = 1024

# Values compared with a threshold at once; most strips hold none that reaches it.
STRIP = 64


class _Candidates(NamedTuple):
    """Per image: the estimates that may be among its k best, and the threshold below which none can be.

    Attributes:
        ids: (N, C) int32, the images offered, the first ``counts`` of a row filled.
        estimates: (N, C) float32, of their similarity.
        counts: (N,) int32.
        thresholds: (N,) float32; what is lower is not offered.
        crowded: (N,) bool, images with too many near-equal candidates.
        slack: (N,) float32, bound on the error of an image's estimates.
    """

    ids: np.ndarray
    estimates: np.ndarray
    counts: np.ndarray
    thresholds: np.ndarray
    crowded: np.ndarray
    slack: np.ndarray


def _no_candidates(slack: np.ndarray, length: int) -> _Candidates:
    images, capacity = len(slack), 6 * length
    return _Candidates(
        ids=np.empty((images, capacity), np.int32),
        estimates=np.empty((images, capacity), np.float32),
        counts=np.zeros(images, np.int32),
        thresholds=np.full(images, -np.inf, np.float32),
        crowded=np.zeros(images, np.bool_),
        slack=slack,
    )


def nearest_neighbors(
    features: Tensor, length: int, rows: tuple[int, int], memory_budget_mb: int, allow_tf32: bool
) -> tuple[Tensor, Tensor]:
    """Lists of ``length`` <= N entries of rows (start, stop); see :func:`fastreid_ice.clustering.nearest_neighbors`.

    Crowded images (collapsed features) are searched over whole rows. There is no TF32 on a CPU.
    """
    vectors = features.cpu()
    found = _pruned_search(vectors, length, rows)
    similarities, ranks = torch.from_numpy(found[0]), torch.from_numpy(found[1]).long()
    crowded = torch.from_numpy(found[2]).nonzero().flatten()
    again = search_in_float64(vectors, crowded + rows[0], length, memory_budget_mb)
    similarities[crowded], ranks[crowded] = again
    return similarities.to(features.device), ranks.to(features.device)


def _pruned_search(features: Tensor, length: int, rows: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Search rows (start, stop): similarities (n, length) float32, ranks (n, length) int32, crowded (n,) bool.

    The result of crowded rows is not filled in.
    """
    start, stop = rows
    centred, offsets, slack = estimators(features)
    found = _no_candidates(slack, length)
    _scan_blocks(centred, offsets, found, length, rows)
    similarities = np.empty((stop - start, length), np.float32)
    ranks = np.empty((stop - start, length), np.int32)
    vectors = features.numpy()
    map_rows(lambda a, b: _verify(vectors, found, similarities, ranks, start, start + a, start + b), stop - start)
    return similarities, ranks, found.crowded[start:stop]


def _block_pairs(images: int, rows: tuple[int, int]) -> list[tuple[int, int]]:
    """Pairs of block starts (I, J): the diagonal first, where thresholds begin to form; only I <= J if rows is all."""
    firsts = range(rows[0], rows[1], BLOCK)
    if rows == (0, images):
        pairs = [(i, j) for i in firsts for j in range(i, images, BLOCK)]
        return sorted(pairs, key=lambda pair: pair[1] - pair[0])
    return [(i, j) for i in firsts for j in range(0, images, BLOCK)]


def _scan_blocks(centred: Tensor, offsets: np.ndarray, found: _Candidates, length: int, rows: tuple[int, int]) -> None:
    """Fill ``found`` from all blocks, a block per thread at a time.

    Each thread makes its block alone (a product shared by the threads would wait for the slowest at every block) and
    holds the locks of the images whose candidates it adds to.
    """
    threads = torch.get_num_threads()
    symmetric = rows == (0, len(centred))
    locks = [threading.Lock() for _ in range(0, len(centred), BLOCK)]
    buffers = threading.local()

    def scan(pair: tuple[int, int]) -> None:
        i, j = pair
        block = _product(centred[i : min(i + BLOCK, rows[1])], centred[j : j + BLOCK], buffers)
        with locks[i // BLOCK]:
            _scan_rows(block, i, j, offsets, found, length)
        if symmetric and i != j:
            with locks[j // BLOCK]:
                _scan_columns(block, i, j, offsets, found, length)

    pairs = _block_pairs(len(centred), rows)
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(scan, pairs))
    finally:
        torch.set_num_threads(threads)  # a thread's own setting, but for MKL's, which is global


def _product(left: Tensor, right: Tensor, buffers: threading.local) -> np.ndarray:
    """(B, D), (C, D) -> (B, C) float32 array of the inner products, in the thread's own buffers."""
    if not hasattr(buffers, "product"):
        buffers.product = torch.empty(BLOCK * BLOCK, dtype=left.dtype)
        buffers.estimates = torch.empty(BLOCK * BLOCK)
    shape, size = (len(left), len(right)), len(left) * len(right)
    product = torch.mm(left, right.t(), out=buffers.product[:size].view(shape))
    return buffers.estimates[:size].view(shape).copy_(product).numpy()


@njit(cache=True, nogil=True)
def _any_reaches(values: np.ndarray, offsets: np.ndarray, threshold: np.float32) -> bool:
    """Whether a full strip holds a value + offset >= threshold; the fixed length makes it vector code."""
    hit = np.int32(0)
    for a in range(STRIP):
        hit |= np.int32(values[a] + offsets[a] >= threshold)
    return hit != 0


@njit(cache=True, nogil=True)
def _reaches_any(values: np.ndarray, offset: np.float32, thresholds: np.ndarray) -> bool:
    """Whether a full strip holds a value + offset >= its own threshold."""
    hit = np.int32(0)
    for a in range(STRIP):
        hit |= np.int32(values[a] + offset >= thresholds[a])
    return hit != 0


@njit(cache=True, nogil=True)
def _group_maxima(values: np.ndarray, offsets: np.ndarray, maxima: np.ndarray) -> None:
    """Maxima of interleaved groups of values: at least k values reach the k-th largest of them."""
    groups = maxima.shape[0]
    maxima[:] = -np.inf
    for first in range(0, values.shape[0] - groups + 1, groups):
        part, shift = values[first : first + groups], offsets[first : first + groups]
        for group in range(groups):
            value = part[group] + shift[group]
            maxima[group] = max(maxima[group], value)


@njit(cache=True, nogil=True)
def _scan_rows(block: np.ndarray, i: int, j: int, offsets: np.ndarray, found: _Candidates, length: int) -> None:
    """Offer the columns of a block to the images of its rows."""
    width = block.shape[1]
    maxima = np.empty(4 * length, np.float32)
    for row in range(block.shape[0]):
        image = i + row
        if found.thresholds[image] == -np.inf and width >= maxima.shape[0]:
            _group_maxima(block[row], offsets[j : j + width], maxima)
            maxima.sort()
            found.thresholds[image] = maxima[maxima.shape[0] - length] - 2 * found.slack[image]
        for first in range(0, width, STRIP):
            last = min(first + STRIP, width)
            full = last - first == STRIP
            if full and not _any_reaches(
                block[row, first:last], offsets[j + first : j + last], found.thresholds[image]
            ):
                continue
            threshold = found.thresholds[image]
            for column in range(first, last):
                value = block[row, column] + offsets[j + column]
                if value >= threshold:
                    _offer(image, j + column, value, found, length)
                    threshold = found.thresholds[image]


@njit(cache=True, nogil=True)
def _scan_columns(block: np.ndarray, i: int, j: int, offsets: np.ndarray, found: _Candidates, length: int) -> None:
    """Offer the rows of a block to the images of its columns."""
    width = block.shape[1]
    for first in range(0, width, STRIP):
        last = min(first + STRIP, width)
        for row in range(block.shape[0]):
            offset = offsets[i + row]
            full = last - first == STRIP
            if full and not _reaches_any(block[row, first:last], offset, found.thresholds[j + first : j + last]):
                continue
            for column in range(first, last):
                image, value = j + column, block[row, column] + offset
                if value >= found.thresholds[image]:
                    _offer(image, i + row, value, found, length)


@njit(cache=True, nogil=True)
def _offer(image: int, other: int, value: np.float32, found: _Candidates, length: int) -> None:
    """Add a candidate; when the buffer is full, drop those that can no longer be among the k best."""
    count = found.counts[image]
    found.ids[image, count] = other
    found.estimates[image, count] = value
    found.counts[image] = count + 1
    if count + 1 < found.ids.shape[1]:
        return
    _compact(image, found, length)
    if found.counts[image] > found.ids.shape[1] - length:
        found.crowded[image] = True
        found.thresholds[image] = np.inf


@njit(cache=True, nogil=True)
def _compact(image: int, found: _Candidates, length: int) -> None:
    """Raise the threshold to the k-th best estimate less both errors, and keep what reaches it."""
    count = found.counts[image]
    kept = 0
    threshold = np.partition(found.estimates[image, :count], count - length)[count - length] - 2 * found.slack[image]
    for a in range(count):
        if found.estimates[image, a] >= threshold:
            found.ids[image, kept] = found.ids[image, a]
            found.estimates[image, kept] = found.estimates[image, a]
            kept += 1
    found.counts[image] = kept
    found.thresholds[image] = threshold


@njit(cache=True, nogil=True)
def _verify(
    features: np.ndarray,
    found: _Candidates,
    similarities: np.ndarray,
    ranks: np.ndarray,
    origin: int,
    start: int,
    stop: int,
) -> None:
    """Compute the candidates exactly and write the best: by similarity, then index."""
    length = ranks.shape[1]
    exact = np.empty(found.ids.shape[1], np.float64)
    for image in range(start, stop):
        if found.crowded[image]:
            continue
        _compact(image, found, length)
        count = found.counts[image]
        candidates = found.ids[image, :count]
        candidates.sort()
        for a in range(0, count - 3, 4):
            dot_four(features, image, candidates[a : a + 4], exact[a : a + 4])
        for a in range(count - count % 4, count):
            exact[a] = dot(features[image], features[candidates[a]])
        order = np.argsort(-np.rint(exact[:count] * GRID), kind="mergesort")
        for a in range(length):
            ranks[image - origin, a] = candidates[order[a]]
            similarities[image - origin, a] = np.rint(exact[order[a]] * GRID) / GRID
