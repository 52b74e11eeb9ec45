"""What happens around a step and an epoch of training."""

from __future__ import annotations

from typing import cast

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
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
    """Let the model move what moves between the steps: momentum encoder and memory. Register it in all workers."""

    def after_step(self) -> None:
        unwrap(self.trainer.model).after_step()


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
        for module in unwrap(self.trainer.model).modules():
            if isinstance(module, _BatchNorm):
                for statistic in module.buffers(recurse=False):
                    torch.distributed.broadcast(statistic, src=0)
