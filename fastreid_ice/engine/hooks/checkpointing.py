"""Which checkpoints a run keeps, and what they hold beside the weights."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field, fields
from pathlib import Path

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)
from fastreid_ice.compat.checkpoints import write_checkpoint

from fastreid.engine import hooks
from fastreid.engine.train_loop import HookBase
from fastreid.utils.checkpoint import Checkpointer
from torch import Tensor

logger = logging.getLogger(__name__)


@dataclass
class RunState:
    """What a resumed run needs beside weights, optimizer and schedule. Saved in every checkpoint.

    Attributes:
        seed: of the run; every epoch derives its random numbers from it.
        best_metric: highest mean of mAP and Rank-1 (percent) so far; -1 before the first evaluation.
        best_epoch: its epoch, counted from 0; -1 before the first evaluation.
        labels: (N,) int32 of the last clustering, -1 = outlier; None before the first.
    """

    seed: int
    best_metric: float = -1.0
    best_epoch: int = -1
    labels: Tensor | None = field(default=None, compare=False)

    def state_dict(self) -> dict:
        """The fields by name, as fastreid's checkpoints hold them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def load_state_dict(self, state: dict) -> None:
        """Take the fields of a checkpoint; those that it lacks stay."""
        self.__dict__.update(state)


class BestEpochHook(HookBase):
    """Keep in the :class:`RunState` which epoch scored best, those before a resume included.

    Runs in the main process only, behind the evaluation and before whatever records or saves the best epoch.

    Attributes:
        metric: the last that was evaluated; -1 before the first evaluation.
    """

    metric = -1.0

    def __init__(self, state: RunState):
        self._state = state

    def before_train(self) -> None:
        tests = self.trainer.cfg.DATASETS.TESTS
        self._metric_name = f"{tests[0]}/metric" if len(tests) > 1 else "metric"  # as the evaluation names it
        if not tests:
            logger.info("DATASETS.TESTS is empty: no evaluation and no best checkpoint, model_final.pth is the last")

    def after_epoch(self) -> None:
        self.metric, evaluated_at = self.trainer.storage.latest().get(self._metric_name, (-1.0, None))
        if evaluated_at == self.trainer.storage.iter and self.metric > self._state.best_metric:
            self._state.best_metric, self._state.best_epoch = self.metric, self.trainer.epoch


class CheckpointHook(hooks.PeriodicCheckpointer):
    """Keep the best, the last and the newest periodic checkpoints.

    ``model_best.pth`` after each epoch that beats all before it, those before a resume included (fastreid's starts
    anew and looks only every ``SOLVER.CHECKPOINT_PERIOD``), ``model_final.pth`` after the last epoch, and
    ``model_<epoch>.pth`` every ``SOLVER.CHECKPOINT_PERIOD`` epochs (0: never), of which the newest
    ``SOLVER.CHECKPOINT_KEEP`` stay (0: all). Without ``DATASETS.TESTS`` there is no best one. Runs in the main process
    only.

    A run may be killed at any moment, and ``--resume`` goes on behind the newest checkpoint. So the records of an epoch
    are written before its checkpoint, where a resumed run drops what lies behind its first epoch. And the best
    checkpoint of the last epoch is not noted as the newest, or a run killed behind it would pass for finished.
    """

    def __init__(self, checkpointer: Checkpointer, period: int, keep: int, state: RunState, best: BestEpochHook):
        super().__init__(checkpointer, period)
        self._keep = keep
        self._state = state
        self._best = best

    def before_train(self) -> None:
        self.max_epoch = self.trainer.max_epoch

    def after_epoch(self) -> None:
        epoch = self.trainer.epoch
        is_last = epoch + 1 == self.max_epoch
        extra = {"epoch": epoch, "metric": self._best.metric}
        if self._state.best_epoch == epoch:
            if is_last:
                write_checkpoint(self.checkpointer, "model_best", **extra)
            else:
                self.checkpointer.save("model_best", **extra)
        if is_last:
            self.checkpointer.save("model_final", **extra)
        elif self.period > 0 and (epoch + 1) % self.period == 0:
            self.checkpointer.save(f"model_{epoch:04d}", **extra)
            self._drop_older()

    def _drop_older(self) -> None:
        """Delete periodic checkpoints of earlier epochs; a resumed run may have passed over those of later ones."""
        if self._keep == 0:
            return
        folder, epoch = Path(self.checkpointer.save_dir), self.trainer.epoch
        periodic = [path for path in folder.glob("model_*.pth") if re.fullmatch(r"model_\d+", path.stem)]
        earlier = sorted(path for path in periodic if int(path.stem.removeprefix("model_")) <= epoch)
        for path in earlier[: -self._keep]:
            path.unlink()
