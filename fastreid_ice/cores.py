"""How many processor cores this process may use. Needs the standard library only."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Cores that this process may use: those it may run on, or fewer where its container has less time (cgroups 1, 2).

    ``os.cpu_count`` counts the machine's. More threads than cores wait for each other in a busy loop.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _quota() -> float | None:
    """Cores' worth of time that the container has; None without a limit."""
    try:
        if (_CGROUPS / "cpu.max").is_file():
            quota, period = (_CGROUPS / "cpu.max").read_text().split()
        else:
            quota = (_CGROUPS / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (_CGROUPS / "cpu" / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # no such files; "max"
        return None
