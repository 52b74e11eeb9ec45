"""From the names in ``MODEL.LOSSES.NAME`` to losses on one step's features.

fastreid has no registry of losses. With this one a user adds a loss and names it in the config::

    @LOSS_REGISTRY.register()
    def MyLoss(step, memory, cfg):   # logged as loss_my
        return (step.query - memory.centroids[step.labels]).square().mean()
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Callable

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from fastreid.utils.registry import Registry
from torch import Tensor

from fastreid_ice.losses import agnostic_loss, cross_camera_loss, hard_instance_loss, soft_instance_loss
from fastreid_ice.modeling.memory_bank import MemoryBank

LOSS_REGISTRY = Registry("ICE_LOSS")
LOSS_REGISTRY.__doc__ = """
Losses by name. A registered function is called as ``loss(step, memory, cfg)`` with a :class:`StepFeatures`, the
:class:`MemoryBank` and the node ``cfg.MODEL.LOSSES``, and returns a scalar, weight included.
"""


@dataclass
class StepFeatures:
    """What a step has computed. b images are this process's, B = b x number of processes the whole batch's.

    Attributes:
        query: (b, D) online embeddings of the first strong view; the only tensor with a gradient.
        weak_query: (b, D) momentum embeddings of the weak view of the same images.
        labels: (b,) int64 pseudo labels.
        camids: (b,) int64 camera ids.
        keys: (B, D) momentum embeddings of the second strong view.
        weak_keys: (B, D) momentum embeddings of the weak view.
        key_labels: (B,) int64 pseudo labels.
        key_camids: (B,) int64 camera ids.
        num_processes: B / b. A loss that sums over the batch multiplies by it, since the gradients of the
            processes are averaged.
    """

    query: Tensor
    weak_query: Tensor
    labels: Tensor
    camids: Tensor
    keys: Tensor
    weak_keys: Tensor
    key_labels: Tensor
    key_camids: Tensor
    num_processes: int = 1


@LOSS_REGISTRY.register()
def AgnosticLoss(step: StepFeatures, memory: MemoryBank, cfg) -> Tensor:  # noqa: N802  (a name in the config)
    node = cfg.AGNOSTIC
    loss = agnostic_loss(
        step.query, step.labels, memory.centroids, node.TEMPERATURE, node.SMOOTHING, node.NORMALIZE_QUERY
    )
    return node.SCALE * loss


@LOSS_REGISTRY.register()
def CrossCameraLoss(step: StepFeatures, memory: MemoryBank, cfg) -> Tensor:  # noqa: N802
    node = cfg.CROSS_CAMERA
    share = cross_camera_loss(
        step.query,
        step.labels,
        step.camids,
        memory.proxies,
        memory.proxy_labels,
        memory.proxy_camids,
        temperature=node.TEMPERATURE,
        num_negatives=node.NUM_NEGATIVES,
        proxy_norm=node.PROXY_NORM,
        pad_with_positives=node.PAD_WITH_POSITIVES,
        positives=node.POSITIVES,
        denominator=node.DENOMINATOR,
        average=node.AVERAGE,
        batch_camids=step.key_camids,
    )
    return node.SCALE * step.num_processes * share


@LOSS_REGISTRY.register()
def HardInstanceLoss(step: StepFeatures, memory: MemoryBank, cfg) -> Tensor:  # noqa: N802
    node = cfg.HARD_INSTANCE
    return node.SCALE * hard_instance_loss(step.query, step.keys, step.labels, step.key_labels, node.TEMPERATURE)


@LOSS_REGISTRY.register()
def SoftInstanceLoss(step: StepFeatures, memory: MemoryBank, cfg) -> Tensor:  # noqa: N802
    node = cfg.SOFT_INSTANCE
    return node.SCALE * soft_instance_loss(step.query, step.keys, step.weak_query, step.weak_keys, node.TEMPERATURE)


def _logged_name(name: str) -> str:
    """``CrossCameraLoss`` -> ``loss_cross_camera``; fastreid prints the scalars whose name contains "loss"."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.removesuffix("Loss")).lower()
    return f"loss_{words}"


def build_losses(cfg) -> dict[str, Callable[[StepFeatures, MemoryBank], Tensor]]:
    """The losses that ``cfg.MODEL.LOSSES.NAME`` lists, by the name under which they are logged.

    Raises:
        ValueError: the list is empty, or holds a name that is not registered.
    """
    node = cfg.MODEL.LOSSES
    known = list(LOSS_REGISTRY._obj_map)  # fastreid's Registry cannot be listed otherwise
    unknown = [name for name in node.NAME if name not in known]
    if unknown or not node.NAME:
        raise ValueError(
            f"MODEL.LOSSES.NAME is {tuple(node.NAME)}; ICE's losses are {', '.join(known)}. "
            "Register your own with fastreid_ice.modeling.LOSS_REGISTRY."
        )
    return {_logged_name(name): functools.partial(LOSS_REGISTRY.get(name), cfg=node) for name in node.NAME}
