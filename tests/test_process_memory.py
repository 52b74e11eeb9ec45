"""Freed memory that stays with the process."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import fastreid_ice
from fastreid_ice.engine import process_memory

FILE = Path(fastreid_ice.__file__).parent / "engine" / "process_memory.py"
# Takes, fills and frees 48 MiB, and prints what was returned and how often the system gave a page.
SCRIPT = """
import ctypes, resource, runpy, sys
returned = runpy.run_path(sys.argv[1])["keep_freed_memory"]() if len(sys.argv) > 1 else None
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
for turn in range(21):
    if turn == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(48 << 20)
    libc.memset(block, 1, 48 << 20)
    libc.free(block)
print(returned, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*argv, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *argv], env=clean | environment, check=True, capture_output=True, text=True
    )
    returned, count = done.stdout.split()
    return returned, int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_pages_are_not_asked_for_again():
    _, plain = faults()
    returned, kept = faults(str(FILE))
    assert returned == "True" and plain > 20 and kept < plain / 10


class Mallopt:
    """glibc's, which accepts a threshold up to ``largest``."""

    def __init__(self, largest):
        self.largest, self.calls = largest, []

    def __call__(self, option, value):
        self.calls.append((option, value))
        return int(option != -3 or value <= self.largest)


@pytest.mark.parametrize(
    ("largest", "told", "kept"),
    [(1 << 40, True, [128 << 20]), (32 << 20, True, [128 << 20, 32 << 20]), (0, False, [128 << 20, 32 << 20])],
)
def test_an_older_glibc_takes_less_or_stays_as_it_is(monkeypatch, largest, told, kept):
    """The trim threshold alone would switch off that glibc adapts the other one by itself."""
    mallopt = Mallopt(largest)
    monkeypatch.setattr(process_memory.ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    monkeypatch.setattr(process_memory.platform, "libc_ver", lambda: ("glibc", "2.31"))
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    assert process_memory.keep_freed_memory() is told
    assert mallopt.calls == [(-3, value) for value in kept] + [(-1, 1 << 30)] * told


def test_what_the_environment_says_stays():
    assert faults(str(FILE), MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"
