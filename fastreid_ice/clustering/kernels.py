"""Inner products in one fixed order, shared by the compiled stages."""

import numpy as np
from numba import njit

# Sums may be reordered (that is what makes them vector code) but NaN and infinities keep their meaning.
REASSOCIATE = {"reassoc", "contract", "nsz"}


@njit(cache=True, nogil=True, fastmath=REASSOCIATE)
def dot(a, b):
    """Inner product of two float32 vectors, summed in float64 and rounded once: equal pairs, equal bits."""
    total = 0.0
    for d in range(a.shape[0]):
        total += np.float64(a[d]) * np.float64(b[d])
    return np.float32(total)
