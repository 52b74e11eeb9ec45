"""The optimizer in few groups, and the checkpoints that were written with one group a parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
from fastreid.config import CfgNode
from fastreid.solver import build_optimizer as build_with_a_group_per_parameter
from torch import nn
from torch.optim import Optimizer

# Those whose fused update is right with every torch: SGD's leaves its momentum as the memory was found where float16
# skips the first step, and Adagrad's there was for the CPU first.
FUSED = (torch.optim.Adam, torch.optim.AdamW)
PER_GROUP = ("base_lrs", "_last_lr")  # what a schedule keeps per group


def build_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """fastreid's optimizer, its groups of equal options merged into one each.

    fastreid makes a group of every parameter and merges them only with ``ContiguousParams``, which does not work with
    torch 2. A group is one call of foreach or fused kernels. On the CPU torch goes from parameter to parameter either
    way: the same numbers bit for bit. On a GPU the update of Adam and AdamW is fused. Frozen layers
    (``MODEL.FREEZE_LAYERS``) have groups of their own, with ``freeze_status`` "freeze";
    :class:`fastreid_ice.engine.hooks.training.FrozenLayersHook` keeps them as they are.

    Args:
        cfg: its SOLVER node and ``MODEL.FREEZE_LAYERS``.
        model: its parameters with ``requires_grad`` are optimized.
    """
    unmerged = build_with_a_group_per_parameter(cfg, model)[0]
    options = {"fused": True} if _can_be_fused(unmerged) else {}
    kind = type(unmerged)
    if cfg.MODEL.FREEZE_LAYERS and cfg.SOLVER.FREEZE_ITERS > 0:
        kind = kind.__mro__[1]  # without upstream's freezing, which counts anew when a run is resumed
    return kind([{**group, **options} for group in _merged(unmerged.param_groups)], **options)


def _merged(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups whose options are all equal as one, in the order of their first parameters."""
    by_options: dict[tuple, dict[str, Any]] = {}
    for group in groups:
        options = {name: value for name, value in group.items() if name != "params"}
        merged = by_options.setdefault(tuple(options.items()), {**options, "params": []})
        merged["params"] += group["params"]
    return list(by_options.values())


def _can_be_fused(optimizer: Optimizer) -> bool:
    on_gpu = all(parameter.device.type == "cuda" for group in optimizer.param_groups for parameter in group["params"])
    return on_gpu and isinstance(optimizer, FUSED)


def adapt_checkpoint(checkpoint: dict[str, Any], optimizer: Optimizer, model: nn.Module) -> dict[str, Any]:
    """Let the optimizer and the schedules load a checkpoint that has one group a parameter, or is of another device.

    Args:
        checkpoint: as :func:`fastreid_ice.engine.checkpoints.read_checkpoint` gives it; changed in place.
        optimizer: that of :func:`build_optimizer`.
        model: whose parameters it optimizes.

    Returns:
        The checkpoint. What belongs to other parameters is left as it is: torch says what does not fit.
    """
    saved = checkpoint.get("optimizer")
    if saved is None:
        return checkpoint
    order = {id(parameter): i for i, parameter in enumerate(p for p in model.parameters() if p.requires_grad)}
    members = [[order[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    if len(saved["param_groups"]) == len(order) and all(len(group["params"]) == 1 for group in saved["param_groups"]):
        checkpoint["optimizer"] = _merge_saved(saved, members)
        for name in ("lr_sched", "warmup_sched"):
            if name in checkpoint:
                checkpoint[name] = _first_of_each(checkpoint[name], [group[0] for group in members], len(order))
    for group, own in zip(checkpoint["optimizer"]["param_groups"], optimizer.param_groups):
        group.update({name: own[name] for name in ("fused", "foreach") if name in own})
    return checkpoint


def _merge_saved(saved: dict[str, Any], members: list[list[int]]) -> dict[str, Any]:
    """An optimizer's state with one group a parameter in the groups ``members``, which hold places in the old order."""
    state: dict[int, Any] = {}
    groups = []
    place = 0
    for group in members:
        for old in group:
            (index,) = saved["param_groups"][old]["params"]
            if index in saved["state"]:
                state[place] = saved["state"][index]
            place += 1
        groups.append({**saved["param_groups"][group[0]], "params": list(range(place - len(group), place))})
    return {"state": state, "param_groups": groups}


def _first_of_each(schedule: Any, firsts: list[int], length: int) -> Any:
    """A schedule's state with one value a group where it has one a parameter; schedules may lie within schedules."""
    if isinstance(schedule, list):
        return [_first_of_each(value, firsts, length) for value in schedule]
    if not isinstance(schedule, dict):
        return schedule
    adapted = {}
    for name, value in schedule.items():
        if name in PER_GROUP and isinstance(value, list) and len(value) == length:
            adapted[name] = [value[first] for first in firsts]
        else:
            adapted[name] = _first_of_each(value, firsts, length)
    return adapted
