"""The losses of the steps on their way from the device into fastreid's storage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Callable, NamedTuple

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import numpy as np
import torch
from fastreid.utils import comm
from fastreid.utils.events import get_event_storage
from torch import Tensor


class _Step(NamedTuple):
    iteration: int
    data_time: float
    losses: Tensor  # in the order of the log's names


class LossLog:
    """Files the losses of each step, as fastreid does, but reads them from the device only every ``every`` steps.

    A read waits for all that the device has been told to do, so that it then stands idle. What is filed does not depend
    on when it is read: values, their iterations and their order are fastreid's.

    Note:
        Use it in all workers alike: a read is a collective.
    """

    def __init__(self, every: int, last_checkpoint: Callable[[], str]):
        """
        Args:
            every: how many steps are read at once.
            last_checkpoint: the newest checkpoint's path, or "" without one; told to whom the losses have failed.
        """
        self.every = every
        self._last_checkpoint = last_checkpoint
        self._names: list[str] = []
        self._steps: list[_Step] = []

    def add(self, iteration: int, losses: Mapping[str, Tensor], data_time: float) -> None:
        """Note the losses of a step, and read where it is time.

        Args:
            iteration: counted over the run, from 0.
            losses: one number each, on any device.
            data_time: seconds that the step waited for its batch.

        Raises:
            FloatingPointError: a loss that is read now is infinite or NaN.
        """
        self._names = list(losses)
        values = torch.stack([loss.detach().reshape(()) for loss in losses.values()])
        self._steps.append(_Step(iteration, data_time, values))
        if (iteration + 1) % self.every == 0:
            self.read()

    def read(self) -> None:
        """File what has been noted since the last read.

        Raises:
            FloatingPointError: a loss is infinite or NaN.
        """
        if not self._steps:
            return
        steps, self._steps = self._steps, []
        values = torch.stack([step.losses for step in steps]).tolist()  # here the host waits
        rows = [{"data_time": step.data_time, **dict(zip(self._names, row))} for step, row in zip(steps, values)]
        by_process = comm.gather(rows)
        if not comm.is_main_process():
            return
        storage = get_event_storage()
        now = storage.iter
        for number, step in enumerate(steps):
            storage.iter = step.iteration
            self._file([process[number] for process in by_process], step.iteration, steps[-1].iteration)
        storage.iter = now

    def _file(self, processes: list[dict[str, float]], iteration: int, read_at: int) -> None:
        """Put the losses of one step, the mean over the processes, and their sum into the storage."""
        storage = get_event_storage()
        storage.put_scalar("data_time", np.max([row.pop("data_time") for row in processes]))
        losses = {name: np.mean([row[name] for row in processes]) for name in self._names}
        total = sum(losses.values())
        if not np.isfinite(total):
            values = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
            raise FloatingPointError(
                self.failure(f"The loss became infinite or NaN in step {iteration} ({values})", read_at)
            )
        storage.put_scalar("total_loss", total)
        if len(losses) > 1:
            storage.put_scalars(**losses)

    def failure(self, what: str, read_at: int) -> str:
        """What has happened, which weights are lost and which are left, and what may help."""
        checkpoint = self._last_checkpoint()
        left = f"The last good checkpoint is {checkpoint}" if checkpoint else "No checkpoint was written before"
        return (
            f"{what}, which was seen after step {read_at}. The weights in memory are lost. {left}. "
            "Lower SOLVER.BASE_LR, or clip the gradients with SOLVER.CLIP_GRADIENTS.ENABLED True; with "
            "SOLVER.AMP.ENABLED, try SOLVER.AMP.DTYPE bfloat16 or float32 (ENABLED False)."
        )
