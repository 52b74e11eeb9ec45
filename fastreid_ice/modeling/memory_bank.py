"""What ICE remembers of an epoch's clusters: one centroid per cluster, one proxy per cluster and camera.

``MODEL.ICE.MEMORY`` names the memory. One of a user's own is a subclass that is registered::

    @MEMORY_REGISTRY.register()
    class MyMemory(MemoryBank):
        def update(self, step): ...     # after every step
"""

from __future__ import annotations

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from fastreid.utils.registry import Registry
from torch import Tensor, nn

from fastreid_ice.errors import look_up
from fastreid_ice.modeling.step import StepFeatures

MEMORY_REGISTRY = Registry("ICE_MEMORY")
MEMORY_REGISTRY.__doc__ = "Subclasses of :class:`MemoryBank` by name; each is built with the whole config."


def _group_means(features: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """(num_groups, D) mean of the rows of each group; groups (N,) int64 in [0, num_groups), none empty."""
    sums = features.new_zeros(num_groups, features.shape[1]).index_add_(0, groups, features)
    counts = torch.bincount(groups, minlength=num_groups).to(features.dtype)
    return sums / counts[:, None]


def cluster_centroids(features: Tensor, labels: Tensor) -> Tensor:
    """Mean feature of each cluster, not normalised again (as in the reference code).

    Args:
        features: (N, D) float, L2-normalised.
        labels: (N,) int64 pseudo labels 0..C-1, each occurring; -1 = outlier, left out.

    Returns:
        (C, D).
    """
    kept = labels >= 0
    return _group_means(features[kept], labels[kept], int(labels.max()) + 1)


def camera_proxies(features: Tensor, labels: Tensor, camids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L2-normalised mean feature of each cluster under each camera in which it appears.

    Args:
        features: (N, D) float, L2-normalised.
        labels: (N,) int64 pseudo labels; -1 = outlier, left out.
        camids: (N,) int64 camera ids, >= 0.

    Returns:
        proxies (P, D), their pseudo labels (P,) and their camera ids (P,), ordered by camera, then label.
    """
    kept = labels >= 0
    features, labels, camids = features[kept], labels[kept], camids[kept]
    num_clusters = int(labels.max()) + 1
    keys, groups = torch.unique(camids * num_clusters + labels, return_inverse=True)
    proxies = F.normalize(_group_means(features, groups, len(keys)), dim=1)
    return proxies, keys % num_clusters, keys // num_clusters


@MEMORY_REGISTRY.register()
class MemoryBank(nn.Module):
    """Centroids and camera proxies of the current clusters: rebuilt by each clustering, constant in between.

    The online head holds the only one. A memory that changes within the epoch overrides :meth:`update`. The buffers
    follow the module from device to device but are not persistent: the number of clusters changes with every epoch, and
    a resumed run clusters again before its first step.

    Attributes:
        centroids: (C, D).
        proxies: (P, D), with ``proxy_labels`` (P,) and ``proxy_camids`` (P,).
    """

    centroids: Tensor
    proxies: Tensor
    proxy_labels: Tensor
    proxy_camids: Tensor

    def __init__(self, cfg: CfgNode | None = None):
        super().__init__()
        for name in ("centroids", "proxies"):
            self.register_buffer(name, torch.empty(0, 0), persistent=False)
        for name in ("proxy_labels", "proxy_camids"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int64), persistent=False)

    def rebuild(self, features: Tensor, labels: Tensor, camids: Tensor) -> None:
        """Compute everything anew from (N, D) features, (N,) pseudo labels and (N,) camera ids."""
        labels, camids = labels.to(features.device), camids.to(features.device)
        self.centroids = cluster_centroids(features, labels)
        self.proxies, self.proxy_labels, self.proxy_camids = camera_proxies(features, labels, camids)

    def update(self, step: StepFeatures) -> None:
        """Called after each step (behind the optimizer and the momentum encoder), without gradient.

        Does nothing here: ICE's memory is constant within an epoch.

        Args:
            step: the step's features, detached. ``keys`` and ``key_labels`` are those of the whole batch on every
                process, so that an update made from them is the same on all.
        """

    @property
    def is_empty(self) -> bool:
        return len(self.centroids) == 0


def build_memory(cfg: CfgNode) -> MemoryBank:
    """The memory that ``MODEL.ICE.MEMORY`` names.

    Raises:
        ValueError: no memory of this name is registered.
    """
    advice = "Register your own with fastreid_ice.modeling.MEMORY_REGISTRY, in a module that MODEL.ICE.IMPORTS names."
    return look_up(MEMORY_REGISTRY, cfg.MODEL.ICE.MEMORY, "MODEL.ICE.MEMORY", advice)(cfg)
