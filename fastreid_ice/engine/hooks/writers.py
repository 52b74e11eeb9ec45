"""fastreid's metric writers, writing what upstream loses."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from typing import BinaryIO

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from fastreid.engine.hooks import PeriodicWriter
from fastreid.utils import events


class _WritesEachScalarOnce:
    """Remember per scalar what was written.

    utils/events.py:105,147 remember one iteration for all scalars, and so lose an evaluation that is filed under an
    iteration whose losses were written already: that of every epoch whose steps are a multiple of 200.
    """

    def _new_scalars(self, window_size: int) -> Iterator[tuple[str, float, int]]:
        written: dict[str, int] = self.__dict__.setdefault("_written", {})
        for name, (value, iteration) in events.get_event_storage().latest_with_smoothing_hint(window_size).items():
            if written.get(name) != iteration:
                written[name] = iteration
                yield name, value, iteration


class JSONWriter(_WritesEachScalarOnce, events.JSONWriter):
    """One JSON object per line and iteration, appended to a file that is open only while it is written.

    Upstream's holds it open from the beginning, and leaves it so when the training never starts.
    """

    def __init__(self, path: str, window_size: int = 20):
        self._path = path
        self._window_size = window_size

    def write(self) -> None:
        by_iteration: dict[int, dict[str, float]] = defaultdict(dict)
        for name, value, iteration in self._new_scalars(self._window_size):
            by_iteration[iteration][name] = value
        with open(self._path, "a+b") as file:
            if file.tell() and not _ends_a_line(file):
                file.write(b"\n")  # a run was killed in the middle of its last line
            for iteration, scalars in sorted(by_iteration.items()):
                line = json.dumps({**scalars, "iteration": iteration}, sort_keys=True)
                file.write(line.encode() + b"\n")

    def close(self) -> None:
        """Nothing is open."""


def _ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


class TensorboardWriter(_WritesEachScalarOnce, events.TensorboardXWriter):
    """Scalars, then upstream's images and histograms."""

    def write(self) -> None:
        for name, value, iteration in self._new_scalars(self._window_size):
            self._writer.add_scalar(name, value, iteration)
        self._last_write = events.get_event_storage().iter  # upstream's loop finds its scalars written
        super().write()


class MetricPrinter(events.CommonMetricPrinter):
    """Print each iteration once.

    Upstream prints a last iteration twice, and divides by zero (utils/events.py:220) when it is among the first three.
    """

    _printed: int | None = None

    def write(self) -> None:
        iteration = events.get_event_storage().iter
        if iteration != self._printed:
            self._printed = iteration
            super().write()


class WriterHook(PeriodicWriter):
    """fastreid's, and before training too: an evaluation of the initial weights would be overwritten otherwise."""

    def before_train(self) -> None:
        for writer in self._writers:
            if not isinstance(writer, MetricPrinter):  # it prints steps, and there are none yet
                writer.write()
