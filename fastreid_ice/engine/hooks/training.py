"""What happens around a step and an epoch of training."""

from __future__ import annotations

from typing import cast

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
from fastreid.engine import hooks
from fastreid.engine.train_loop import HookBase
from fastreid.utils import comm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from fastreid_ice.modeling import ICE


def unwrap(model: nn.Module) -> ICE:
    """The model inside DistributedDataParallel, or the model itself."""
    return cast(ICE, model.module if isinstance(model, DistributedDataParallel) else model)


class StepHook(HookBase):
    """Let the model move what moves between the updates: momentum encoder and memory.

    After an epoch it files the last losses, and stops where a loss or a weight is not finite: before the hooks behind
    it evaluate the weights or write them.

    Note:
        Register it in all workers or in none: the losses are read together.
    """

    def after_step(self) -> None:
        if self.trainer.training_step.has_updated:
            unwrap(self.trainer.model).after_step()

    def after_epoch(self) -> None:
        self.trainer.training_step.end_epoch()


class LRScheduler(hooks.LRScheduler):
    """fastreid's, which asks the scale of float16's gradients before every step, and so waits for the device.

    It needs the scale only while ``SOLVER.WARMUP_ITERS`` warms up by step: a step that overflowed is not counted.
    """

    def before_step(self) -> None:
        if self.trainer.iter + 1 <= self.trainer.warmup_iters:
            super().before_step()


class BufferSyncHook(HookBase):
    """Give all processes the running statistics of the first, after an epoch and before its evaluation.

    fastreid lets each process keep its own. The first process's are those that a single process would have, which
    normalises the first chunk of the batch.

    Note:
        Register it in all workers or in none, before the evaluation: it is a collective.
    """

    def after_epoch(self) -> None:
        if comm.get_world_size() == 1:
            return
        model = unwrap(self.trainer.model)
        _send_statistics(model)
        if model.source_images:
            with model.source_statistics.in_place():
                _send_statistics(model)


def _send_statistics(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for statistic in module.buffers(recurse=False):
                torch.distributed.broadcast(statistic, src=0)
