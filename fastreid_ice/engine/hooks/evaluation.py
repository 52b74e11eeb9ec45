"""When a run is evaluated."""

from __future__ import annotations

from typing import Callable

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from fastreid.config import CfgNode
from fastreid.engine import hooks


def is_evaluated_again(cfg: CfgNode) -> bool:
    """Whether a run is evaluated before its last epoch has ended, too."""
    return cfg.TEST.EVAL_START or 0 < cfg.TEST.EVAL_PERIOD < cfg.SOLVER.MAX_EPOCH


class EvaluationHook(hooks.EvalHook):
    """Evaluate after every ``TEST.EVAL_PERIOD``-th epoch and after the last, and with ``TEST.EVAL_START`` before all.

    fastreid's evaluates a last epoch outside the period only after its checkpoint was written, and divides by a
    period of 0, which here means: after the last epoch only.
    """

    def __init__(self, cfg: CfgNode, evaluate: Callable[[], dict]):
        super().__init__(cfg.TEST.EVAL_PERIOD, evaluate)
        self._at_start = cfg.TEST.EVAL_START

    def before_train(self) -> None:
        if self._at_start and self.trainer.start_epoch == 0:
            self.trainer.storage.iter = -1  # not that of the first step, whose epoch has scores of its own
            self._do_eval()

    def after_epoch(self) -> None:
        next_epoch = self.trainer.epoch + 1
        in_period = self._period > 0 and next_epoch % self._period == 0
        if in_period or next_epoch == self.trainer.max_epoch:
            self._do_eval()

    def after_train(self) -> None:
        del self._func  # a closure that holds the trainer
