"""Centred features whose products estimate all similarities, in bfloat16 where the CPU multiplies that fast."""

from __future__ import annotations

import functools
import time

import numpy as np
import torch
from torch import Tensor

from fastreid_ice.clustering.numba_kernels.common import REASSOCIATE
from fastreid_ice.compiled import njit
from fastreid_ice.parallel import map_rows


def estimators(features: Tensor) -> tuple[Tensor, np.ndarray, np.ndarray]:
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
    estimating = torch.from_numpy(rounded).view(torch.bfloat16) if halved else torch.from_numpy(centred)
    return estimating, offsets, slack.astype(np.float32)


@njit(cache=True, nogil=True, fastmath=REASSOCIATE)
def _centre(
    features: np.ndarray,
    mean: np.ndarray,
    centred: np.ndarray,
    rounded: np.ndarray,
    offsets: np.ndarray,
    norms: np.ndarray,
    errors: np.ndarray,
    start: int,
    stop: int,
) -> None:
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
