"""What a clustering costs: the seconds of its stages, and the memory of the process after each."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator

import torch

if sys.platform != "win32":
    import resource

logger = logging.getLogger(__name__)


class Costs:
    """The record of one clustering that a method writes to.

    Attributes:
        seconds: wall time per stage.
        process_peak_mb: MiB per stage, see :func:`process_peak_mb`.
        knn_recall: share of the true neighbours that an approximate search found on a sample; None if none ran.

    Args:
        device: where the features are; its memory is what counts.

    Example:
        >>> costs = Costs(torch.device("cpu"))
        >>> with costs.stage("search"):
        ...     pass
        >>> list(costs.seconds)
        ['search']
    """

    def __init__(self, device: torch.device):
        self._device = device
        self.seconds: dict[str, float] = {}
        self.process_peak_mb: dict[str, float] = {}
        self.knn_recall: float | None = None

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Record what the body of a ``with`` statement takes under a name; added up if there are several."""
        start = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        seconds = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        peak = process_peak_mb(self._device)
        if peak is not None:
            self.process_peak_mb[name] = peak
        logger.debug("Clustering, %s: %.3f s, peak of the process so far %s MiB.", name, seconds, peak)


def process_peak_mb(device: torch.device) -> float | None:
    """The most memory that the whole process has used since its start, in MiB.

    What a stage needs shows only where it raises this mark. For a CUDA device it is the memory that torch allocated
    there, else the resident memory; None where the system does not tell (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, KiB on Linux
