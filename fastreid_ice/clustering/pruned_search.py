"""Exact neighbours of all images on a CPU, at half the products and those in half precision.

The centred features c = x - mean, rounded to bfloat16 where the CPU multiplies that fast, give an estimate of every
similarity together with a proven bound on its error. Estimates within the bound of an image's k-th best are its
candidates; only these are computed exactly. The matrix of estimates is symmetric: each block is made once and
scanned for its rows and for its columns.
"""

import functools
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit

from .kernels import GRID, dot
from .parallel import map_rows

BLOCK = 1024
# Columns tested at once for a value above the threshold; most strips have none.
STRIP = 64


class _Candidates:
    """Per image: the estimates that may be among its k best, and the threshold below which none can be."""

    def __init__(self, images, length):
        capacity = 4 * length + STRIP
        self.ids = np.empty((images, capacity), np.int32)
        self.estimates = np.empty((images, capacity), np.float32)
        self.counts = np.zeros(images, np.int32)
        self.thresholds = np.full(images, -np.inf, np.float32)
        self.crowded = np.zeros(images, np.bool_)

    def arrays(self):
        return self.ids, self.estimates, self.counts, self.thresholds, self.crowded


def pruned_neighbors(features, length, rows):
    """Search rows (start, stop): similarities (n, length) float32, ranks (n, length) int32, crowded (n,) bool.

    Crowded rows have too many near-equal candidates (collapsed features); their result is not filled in.
    """
    start, stop = rows
    centred, offsets, slack = _estimators(features)
    found = _Candidates(len(features), length)
    _scan_blocks(centred, offsets, slack, found, length, rows)
    similarities = np.empty((stop - start, length), np.float32)
    ranks = np.empty((stop - start, length), np.int32)
    vectors = features.numpy()
    map_rows(
        lambda a, b: _verify(vectors, *found.arrays(), slack, similarities, ranks, start, start + a, start + b),
        stop - start,
    )
    return similarities, ranks, found.crowded[start:stop]


def _estimators(features):
    """(N, D) -> centred (N, D), offsets (N,), slack (N,) with
    |x_i.x_j - (z_i.z_j + offset_j + constant of i)| <= slack_i for all j, z.z in the precision of the product."""
    mean = features.mean(dim=0)
    offsets = features @ mean
    centred = features - mean
    norms = torch.linalg.vector_norm(centred, dim=1)
    rounding = features.shape[1] * 2.0**-24  # of the accumulation, worst case
    errors = torch.zeros_like(norms)
    if bfloat16_is_faster():
        exact, centred = centred, centred.bfloat16()
        errors = torch.linalg.vector_norm(exact.sub_(centred), dim=1)
        norms = norms + errors
        rounding += 2.0**-8  # of the result
    largest, worst = norms.max(), errors.max()
    slack = errors * largest + norms * worst + rounding * norms * largest + 1e-6
    return centred, offsets.numpy(), slack.numpy()


@functools.cache
def bfloat16_is_faster() -> bool:
    """Whether this CPU multiplies bfloat16 matrices at least 1.5 times as fast as float32 ones; measured once."""
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(512, 512, dtype=dtype)
        product = torch.empty_like(matrix)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            torch.mm(matrix, matrix.t(), out=product)
            times.append(time.perf_counter() - start)
        seconds.append(min(times))
    return seconds[1] * 1.5 < seconds[0]


def _block_pairs(images, rows):
    """Pairs of block starts (I, J): the diagonal first, where thresholds begin to form; only I <= J if rows is all."""
    firsts = range(rows[0], rows[1], BLOCK)
    if rows == (0, images):
        pairs = [(i, j) for i in firsts for j in range(i, images, BLOCK)]
        return sorted(pairs, key=lambda pair: pair[1] - pair[0])
    return [(i, j) for i in firsts for j in range(0, images, BLOCK)]


def _scan_blocks(centred, offsets, slack, found, length, rows):
    images = len(centred)
    symmetric = rows == (0, images)
    product = torch.empty(BLOCK * BLOCK, dtype=centred.dtype)
    estimates = torch.empty(BLOCK * BLOCK)
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        for i, j in _block_pairs(images, rows):
            left, right = centred[i : min(i + BLOCK, rows[1])], centred[j : j + BLOCK]
            shape = len(left), len(right)
            block = torch.mm(left, right.t(), out=product[: shape[0] * shape[1]].view(shape))
            block = estimates[: block.numel()].view(shape).copy_(block).numpy()
            columns = symmetric and i != j

            def scan(part, block=block, i=i, j=j, columns=columns):
                _scan_rows(block, i, j, offsets, slack, *found.arrays(), length, part, threads)
                if columns:
                    _scan_columns(block, i, j, offsets, slack, *found.arrays(), length, part, threads)

            list(pool.map(scan, range(threads)))


@njit(cache=True, nogil=True)
def _part(size, part, parts):
    """Bounds of one of ``parts`` slices of range(size), cut at multiples of STRIP."""
    step = -(-size // (parts * STRIP)) * STRIP
    return min(part * step, size), min((part + 1) * step, size)


@njit(cache=True, nogil=True)
def _scan_rows(block, i, j, offsets, slack, ids, estimates, counts, thresholds, crowded, length, part, parts):
    """Offer the columns of a block to the images of its rows."""
    start, stop = _part(block.shape[0], part, parts)
    width = block.shape[1]
    for row in range(start, stop):
        image = i + row
        for first in range(0, width, STRIP):
            last = min(first + STRIP, width)
            threshold = thresholds[image]
            hit = False
            for column in range(first, last):
                hit |= block[row, column] + offsets[j + column] >= threshold
            if hit:
                for column in range(first, last):
                    value = block[row, column] + offsets[j + column]
                    if value >= thresholds[image]:
                        _offer(image, j + column, value, slack, ids, estimates, counts, thresholds, crowded, length)


@njit(cache=True, nogil=True)
def _scan_columns(block, i, j, offsets, slack, ids, estimates, counts, thresholds, crowded, length, part, parts):
    """Offer the rows of a block to the images of its columns."""
    start, stop = _part(block.shape[1], part, parts)
    for first in range(start, stop, STRIP):
        last = min(first + STRIP, stop)
        for row in range(block.shape[0]):
            offset = offsets[i + row]
            hit = False
            for column in range(first, last):
                hit |= block[row, column] + offset >= thresholds[j + column]
            if hit:
                for column in range(first, last):
                    image, value = j + column, block[row, column] + offset
                    if value >= thresholds[image]:
                        _offer(image, i + row, value, slack, ids, estimates, counts, thresholds, crowded, length)


@njit(cache=True, nogil=True)
def _offer(image, other, value, slack, ids, estimates, counts, thresholds, crowded, length):
    """Add a candidate; when the buffer is full, drop those that can no longer be among the k best."""
    count = counts[image]
    ids[image, count] = other
    estimates[image, count] = value
    counts[image] = count + 1
    if count + 1 < ids.shape[1]:
        return
    _compact(image, slack, ids, estimates, counts, thresholds, length)
    if counts[image] > ids.shape[1] - STRIP:
        crowded[image] = True
        thresholds[image] = np.inf


@njit(cache=True, nogil=True)
def _compact(image, slack, ids, estimates, counts, thresholds, length):
    """Raise the threshold to the k-th best estimate less both errors, and keep what reaches it."""
    count = counts[image]
    kept = 0
    threshold = np.partition(estimates[image, :count], count - length)[count - length] - 2 * slack[image]
    for a in range(count):
        if estimates[image, a] >= threshold:
            ids[image, kept] = ids[image, a]
            estimates[image, kept] = estimates[image, a]
            kept += 1
    counts[image] = kept
    thresholds[image] = threshold


@njit(cache=True, nogil=True)
def _verify(features, ids, estimates, counts, thresholds, crowded, slack, similarities, ranks, origin, start, stop):
    """Compute the candidates exactly and write the best: by similarity, then index."""
    length = ranks.shape[1]
    for image in range(start, stop):
        if crowded[image]:
            continue
        _compact(image, slack, ids, estimates, counts, thresholds, length)
        count = counts[image]
        candidates = np.sort(ids[image, :count])
        exact = np.empty(count, np.float64)
        for a in range(count):
            exact[a] = -np.rint(dot(features[image], features[candidates[a]]) * GRID)
        order = np.argsort(exact, kind="mergesort")
        for a in range(length):
            ranks[image - origin, a] = candidates[order[a]]
            similarities[image - origin, a] = -exact[order[a]] / GRID
