"""numba's ``njit``, with a place for what it compiles also where neither installation nor home can be written."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

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
        numba.config.CACHE_DIR = str(_own_folder())  # type: ignore[attr-defined]


def _own_folder() -> Path:
    """A folder that only this user can write, since what is read from it is run; a new one if another has its name."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"fastreid_ice_numba_{user}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != user or found.st_mode & 0o022:
        return Path(tempfile.mkdtemp(prefix="fastreid_ice_numba_"))
    return folder


_find_cache()
