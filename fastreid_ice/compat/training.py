"""Repairs of the training step."""

from __future__ import annotations

from typing import Any

from fastreid_ice.compat.device import use_device
from fastreid_ice.compat.rebinding import replace, upstream, wrap

import torch


def repair_optimizer() -> None:
    """engine/train_loop.py:248,346 with utils/params.py:65: with torch >= 2 training silently changes nothing.

    ``ContiguousParams`` needs ``zero_grad`` to zero its flat gradient buffer; since torch 2.0 ``zero_grad`` drops the
    gradient instead, and ``step`` finds nothing to do. The optimizer is built without ``ContiguousParams``.
    """
    build = upstream("solver.build")

    @wrap(build, "build_optimizer", upstream("solver"), upstream("engine.defaults"))
    def build_optimizer(original, cfg, model, contiguous=False):
        return original(cfg, model, contiguous=contiguous)


def repair_loss_logging() -> None:
    """engine/train_loop.py:271: the losses are read on a new CUDA stream that does not wait for their computation."""

    @wrap(upstream("engine.train_loop").SimpleTrainer, "_write_metrics")
    def write_metrics(original, self, loss_dict, data_time):
        device = next(iter(loss_dict.values())).device
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
        original(self, loss_dict, data_time)


def repair_ddp_on_the_cpu() -> None:
    """engine/defaults.py:210: DistributedDataParallel is given ``device_ids``, which a CPU module must not have.

    A subclass takes its place, so that the ``isinstance`` checks elsewhere keep working.
    """

    def build(original: Any) -> Any:
        class DistributedDataParallel(original):
            def __init__(self, module, device_ids=None, **kwargs):
                on_cpu = all(parameter.device.type == "cpu" for parameter in module.parameters())
                super().__init__(module, device_ids=None if on_cpu else device_ids, **kwargs)

        return DistributedDataParallel

    replace(upstream("engine.defaults"), "DistributedDataParallel", build)


def repair_unknown_device() -> None:
    """modeling/meta_arch/build.py:25: where a model goes is known here only, but its batches must go there too."""
    packages = [upstream(name) for name in ("modeling.meta_arch", "modeling", "engine.defaults")]

    @wrap(upstream("modeling.meta_arch.build"), "build_model", *packages)
    def build_model(original, cfg):
        use_device(cfg.MODEL.DEVICE)
        return original(cfg)
