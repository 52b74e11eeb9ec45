"""From the names in ``MODEL.LOSSES.NAME`` to losses on one step's features.

fastreid has no registry of losses. With this one a user adds a loss and names it in the config::

    @LOSS_REGISTRY.register()
    class MyLoss:                                       # logged as loss_my
        def __init__(self, cfg): ...                    # cfg.MODEL.LOSSES, read once
        def __call__(self, step, memory):               # every step
            return (step.query - memory.centroids[step.labels]).square().mean()
"""

from __future__ import annotations

import re
from typing import Callable

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch.nn.functional as F
from fastreid.config import CfgNode
from fastreid.utils.registry import Registry
from torch import Tensor

from fastreid_ice.errors import listed, look_up, registered_names
from fastreid_ice.losses import (
    agnostic_loss,
    cross_camera_loss,
    hard_instance_loss,
    intra_camera_loss,
    online_association_loss,
    soft_instance_loss,
)
from fastreid_ice.losses.cross_camera import CHOICES as CROSS_CAMERA_CHOICES
from fastreid_ice.losses.proxies import AVERAGES, check_choice
from fastreid_ice.modeling.memory_bank import HardMeanMemory, MemoryBank
from fastreid_ice.modeling.step import StepFeatures

Loss = Callable[[StepFeatures, MemoryBank], Tensor]

LOSS_REGISTRY = Registry("ICE_LOSS")
LOSS_REGISTRY.__doc__ = """
Losses by name. What is registered (a class, or a function that returns a function) is called once with the node
``cfg.MODEL.LOSSES``; its result is called in every step as ``loss(step, memory)`` with a :class:`StepFeatures` and the
:class:`MemoryBank`, and returns a scalar, weight included. One that says ``uses_keys = False`` looks at no embedding of
the momentum encoder: where nothing does, its passes are left out, and these tensors of the step are empty. One that
says ``uses_weak = False`` looks at no embedding of un-augmented views: with ``MODEL.ICE.WEAK_PASS False`` each must say
so. One that says ``needs_cameras = True`` is refused where ``DATASETS.USE_CAMERAS`` is False.
"""


def _at_least(node: CfgNode, group: str, key: str, least: float, above: bool = False) -> float:
    """The value of a key of ``MODEL.LOSSES.<group>``; ValueError when it is below ``least`` (or equal: ``above``)."""
    value = node[key]
    if not (value > least if above else value >= least):
        needed = f"above {least}" if above else f"at least {least}"
        raise ValueError(f"MODEL.LOSSES.{group}.{key} is {value}; it must be {needed}")
    return value


@LOSS_REGISTRY.register()
class AgnosticLoss:
    """Contrast with all centroids, see :func:`fastreid_ice.losses.agnostic_loss`."""

    uses_keys = uses_weak = False

    def __init__(self, cfg: CfgNode):
        node = cfg.AGNOSTIC
        self.scale = _at_least(node, "AGNOSTIC", "SCALE", 0)
        self.temperature = _at_least(node, "AGNOSTIC", "TEMPERATURE", 0, above=True)
        self.smoothing = _at_least(node, "AGNOSTIC", "SMOOTHING", 0)
        if self.smoothing >= 1:
            raise ValueError(f"MODEL.LOSSES.AGNOSTIC.SMOOTHING is {self.smoothing}; it must be in [0, 1)")
        self.normalize_query = node.NORMALIZE_QUERY

    def __call__(self, step: StepFeatures, memory: MemoryBank) -> Tensor:
        loss = agnostic_loss(
            step.query, step.labels, memory.centroids, self.temperature, self.smoothing, self.normalize_query
        )
        return self.scale * loss


@LOSS_REGISTRY.register()
class HardMeanLoss:
    """Contrast with two centroids for each cluster (HHCL, arXiv 2109.12333), of a :class:`HardMeanMemory`.

    With L(C) the :func:`fastreid_ice.losses.agnostic_loss` of normalised queries over the rows C, without smoothing:

        SCALE_HARD L(hard_centroids) + SCALE_MEAN L(centroids)
    """

    uses_keys = uses_weak = False

    def __init__(self, cfg: CfgNode):
        node = cfg.HARD_MEAN
        self.temperature = _at_least(node, "HARD_MEAN", "TEMPERATURE", 0, above=True)
        self.hard, self.mean = (_at_least(node, "HARD_MEAN", key, 0) for key in ("SCALE_HARD", "SCALE_MEAN"))

    def __call__(self, step: StepFeatures, memory: MemoryBank) -> Tensor:
        if not isinstance(memory, HardMeanMemory):
            raise ValueError(f"HardMeanLoss needs MODEL.ICE.MEMORY HardMeanMemory, not {type(memory).__name__}")
        query = F.normalize(step.query, dim=1)
        hard, mean = (
            agnostic_loss(query, step.labels, rows, self.temperature, smoothing=0)
            for rows in (memory.hard_centroids, memory.centroids)
        )
        return self.hard * hard + self.mean * mean


class _ProxyLoss:
    """A loss on camera proxies whose parameters are the keys of ``MODEL.LOSSES.<group>``."""

    uses_keys = uses_weak = False
    needs_cameras = True
    group: str
    function: Callable[..., Tensor]

    def __init__(self, cfg: CfgNode):
        node = cfg[self.group]
        self.scale = _at_least(node, self.group, "SCALE", 0)
        _at_least(node, self.group, "TEMPERATURE", 0, above=True)
        check_choice(self.group, "AVERAGE", node.AVERAGE, AVERAGES)
        self.parameters = {key.lower(): value for key, value in node.items() if key != "SCALE"}

    def __call__(self, step: StepFeatures, memory: MemoryBank) -> Tensor:
        share = type(self).function(
            step.query,
            step.labels,
            step.camids,
            *memory.proxies_of(step.is_source),
            batch_camids=step.key_camids,
            **self.parameters,
        )
        return self.scale * step.num_processes * share


@LOSS_REGISTRY.register()
class CrossCameraLoss(_ProxyLoss):
    """Contrast with camera proxies, see :func:`fastreid_ice.losses.cross_camera_loss`."""

    group = "CROSS_CAMERA"
    function = cross_camera_loss

    def __init__(self, cfg: CfgNode):
        super().__init__(cfg)
        _at_least(cfg.CROSS_CAMERA, self.group, "NUM_NEGATIVES", 0)
        for key, choices in CROSS_CAMERA_CHOICES.items():
            check_choice(self.group, key, cfg.CROSS_CAMERA[key], choices)


@LOSS_REGISTRY.register()
class IntraCameraLoss(_ProxyLoss):
    """Contrast with the proxies of the own camera, see :func:`fastreid_ice.losses.intra_camera_loss`."""

    group = "INTRA_CAMERA"
    function = intra_camera_loss


@LOSS_REGISTRY.register()
class OnlineAssociationLoss(_ProxyLoss):
    """Contrast with proxies chosen in every step, see :func:`fastreid_ice.losses.online_association_loss`."""

    group = "ONLINE_ASSOCIATION"
    function = online_association_loss

    def __init__(self, cfg: CfgNode):
        super().__init__(cfg)
        node = cfg.ONLINE_ASSOCIATION
        _at_least(node, self.group, "NUM_POSITIVES", 1)
        _at_least(node, self.group, "NUM_NEGATIVES", 0)
        if not 0 <= node.BALANCE <= 1:
            raise ValueError(f"MODEL.LOSSES.ONLINE_ASSOCIATION.BALANCE is {node.BALANCE}; it must be in [0, 1]")


@LOSS_REGISTRY.register()
class HardInstanceLoss:
    """Contrast with the least similar positive, see :func:`fastreid_ice.losses.hard_instance_loss`."""

    uses_weak = False

    def __init__(self, cfg: CfgNode):
        self.scale = _at_least(cfg.HARD_INSTANCE, "HARD_INSTANCE", "SCALE", 0)
        self.temperature = _at_least(cfg.HARD_INSTANCE, "HARD_INSTANCE", "TEMPERATURE", 0, above=True)

    def __call__(self, step: StepFeatures, memory: MemoryBank) -> Tensor:
        return self.scale * hard_instance_loss(step.query, step.keys, step.labels, step.key_labels, self.temperature)


@LOSS_REGISTRY.register()
class SoftInstanceLoss:
    """Consistency with the un-augmented views, see :func:`fastreid_ice.losses.soft_instance_loss`."""

    def __init__(self, cfg: CfgNode):
        self.scale = _at_least(cfg.SOFT_INSTANCE, "SOFT_INSTANCE", "SCALE", 0)
        self.temperature = _at_least(cfg.SOFT_INSTANCE, "SOFT_INSTANCE", "TEMPERATURE", 0, above=True)

    def __call__(self, step: StepFeatures, memory: MemoryBank) -> Tensor:
        loss = soft_instance_loss(step.query, step.keys, step.weak_query, step.weak_keys, self.temperature)
        return self.scale * loss


def _logged_name(name: str) -> str:
    """``CrossCameraLoss`` -> ``loss_cross_camera``; fastreid prints the scalars whose name contains "loss"."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.removesuffix("Loss")).lower()
    return f"loss_{words}"


def build_losses(cfg: CfgNode) -> dict[str, Loss]:
    """The losses that ``cfg.MODEL.LOSSES.NAME`` lists, by the name under which they are logged.

    Raises:
        ValueError: the list is empty or holds a name that is not registered, a parameter is out of range, or a loss
            needs the pass that MODEL.ICE.WEAK_PASS leaves out.
    """
    node = cfg.MODEL.LOSSES
    if not node.NAME:
        raise ValueError(f"MODEL.LOSSES.NAME is empty; ICE's losses are {listed(registered_names(LOSS_REGISTRY))}")
    advice = "Register your own with fastreid_ice.modeling.LOSS_REGISTRY, in a module that MODEL.ICE.IMPORTS names."
    losses = {name: look_up(LOSS_REGISTRY, name, "MODEL.LOSSES.NAME", advice)(node) for name in node.NAME}
    users = [name for name, loss in losses.items() if getattr(loss, "uses_weak", True)]
    if users and not cfg.MODEL.ICE.WEAK_PASS:
        raise ValueError(
            f"MODEL.ICE.WEAK_PASS is False, but {', '.join(users)} of MODEL.LOSSES.NAME needs un-augmented views. "
            "Set it to True, or leave the loss out"
        )
    return {_logged_name(name): loss for name, loss in losses.items()}
