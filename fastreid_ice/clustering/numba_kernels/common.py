"""What several compiled stages share: inner products in float64, and sparse rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array

from fastreid_ice.compiled import njit

# What a kernel returns of its rows: their sizes, and the columns and values of their entries.
Entries = tuple[np.ndarray, np.ndarray, np.ndarray]

# Sums may be reordered (that is what makes them vector code) but NaN and infinities keep their meaning.
REASSOCIATE = {"reassoc", "contract", "nsz"}


@njit(cache=True, nogil=True, fastmath=REASSOCIATE)
def dot(a: np.ndarray, b: np.ndarray) -> float:
    """Inner product of two float32 vectors, summed in float64."""
    total = 0.0
    for d in range(a.shape[0]):
        total += np.float64(a[d]) * np.float64(b[d])
    return total


@njit(cache=True, nogil=True, fastmath=REASSOCIATE)
def dot_four(features: np.ndarray, image: int, others: np.ndarray, products: np.ndarray) -> None:
    """Inner products of one row with four others at once: four streams keep the memory busy."""
    x = features[image]
    a, b, c, d = features[others[0]], features[others[1]], features[others[2]], features[others[3]]
    total_a = total_b = total_c = total_d = 0.0
    for k in range(x.shape[0]):
        value = np.float64(x[k])
        total_a += value * np.float64(a[k])
        total_b += value * np.float64(b[k])
        total_c += value * np.float64(c[k])
        total_d += value * np.float64(d[k])
    products[0], products[1], products[2], products[3] = total_a, total_b, total_c, total_d


@njit(cache=True, nogil=True)
def grown(array: np.ndarray, needed: int) -> np.ndarray:
    """The array itself, or a copy with room for ``needed`` entries and more to come."""
    if needed <= array.shape[0]:
        return array
    larger = np.empty(max(needed, array.shape[0] + array.shape[0] // 2), array.dtype)
    larger[: array.shape[0]] = array
    return larger


def assemble(parts: Sequence[Entries], images: int) -> csr_array:
    """Join parts in the order of their rows: (N, N) matrix."""
    sizes = np.concatenate([part[0] for part in parts])
    indptr = np.zeros(images + 1, np.int64)
    np.cumsum(sizes, out=indptr[1:])
    indices = np.concatenate([part[1] for part in parts])
    values = np.concatenate([part[2] for part in parts])
    return csr_array((values, indices, indptr), shape=(images, images))
