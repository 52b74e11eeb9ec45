"""One row per epoch: clusters, losses, scores. Written as results.json, which tables and curves are made from."""

from __future__ import annotations

import logging
from pathlib import Path

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from fastreid.engine.train_loop import HookBase
from tabulate import tabulate

from fastreid_ice.engine.hooks.checkpointing import RunState
from fastreid_ice.files import write_json
from fastreid_ice.report.run_files import RECORDS_FILE, read_records

logger = logging.getLogger(__name__)

_SHOWN = ("mAP", "Rank-1", "Rank-5", "Rank-10")
_OF_STEPS = ("time", "data_time", "eta_seconds", "lr")


class EpochRecorder(HookBase):
    """Write ``<OUTPUT_DIR>/results.json`` after each epoch and log the best and the last scores at the end.

    The file holds a list of objects, one per epoch: ``epoch`` (0 = before training, n = after n epochs), the
    evaluation's scores in percent, the mean of each loss over the epoch, the clustering's scalars, and whether it is
    the ``best``. A resumed run goes on with the rows before its first epoch, and drops those behind: they are of an
    epoch whose checkpoint was never written. Runs in the main process only, before the checkpoint of the epoch.
    """

    def __init__(self, output_dir: str, state: RunState):
        self._path = Path(output_dir) / RECORDS_FILE
        self._state = state
        self.records: list[dict] = []
        self._seen: dict[str, int] = {}  # iteration of the last value of each scalar

    def before_train(self) -> None:
        self.read_earlier()
        scores = self._scalars()
        if scores:
            self.records.append({"epoch": 0, **scores})
            self._write()

    def read_earlier(self) -> None:
        """Take over the rows of the run that this one goes on with, up to its first epoch."""
        if self.trainer.start_epoch == 0 or not self._path.is_file():
            return
        try:
            rows = read_records(self._path)
        except ValueError as error:
            logger.warning("The rows of the epochs before are lost: %s", error)
            return
        self.records = [row for row in rows if row["epoch"] <= self.trainer.start_epoch]

    def after_epoch(self) -> None:
        storage = self.trainer.storage
        losses = {
            name: history.avg(self.trainer.iters_per_epoch)
            for name, history in storage.histories().items()
            if _is_loss(name)
        }
        self.records.append({"epoch": self.trainer.epoch + 1, **self._scalars(), **losses})
        self._write()

    def after_train(self) -> None:
        if self.records and self.records[-1]["epoch"] == self.trainer.max_epoch:
            logger.info("Best and last epoch:\n%s", self.table())

    def _scalars(self) -> dict[str, float]:
        """Scalars of this epoch that are neither losses nor timers: scores and clustering."""
        scalars = {}
        for name, (value, iteration) in self.trainer.storage.latest().items():
            is_new = self._seen.get(name) != iteration
            self._seen[name] = iteration
            if is_new and name not in _OF_STEPS and not _is_loss(name):
                scalars[name.removeprefix("clustering/")] = value
        return scalars

    def _write(self) -> None:
        for row in self.records:
            row["best"] = row["epoch"] == self._state.best_epoch + 1 and self._state.best_epoch >= 0
        write_json(self._path, self.records)

    def table(self) -> str:
        """Start (if evaluated), best and last epoch with their scores."""
        best = [row for row in self.records if row.get("best")]
        chosen = [("start", row) for row in self.records if row["epoch"] == 0]
        chosen += [("best", row) for row in best] + [("last", self.records[-1])]
        names = [name for name in self.records[-1] if name.rsplit("/", 1)[-1] in _SHOWN]
        names.sort(key=lambda name: _SHOWN.index(name.rsplit("/", 1)[-1]))
        rows = [[which, row["epoch"], *(row.get(name) for name in names)] for which, row in chosen]
        return tabulate(rows, headers=["", "epoch", *names], floatfmt=".1f", tablefmt="pipe")


def _is_loss(name: str) -> bool:
    """Whether a scalar is a loss, not the score of a test set whose name has the word in it."""
    return name == "total_loss" or (name.startswith("loss_") and "/" not in name)
