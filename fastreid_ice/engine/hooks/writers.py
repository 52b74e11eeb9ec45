"""fastreid's metric writers, writing what upstream loses."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from fastreid.engine.hooks import PeriodicWriter
from fastreid.utils import events

from fastreid_ice.files import write_text

SMOOTHED = 20  # steps whose median is written, as upstream


class _WritesEachScalarOnce:
    """Remember per scalar what was written, and smooth within an epoch only.

    utils/events.py:105,147 remember one iteration for all scalars, and so lose an evaluation that is filed under an
    iteration whose losses were written already: that of every epoch whose steps are a multiple of 200. Their medians
    reach back over the beginning of an epoch, where a resumed run has no values.
    """

    def _new_scalars(self, steps_per_epoch: int) -> Iterator[tuple[str, float, int]]:
        written: dict[str, int] = self.__dict__.setdefault("_written", {})
        storage = events.get_event_storage()
        window_size = min(SMOOTHED, storage.iter % steps_per_epoch + 1)
        for name, (value, iteration) in storage.latest_with_smoothing_hint(window_size).items():
            if written.get(name) != iteration:
                written[name] = iteration
                yield name, value, iteration


class JSONWriter(_WritesEachScalarOnce, events.JSONWriter):
    """One JSON object per line and iteration, appended to a file that is open only while it is written.

    Upstream's holds it open from the beginning, and leaves it so when the training never starts.

    Args:
        path: of the file.
        steps_per_epoch: that a run has.
    """

    def __init__(self, path: str, steps_per_epoch: int):
        self._path = Path(path)
        self._steps_per_epoch = steps_per_epoch

    def start(self, first_iteration: int | None) -> None:
        """Keep the lines before the first iteration of this run; without one, none.

        What lies behind belongs to an epoch that is trained again. A line that was cut off when the run was killed is
        dropped, wherever it is.
        """
        if not self._path.is_file():
            return
        kept = []
        if first_iteration is not None:
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if _iteration(line) < first_iteration]
        write_text(self._path, "".join(f"{line}\n" for line in kept))

    def write(self) -> None:
        by_iteration: dict[int, dict[str, float]] = defaultdict(dict)
        for name, value, iteration in self._new_scalars(self._steps_per_epoch):
            by_iteration[iteration][name] = value
        with open(self._path, "a", encoding="utf-8") as file:
            for iteration, scalars in sorted(by_iteration.items()):
                file.write(json.dumps({**scalars, "iteration": iteration}, sort_keys=True) + "\n")

    def close(self) -> None:
        """Nothing is open."""


def _iteration(line: str) -> float:
    """That of a line of metrics.json; infinite for a line that is none."""
    try:
        return float(json.loads(line)["iteration"])
    except (ValueError, TypeError, KeyError):
        return math.inf


class TensorboardWriter(_WritesEachScalarOnce, events.TensorboardXWriter):
    """Scalars, then upstream's images and histograms."""

    def __init__(self, log_dir: str, steps_per_epoch: int):
        super().__init__(log_dir)
        self._steps_per_epoch = steps_per_epoch

    def start(self, first_iteration: int | None) -> None:
        """Let TensorBoard forget what a killed run has written from this iteration on."""
        if first_iteration is not None:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # slow, and upstream's is late too

            log = SessionLog(status=SessionLog.START)
            self._writer._get_file_writer().add_event(Event(step=first_iteration, session_log=log))

    def write(self) -> None:
        for name, value, iteration in self._new_scalars(self._steps_per_epoch):
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
    """fastreid's, and before training too: an evaluation of the initial weights would be overwritten otherwise.

    A resumed run goes on behind what was written before its first step.
    """

    def before_train(self) -> None:
        first = self.trainer.start_iter if self.trainer.start_epoch > 0 else None
        for writer in self._writers:
            if not isinstance(writer, MetricPrinter):  # it prints steps, and there are none yet
                writer.start(first)
                writer.write()
