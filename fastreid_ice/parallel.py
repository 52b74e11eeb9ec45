"""Run compiled kernels on chunks of rows, in threads.

The kernels release the interpreter lock, so plain threads suffice. Unlike an OpenMP region inside the kernels
they leave nothing behind that a later fork (data loader workers) or torch's own thread pool could trip over.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def row_chunks(rows: int, threads: int, largest: int = 65536) -> list[tuple[int, int]]:
    """Cut range(rows) into (start, stop) pairs: several per thread for balance, none above ``largest`` rows.

    Example:
        >>> row_chunks(10, threads=1, largest=4)
        [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]
    """
    size = max(1, min(largest, -(-rows // (8 * threads))))
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


def map_rows(kernel: Callable[[int, int], T], rows: int, largest: int = 65536) -> list[T]:
    """Call ``kernel(start, stop)`` for all chunks of rows; results in the order of the rows."""
    threads = torch.get_num_threads()
    chunks = row_chunks(rows, threads, largest)
    if threads == 1 or len(chunks) == 1:
        return [kernel(start, stop) for start, stop in chunks]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda chunk: kernel(*chunk), chunks))
