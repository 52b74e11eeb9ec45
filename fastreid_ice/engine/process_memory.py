"""Memory that a training on the CPU frees and asks for again in every step."""

from __future__ import annotations

import ctypes
import os
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
# Activations of 32 images are smaller than this (ResNet-50 at 256 x 128: 67 MB); what is larger goes back, as before.
# An older glibc refuses more than half of a heap, the second number.
LARGEST_KEPT = (128 << 20, 32 << 20)  # bytes
KEPT = 1 << 30  # bytes, in all


def keep_freed_memory() -> bool:
    """Let glibc keep up to a GiB of what this process frees, instead of giving it back to the system and asking for it.

    A training step frees and takes the same activations over and over. Above 32 MiB, and at the top of the heap, glibc
    returns such memory at once, and the system has to clear each page again: a fifth of the processor time of a step of
    MobileNetV2 or OSNet x0.25 at 128 x 64. Numbers do not change. Processes that this one forks do the same.

    Returns:
        whether glibc was told to. Not with another C library, and not where the environment has tuned it already
        (``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``, ``GLIBC_TUNABLES``).
    """
    tuned = any(name in os.environ for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"))
    if tuned or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # The second alone would do harm: glibc would no longer raise the first by itself, and map each block anew.
    accepted = any(mallopt(_M_MMAP_THRESHOLD, largest) == 1 for largest in LARGEST_KEPT)
    return accepted and mallopt(_M_TRIM_THRESHOLD, KEPT) == 1
