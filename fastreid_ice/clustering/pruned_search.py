"""Exact neighbours of all images on a CPU, at half the products and those in half precision.

The centred features c = x - mean, rounded to bfloat16 where the CPU multiplies that fast, give an estimate of every
similarity together with a proven bound on its error. Estimates within the bound of an image's k-th best are its
candidates; only these are computed exactly. The matrix of estimates is symmetric: each block is made once and
scanned for its rows and for its columns.
"""

import functools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit

from .kernels import GRID, REASSOCIATE, dot, dot_four
from .parallel import map_rows

BLOCK = 1024

# Values compared with a threshold at once; most strips hold none that reaches it.
STRIP = 64


class _Candidates:
    """Per image: the estimates that may be among its k best, and the threshold below which none can be."""

    def __init__(self, images, length):
        capacity = 6 * length
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
    """(N, D) -> centred z (N, D), offsets (N,), slack (N,) with
    |x_i.x_j - (z_i.z_j + offset_j + constant of i)| <= slack_i for all j, z.z in the precision of the product."""
    images, dimensions = features.shape
    vectors, mean = features.numpy(), features.mean(dim=0).numpy()
    halved = bfloat16_is_faster()
    centred = np.empty((0 if halved else images, dimensions), np.float32)
    rounded = np.empty((images if halved else 0, dimensions), np.uint16)
    offsets, norms, errors = (np.empty(images, np.float32) for _ in range(3))
    map_rows(lambda a, b: _centre(vectors, mean, centred, rounded, offsets, norms, errors, a, b), images)
    norms += errors  # of z -> at least that of x - mean
    summing = dimensions * 2.0**-24  # worst case of a float32 sum of products, for vectors of unit length
    rounding = summing + (2.0**-9 if halved else 0.0)  # of the result
    slack = errors * norms.max() + norms * errors.max() + rounding * norms * norms.max()
    slack += summing * np.linalg.norm(mean) + 1e-6  # of the offsets and of the centring
    centred = torch.from_numpy(rounded).view(torch.bfloat16) if halved else torch.from_numpy(centred)
    return centred, offsets, slack.astype(np.float32)


@njit(cache=True, nogil=True, fastmath=REASSOCIATE)
def _centre(features, mean, centred, rounded, offsets, norms, errors, start, stop):
    """Write z = x - mean as float32 or as bfloat16 bits, <x, mean>, and the norms of z and of its rounding error."""
    halved = rounded.shape[0] > 0
    scratch = np.empty(features.shape[1], np.float32)
    bits = scratch.view(np.uint32)
    for i in range(start, stop):
        row = features[i]
        offset = norm = error = np.float32(0)
        for d in range(row.shape[0]):
            offset += row[d] * mean[d]
            scratch[d] = row[d] - mean[d]
        if halved:
            target = rounded[i]
            for d in range(row.shape[0]):
                exact = scratch[d]
                bits[d] = (bits[d] + np.uint32(0x7FFF) + ((bits[d] >> np.uint32(16)) & np.uint32(1))) & np.uint32(
                    0xFFFF0000
                )
                error += (exact - scratch[d]) ** 2
                target[d] = bits[d] >> np.uint32(16)
        else:
            centred[i] = scratch
        for d in range(row.shape[0]):
            norm += scratch[d] ** 2
        offsets[i], norms[i], errors[i] = offset, np.sqrt(norm) * (1 + 1e-4), np.sqrt(error) * (1 + 1e-4)


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
    """Fill ``found`` from all blocks, a block per thread at a time.

    Each thread makes its block alone (a product shared by the threads would wait for the slowest at every block) and
    holds the locks of the images whose candidates it adds to.
    """
    threads = torch.get_num_threads()
    symmetric = rows == (0, len(centred))
    locks = [threading.Lock() for _ in range(0, len(centred), BLOCK)]
    buffers = threading.local()

    def scan(pair):
        i, j = pair
        block = _product(centred[i : min(i + BLOCK, rows[1])], centred[j : j + BLOCK], buffers)
        with locks[i // BLOCK]:
            _scan_rows(block, i, j, offsets, slack, *found.arrays(), length)
        if symmetric and i != j:
            with locks[j // BLOCK]:
                _scan_columns(block, i, j, offsets, slack, *found.arrays(), length)

    pairs = _block_pairs(len(centred), rows)
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(scan, pairs))
    finally:
        torch.set_num_threads(threads)  # a thread's own setting, but for MKL's, which is global


def _product(left, right, buffers):
    """(B, D), (C, D) -> (B, C) float32 array of the inner products, in the thread's own buffers."""
    if not hasattr(buffers, "product"):
        buffers.product = torch.empty(BLOCK * BLOCK, dtype=left.dtype)
        buffers.estimates = torch.empty(BLOCK * BLOCK)
    shape, size = (len(left), len(right)), len(left) * len(right)
    product = torch.mm(left, right.t(), out=buffers.product[:size].view(shape))
    return buffers.estimates[:size].view(shape).copy_(product).numpy()


@njit(cache=True, nogil=True)
def _any_reaches(values, offsets, threshold):
    """Whether a full strip holds a value + offset >= threshold; the fixed length makes it vector code."""
    hit = np.int32(0)
    for a in range(STRIP):
        hit |= np.int32(values[a] + offsets[a] >= threshold)
    return hit != 0


@njit(cache=True, nogil=True)
def _reaches_any(values, offset, thresholds):
    """Whether a full strip holds a value + offset >= its own threshold."""
    hit = np.int32(0)
    for a in range(STRIP):
        hit |= np.int32(values[a] + offset >= thresholds[a])
    return hit != 0


@njit(cache=True, nogil=True)
def _group_maxima(values, offsets, maxima):
    """Maxima of interleaved groups of values: at least k values reach the k-th largest of them."""
    groups = maxima.shape[0]
    maxima[:] = -np.inf
    for first in range(0, values.shape[0] - groups + 1, groups):
        part, shift = values[first : first + groups], offsets[first : first + groups]
        for group in range(groups):
            value = part[group] + shift[group]
            maxima[group] = max(maxima[group], value)


@njit(cache=True, nogil=True)
def _scan_rows(block, i, j, offsets, slack, ids, estimates, counts, thresholds, crowded, length):
    """Offer the columns of a block to the images of its rows."""
    width = block.shape[1]
    maxima = np.empty(4 * length, np.float32)
    for row in range(block.shape[0]):
        image = i + row
        if thresholds[image] == -np.inf and width >= maxima.shape[0]:
            _group_maxima(block[row], offsets[j : j + width], maxima)
            maxima.sort()
            thresholds[image] = maxima[maxima.shape[0] - length] - 2 * slack[image]
        for first in range(0, width, STRIP):
            last = min(first + STRIP, width)
            full = last - first == STRIP
            if full and not _any_reaches(block[row, first:last], offsets[j + first : j + last], thresholds[image]):
                continue
            threshold = thresholds[image]
            for column in range(first, last):
                value = block[row, column] + offsets[j + column]
                if value >= threshold:
                    _offer(image, j + column, value, slack, ids, estimates, counts, thresholds, crowded, length)
                    threshold = thresholds[image]


@njit(cache=True, nogil=True)
def _scan_columns(block, i, j, offsets, slack, ids, estimates, counts, thresholds, crowded, length):
    """Offer the rows of a block to the images of its columns."""
    width = block.shape[1]
    for first in range(0, width, STRIP):
        last = min(first + STRIP, width)
        for row in range(block.shape[0]):
            offset = offsets[i + row]
            full = last - first == STRIP
            if full and not _reaches_any(block[row, first:last], offset, thresholds[j + first : j + last]):
                continue
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
    if counts[image] > ids.shape[1] - length:
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
    exact = np.empty(ids.shape[1], np.float64)
    for image in range(start, stop):
        if crowded[image]:
            continue
        _compact(image, slack, ids, estimates, counts, thresholds, length)
        count = counts[image]
        candidates = ids[image, :count]
        candidates.sort()
        for a in range(0, count - 3, 4):
            dot_four(features, image, candidates[a : a + 4], exact[a : a + 4])
        for a in range(count - count % 4, count):
            exact[a] = dot(features[image], features[candidates[a]])
        order = np.argsort(-np.rint(exact[:count] * GRID), kind="mergesort")
        for a in range(length):
            ranks[image - origin, a] = candidates[order[a]]
            similarities[image - origin, a] = np.rint(exact[order[a]] * GRID) / GRID
