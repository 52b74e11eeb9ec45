"""What ICE remembers of an epoch's clusters: one centroid per cluster, one proxy per cluster and camera."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


class MemoryBank(nn.Module):
    """Centroids and camera proxies of the current clusters: rebuilt by each clustering, constant in between.

    The buffers follow the module from device to device but are not persistent: the number of clusters changes with
    every epoch, and a resumed run clusters again.

    Attributes:
        centroids: (C, D).
        proxies: (P, D), with ``proxy_labels`` (P,) and ``proxy_camids`` (P,).
    """

    def __init__(self):
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

    @property
    def is_empty(self) -> bool:
        return len(self.centroids) == 0
