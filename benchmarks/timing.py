"""Alternating runs of two things, so that other work on the machine meets both."""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np
import torch

Part = Callable[[argparse.Namespace], None]


class Seconds(NamedTuple):
    wall: float
    cpu: float


def resident(field: str = "VmRSS") -> float:
    """Memory of this process in MiB, nan where the system is not Linux; field "VmHWM" is its peak."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:")), float("nan"))


def timed(function: Callable[[], object]) -> Seconds:
    """Of a run; what it has started on a GPU is waited for."""
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    wait()
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    wait()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def alternate(
    first: Callable[[], Any],
    second: Callable[[], Any],
    pairs: int,
    measure: Callable[[Callable[[], Any]], Seconds] = timed,
) -> np.ndarray:
    """Seconds (pairs, 2, 2): of each pair, wall and cpu of both; the order changes from pair to pair."""
    first(), second()  # compiled kernels, pages
    rows = []
    for pair in range(pairs):
        both = (first, second) if pair % 2 == 0 else (second, first)
        measured = [measure(function) for function in both]
        rows.append(measured if pair % 2 == 0 else measured[::-1])
    return np.array(rows)


def ratios(seconds: np.ndarray) -> str:
    """Median of second / first with its quartiles, of wall and of cpu time."""
    quotients = seconds[:, 1] / seconds[:, 0]
    low, middle, high = np.percentile(quotients, [25, 50, 75], axis=0)
    return " | ".join(f"{m:.3f} ({a:.3f} to {b:.3f})" for a, m, b in zip(low, middle, high))


def run_parts(parts: list[Part], args: argparse.Namespace) -> None:
    """Each part in a process of its own, with ``args.threads`` threads: what one keeps in memory meets no other."""
    for part in parts:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(_run_part, part, args).result()


def _run_part(part: Part, args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    part(args)
