"""numba's ``njit``, with a place for what it compiles also where neither installation nor home can be written."""

from __future__ import annotations

import os
import tempfile

import numba
from numba import njit

__all__ = ["njit"]


def _probe() -> None:
    """What numba is asked to cache; never called."""


def _find_cache() -> None:
    """Point numba's cache to a folder of this user's among the temporary ones where numba finds no other.

    As in a container that runs as a user without a home: numba would refuse every compiled function.
    ``NUMBA_CACHE_DIR`` names another folder.
    """
    try:
        njit(cache=True)(_probe)
    except RuntimeError:  # no locator available
        user = os.getuid() if hasattr(os, "getuid") else "user"
        folder = os.path.join(tempfile.gettempdir(), f"fastreid_ice_numba_{user}")
        numba.config.CACHE_DIR = folder  # type: ignore[attr-defined]


_find_cache()
