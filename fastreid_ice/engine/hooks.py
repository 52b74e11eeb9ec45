"""Small hooks: momentum update, buffers, evaluation, checkpoints."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
from fastreid.engine import hooks
from fastreid.engine.train_loop import HookBase
from fastreid.utils import comm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, or the model itself."""
    return model.module if isinstance(model, DistributedDataParallel) else model


@dataclass
class RunState:
    """What a resumed run needs beside weights, optimizer and schedule. Saved in every checkpoint.

    Attributes:
        seed: of the run; every epoch derives its random numbers from it.
        best_metric: highest mean of mAP and Rank-1 (percent) so far; -1 before the first evaluation.
        best_epoch: its epoch, counted from 0; -1 before the first evaluation.
    """

    seed: int
    best_metric: float = -1.0
    best_epoch: int = -1

    def state_dict(self) -> dict:
        return asdict(self)

    def load_state_dict(self, state: dict) -> None:
        self.__dict__.update(state)


class MomentumHook(HookBase):
    """Move the momentum encoder after each step. Register it in all workers."""

    def after_step(self):
        unwrap(self.trainer.model).update_momentum_encoder()


class BufferSyncHook(HookBase):
    """Give all processes the running statistics of the first, after an epoch and before its evaluation.

    fastreid lets each process keep its own. The first process's are those that a single process would have, which
    normalises the first chunk of the batch.

    Note:
        Register it in all workers or in none, before the evaluation: it is a collective.
    """

    def after_epoch(self):
        if comm.get_world_size() == 1:
            return
        for module in unwrap(self.trainer.model).modules():
            if isinstance(module, _BatchNorm):
                for statistic in module.buffers(recurse=False):
                    torch.distributed.broadcast(statistic, src=0)


class EvaluationHook(hooks.EvalHook):
    """Evaluate after every ``TEST.EVAL_PERIOD``-th epoch and after the last, and with ``TEST.EVAL_START`` before all.

    fastreid's evaluates a last epoch outside the period only after its checkpoint was written, and divides by a
    period of 0, which here means: after the last epoch only.
    """

    def __init__(self, cfg, evaluate):
        super().__init__(cfg.TEST.EVAL_PERIOD, evaluate)
        self._at_start = cfg.TEST.EVAL_START

    def before_train(self):
        if self._at_start and self.trainer.start_epoch == 0:
            self.trainer.storage.iter = -1  # not that of the first step, whose epoch has scores of its own
            self._do_eval()

    def after_epoch(self):
        next_epoch = self.trainer.epoch + 1
        in_period = self._period > 0 and next_epoch % self._period == 0
        if in_period or next_epoch == self.trainer.max_epoch:
            self._do_eval()

    def after_train(self):
        del self._func  # a closure that holds the trainer


class CheckpointHook(hooks.PeriodicCheckpointer):
    """Keep the best, the last and the newest periodic checkpoints.

    ``model_best.pth`` after each evaluation that beats all before it, those before a resume included (fastreid's
    starts anew and looks only every ``SOLVER.CHECKPOINT_PERIOD``), ``model_final.pth`` after the last epoch, and
    ``model_<epoch>.pth`` every ``SOLVER.CHECKPOINT_PERIOD`` epochs (0: never), of which the newest
    ``SOLVER.CHECKPOINT_KEEP`` stay (0: all). Runs in the main process only.
    """

    def __init__(self, checkpointer, period: int, keep: int, state: RunState):
        super().__init__(checkpointer, period)
        self._keep = keep
        self._state = state

    def after_epoch(self):
        storage, epoch = self.trainer.storage, self.trainer.epoch
        metric, evaluated_at = storage.latest().get(self.metric_name, (-1.0, None))
        extra = {"epoch": epoch, "metric": metric}
        if evaluated_at == storage.iter and metric > self._state.best_metric:
            self._state.best_metric, self._state.best_epoch = metric, epoch
            self.checkpointer.save("model_best", **extra)
        if epoch + 1 == self.max_epoch:
            self.checkpointer.save("model_final", **extra)
        elif self.period > 0 and (epoch + 1) % self.period == 0:
            self.checkpointer.save(f"model_{epoch:04d}", **extra)
            self._drop_older()

    def _drop_older(self) -> None:
        """Delete periodic checkpoints of earlier epochs; those of later ones are of another run in this folder."""
        if self._keep == 0:
            return
        folder, epoch = Path(self.checkpointer.save_dir), self.trainer.epoch
        periodic = [path for path in folder.glob("model_*.pth") if re.fullmatch(r"model_\d+", path.stem)]
        earlier = sorted(path for path in periodic if int(path.stem.removeprefix("model_")) <= epoch)
        for path in earlier[: -self._keep]:
            path.unlink()
