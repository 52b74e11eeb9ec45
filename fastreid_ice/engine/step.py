"""A step of fastreid's loop: forward, backward, and every so many steps the optimizer's."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from fastreid.engine.train_loop import SimpleTrainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from fastreid_ice.engine.amp import Precision, all_finite
from fastreid_ice.engine.loss_log import LossLog


class TrainingStep(SimpleTrainer):
    """fastreid's step, and its step in mixed precision, without waiting for the device.

    Attributes:
        has_updated: whether the last step ended with an update of the weights, were it one of float16 that was left out
            because a gradient overflowed.
        grad_scaler: that of the precision, where fastreid looks for it.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: Optimizer,
        precision: Precision,
        log: LossLog,
        accumulation: int = 1,
    ):
        """
        Args:
            model: maps a batch to a dict of losses.
            data_loader: of batches, without end.
            optimizer: of the model's parameters.
            precision: in which to compute.
            log: gets the losses of each step.
            accumulation: how many steps' gradients are averaged for one update (SOLVER.ACCUMULATION).
        """
        super().__init__(model, data_loader, optimizer, None)
        self.precision = precision
        self.grad_scaler = precision.scaler
        self.log = log
        self.accumulation = accumulation
        self.has_updated = False

    def run_step(self) -> None:
        """Train on one batch."""
        assert self.model.training
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        is_first = self.iter % self.accumulation == 0
        self.has_updated = (self.iter + 1) % self.accumulation == 0
        if is_first:
            self.optimizer.zero_grad()
        with self._gradients_to_others(self.has_updated):
            with self.precision.autocast():
                losses = self.model(batch)
                total: Tensor = sum(losses.values())
            self.precision.backward(total if self.accumulation == 1 else total / self.accumulation)
        self.log.add(self.iter, losses, data_time)
        if self.has_updated:
            self.precision.step(self.optimizer)

    def _gradients_to_others(self, now: bool) -> contextlib.AbstractContextManager:
        """Processes average their gradients once an update, in its last step."""
        if now or not isinstance(self.model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def end_epoch(self) -> None:
        """File all losses of the epoch and look at its weights, before they are evaluated or written.

        Raises:
            FloatingPointError: a loss, a weight or a running statistic (of a source: its losses) is infinite or NaN.
        """
        self.log.read()
        if not all_finite([*self.model.parameters(), *self.model.buffers()]):
            raise FloatingPointError(self.log.failure("The weights became infinite or NaN", self.iter))
