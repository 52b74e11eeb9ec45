"""What happens around a step and an epoch of training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
from fastreid.engine import hooks
from fastreid.engine.train_loop import HookBase
from fastreid.utils import comm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

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


class FrozenLayersHook(HookBase):
    """``MODEL.FREEZE_LAYERS``: layers that stay as they are for the first ``SOLVER.FREEZE_ITERS`` steps of a run.

    Their parameters are not updated, and their normalisations take the running statistics and leave them. As fastreid's
    LayerFreeze and optimizer, but by the number of the step alone: those forget it when a run is resumed, and unfreeze
    the statistics whenever an evaluation or an extraction sets the model back to training.

    Args:
        model: the names are matched with the beginnings of those of its modules and parameters, as patterns.
        optimizer: that of :func:`fastreid_ice.engine.optimizer.build_optimizer`.
        layers: MODEL.FREEZE_LAYERS.
        steps: SOLVER.FREEZE_ITERS.

    Raises:
        ValueError: a name that no parameter has.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, layers: Sequence[str], steps: int):
        names = [name for name, parameter in unwrap(model).named_parameters() if parameter.requires_grad]
        for layer in layers:
            if not any(re.match(layer, name) for name in names):
                parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
                raise ValueError(f"MODEL.FREEZE_LAYERS has {layer!r}, which is no part of the model; it has {parts}")
        self._modules = [
            module for name, module in unwrap(model).named_modules() if any(re.match(layer, name) for layer in layers)
        ]
        self._parameters = [
            parameter
            for group in optimizer.param_groups
            if group["freeze_status"] == "freeze"
            for parameter in group["params"]
        ]
        self._steps = steps
        self._frozen = False
        optimizer.register_step_pre_hook(self._drop_gradients)

    def before_step(self) -> None:
        was_frozen, self._frozen = self._frozen, self.trainer.iter < self._steps
        if self._frozen or was_frozen:
            for module in self._modules:
                module.train(not self._frozen)

    def _drop_gradients(self, *_: object) -> None:
        if self._frozen:
            for parameter in self._parameters:
                parameter.grad = None


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
