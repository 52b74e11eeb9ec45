"""What ICE remembers of an epoch's clusters: one centroid per cluster, one proxy per cluster and camera.

``MODEL.ICE.MEMORY`` names the memory. One of a user's own is a subclass that is registered::

    @MEMORY_REGISTRY.register()
    class MyMemory(MemoryBank):
        def update(self, step): ...     # after every step
"""

from __future__ import annotations

from collections.abc import Mapping

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
    """(num_groups, D) mean of the rows of each group; groups (N,) int64 in [0, num_groups], none empty.

    The group ``num_groups`` is left out: those without a cluster are added up beside the others, as a copy of all
    features without them would take as much memory as the features.
    """
    sums = features.new_zeros(num_groups + 1, features.shape[1]).index_add_(0, groups, features)
    counts = torch.bincount(groups, minlength=num_groups + 1).to(features.dtype)
    return sums[:num_groups] / counts[:num_groups, None]


def cluster_centroids(features: Tensor, labels: Tensor) -> Tensor:
    """Mean feature of each cluster, not normalised again (as in the reference code).

    Args:
        features: (N, D) float, L2-normalised.
        labels: (N,) int64 pseudo labels 0..C-1, each occurring; -1 = outlier, left out.

    Returns:
        (C, D).
    """
    num_clusters = int(labels.max()) + 1
    return _group_means(features, labels.where(labels >= 0, num_clusters), num_clusters)


def camera_proxies(features: Tensor, labels: Tensor, camids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L2-normalised mean feature of each cluster under each camera in which it appears.

    Args:
        features: (N, D) float, L2-normalised.
        labels: (N,) int64 pseudo labels; -1 = outlier, left out.
        camids: (N,) int64 camera ids; an image of -1 is left out too.

    Returns:
        proxies (P, D), their pseudo labels (P,) and their camera ids (P,), ordered by camera, then label.
    """
    kept = (labels >= 0) & (camids >= 0)
    num_clusters = int(labels.max()) + 1
    keys, of_kept = torch.unique(camids[kept] * num_clusters + labels[kept], return_inverse=True)
    groups = torch.full_like(labels, len(keys)).masked_scatter(kept, of_kept)
    proxies = F.normalize(_group_means(features, groups, len(keys)), dim=1)
    return proxies, keys % num_clusters, keys // num_clusters


@MEMORY_REGISTRY.register()
class MemoryBank(nn.Module):
    """Centroids and camera proxies of the current clusters: rebuilt by each clustering, constant in between.

    The online head holds the only one. A memory that changes within the epoch overrides :meth:`update`. The buffers
    follow the module from device to device but are not persistent: the number of clusters changes with every epoch, and
    a resumed run clusters again before its first step.

    With labelled images of another domain (``DATASETS.SOURCE``) their classes are rows behind the clusters, and their
    proxies behind those of the clusters.

    Attributes:
        centroids: (C, D).
        proxies: (P, D), with ``proxy_labels`` (P,) and ``proxy_camids`` (P,).
        uses_keys: whether :meth:`update` looks at the momentum encoder's embeddings.
        source_begins: the first class and the first proxy of the source; None without one.
        keeps_source: whether the rows of the source stay as they are when the target is clustered anew, instead of
            being rebuilt too. Here they do not: all of the memory is as the encoder sees the images before the epoch.
    """

    uses_keys = True
    keeps_source = False
    centroids: Tensor
    proxies: Tensor
    proxy_labels: Tensor
    proxy_camids: Tensor

    def __init__(self, cfg: CfgNode | None = None):
        super().__init__()
        self.source_begins: tuple[int, int] | None = None
        for name in ("centroids", "proxies"):
            self.register_buffer(name, torch.empty(0, 0), persistent=False)
        for name in ("proxy_labels", "proxy_camids"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int64), persistent=False)

    def rebuild(self, features: Tensor, labels: Tensor, camids: Tensor) -> None:
        """Compute everything anew after a clustering.

        Args:
            features: (N, D) float, L2-normalised.
            labels: (N,) int64 pseudo labels; -1 = outlier, left out.
            camids: (N,) int64 camera ids. An outlier that is a class of its own (CLUSTERING.OUTLIERS instances) has a
                label behind those of the clusters and the camera -1: it gets a centroid, and no proxy.
        """
        labels, camids = labels.to(features.device), camids.to(features.device)
        self.centroids = cluster_centroids(features, labels)
        self.proxies, self.proxy_labels, self.proxy_camids = camera_proxies(features, labels, camids)

    def update(self, step: StepFeatures) -> None:
        """Called after each step (behind the optimizer and the momentum encoder), without gradient.

        Does nothing here: ICE's memory is constant within an epoch.

        Args:
            step: the step's features, detached. ``keys`` and ``key_labels`` are those of the whole batch on every
                process, so that an update made from them is the same on all; :meth:`StepFeatures.all_queries` gathers
                the queries likewise.
        """

    def mark_source(self, first_class: int) -> None:
        """Note, behind :meth:`rebuild`, that the labels from ``first_class`` on are classes of the source.

        The proxies must be ordered by camera, as :func:`camera_proxies` does: the source's cameras are the last.
        """
        self.source_begins = first_class, int((self.proxy_labels < first_class).sum())

    def proxies_of(self, is_source: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Proxies, their labels and their cameras of one domain; without a source all are the target's."""
        first = len(self.proxies) if self.source_begins is None else self.source_begins[1]
        rows = slice(first, None) if is_source else slice(first)
        return self.proxies[rows], self.proxy_labels[rows], self.proxy_camids[rows]

    def source_rows(self) -> dict[str, Tensor]:
        """Centroids and proxies of the source, and of each proxy its class, from 0, and its camera; {} without one."""
        if self.source_begins is None:
            return {}
        first_class, first_proxy = self.source_begins
        rows = {
            "centroids": self.centroids[first_class:],
            "proxies": self.proxies[first_proxy:],
            "proxy_classes": self.proxy_labels[first_proxy:] - first_class,
            "proxy_camids": self.proxy_camids[first_proxy:],
        }
        return {name: value.clone() for name, value in rows.items()}  # not with the memory of the clusters

    def append_source(self, rows: Mapping[str, Tensor]) -> None:
        """Put what :meth:`source_rows` has given behind the clusters, after a :meth:`rebuild` of the target alone."""
        rows = {name: value.to(self.centroids.device) for name, value in rows.items()}
        labels = rows["proxy_classes"] + len(self.centroids)
        self.centroids = torch.cat([self.centroids, rows["centroids"]])
        self.proxies = torch.cat([self.proxies, rows["proxies"]])
        self.proxy_labels = torch.cat([self.proxy_labels, labels])
        self.proxy_camids = torch.cat([self.proxy_camids, rows["proxy_camids"]])

    @property
    def is_empty(self) -> bool:
        """Whether there is no cluster yet."""
        return len(self.centroids) == 0


UPDATES = ("each", "mean", "hardest")
FEATURES = ("keys", "queries")


@MEMORY_REGISTRY.register()
class MomentumMemory(MemoryBank):
    """A memory that follows the encoder within the epoch.

    After every step the images' embeddings x move their cluster's centroid, and the proxy of their cluster and camera:

        c <- (m c + (1 - m) x) / |m c + (1 - m) x|

    ``MODEL.ICE.MOMENTUM_MEMORY.FEATURES`` chooses whose embeddings: the "keys" are the momentum encoder's, of the
    second strong view; the "queries" are those that the losses have just seen, as in methods without that encoder.
    ``MODEL.ICE.MOMENTUM_MEMORY.UPDATE`` chooses x: "each" image of the batch in turn (Cluster-Contrast,
    arXiv 2103.11568), the "mean" of the batch's images of the cluster, or the "hardest" of them, which is the least
    similar to c (both in HHCL, arXiv 2109.12333). For proxies, of the cluster and camera.

    Centroids start as means of length 1, unlike ICE's. A resumed run begins its first epoch with a clustering, so that
    nothing is lost between two epochs. The rows of the source (``DATASETS.SOURCE``) are rebuilt before the first epoch
    only and move from then on, as in SpCL (arXiv 2006.02713, section 3.1).

    Raises:
        ValueError: a key of ``MODEL.ICE.MOMENTUM_MEMORY`` is out of range.
    """

    keeps_source = True

    def __init__(self, cfg: CfgNode):
        super().__init__(cfg)
        node = cfg.MODEL.ICE.MOMENTUM_MEMORY
        if not 0 <= node.MOMENTUM < 1:
            raise ValueError(f"MODEL.ICE.MOMENTUM_MEMORY.MOMENTUM is {node.MOMENTUM}; it must be in [0, 1)")
        if node.UPDATE not in UPDATES:
            raise ValueError(f"MODEL.ICE.MOMENTUM_MEMORY.UPDATE is {node.UPDATE!r}; choose one of {', '.join(UPDATES)}")
        if node.FEATURES not in FEATURES:
            raise ValueError(
                f"MODEL.ICE.MOMENTUM_MEMORY.FEATURES is {node.FEATURES!r}; choose one of {', '.join(FEATURES)}"
            )
        self.momentum, self.choice, self.moved_by = node.MOMENTUM, node.UPDATE, node.FEATURES
        self.uses_keys = node.FEATURES == "keys"
        self._instances = False  # whether outliers are classes of their own, without proxies

    def rebuild(self, features: Tensor, labels: Tensor, camids: Tensor) -> None:
        super().rebuild(features, labels, camids)
        self.centroids = F.normalize(self.centroids, dim=1)
        self._instances = bool(((labels.cpu() >= 0) & (camids.cpu() < 0)).any())

    @torch.no_grad()
    def update(self, step: StepFeatures) -> None:
        images = F.normalize(step.all_queries() if self.moved_by == "queries" else step.keys, dim=1)
        self._move_clusters(step.key_labels, images)
        labels, camids = step.key_labels, step.key_camids
        if self._instances:  # some images have no proxy to move; only then is the device asked which
            kept = camids >= 0
            labels, camids, images = labels[kept], camids[kept], images[kept]
        own = (labels[:, None] == self.proxy_labels) & (camids[:, None] == self.proxy_camids)
        self._move(self.proxies, own.int().argmax(dim=1), images, self.choice)

    def _move_clusters(self, labels: Tensor, images: Tensor) -> None:
        """Move what stands for whole clusters: (B,) int64 labels, (B, D) images of length 1."""
        self._move(self.centroids, labels, images, self.choice)

    def _move(self, rows: Tensor, owners: Tensor, images: Tensor, choice: str) -> None:
        """Move row owners[i] towards images[i], in place; a row may own several of the (B, D) images; B may be 0."""
        if not len(owners):
            return
        if choice == "each":
            for owner, image in zip(owners.split(1), images.split(1)):
                rows.index_copy_(0, owner, self._between(rows.index_select(0, owner), image))
            return
        same = owners[:, None] == owners[None, :]  # (B, B)
        if choice == "mean":
            share = same.to(images.dtype)
            chosen = share @ images / share.sum(dim=1, keepdim=True)
        else:
            similarity = (images * rows[owners]).sum(dim=1)  # (B,)
            chosen = images[torch.where(same, similarity, float("inf")).argmin(dim=1)]
        rows.index_copy_(0, owners, self._between(rows[owners], chosen))  # equal owners write equal rows

    def _between(self, rows: Tensor, images: Tensor) -> Tensor:
        return F.normalize(self.momentum * rows + (1 - self.momentum) * images, dim=1)


@MEMORY_REGISTRY.register()
class HardMeanMemory(MomentumMemory):
    """Two rows for each cluster (Hard-sample guided Hybrid Contrast Learning, HHCL, arXiv 2109.12333).

    Both start as the mean of the cluster, at length 1. After every step ``hard_centroids`` (C, D) move towards the
    "hardest" image of the cluster in the batch, the one least similar to them, and ``centroids`` towards the "mean" of
    its images; ``MODEL.ICE.MOMENTUM_MEMORY.UPDATE`` says how the camera proxies move. For ``HardMeanLoss``.
    """

    hard_centroids: Tensor

    def __init__(self, cfg: CfgNode):
        super().__init__(cfg)
        self.register_buffer("hard_centroids", torch.empty(0, 0), persistent=False)

    def rebuild(self, features: Tensor, labels: Tensor, camids: Tensor) -> None:
        super().rebuild(features, labels, camids)
        self.hard_centroids = self.centroids.clone()

    def source_rows(self) -> dict[str, Tensor]:
        rows = super().source_rows()
        if self.source_begins is not None:
            rows["hard"] = self.hard_centroids[self.source_begins[0] :].clone()
        return rows

    def append_source(self, rows: Mapping[str, Tensor]) -> None:
        super().append_source(rows)
        hard = rows.get("hard", rows["centroids"])  # of a run with another memory
        self.hard_centroids = torch.cat([self.hard_centroids, hard.to(self.hard_centroids.device)])

    def _move_clusters(self, labels: Tensor, images: Tensor) -> None:
        self._move(self.centroids, labels, images, "mean")
        self._move(self.hard_centroids, labels, images, "hardest")


def build_memory(cfg: CfgNode) -> MemoryBank:
    """The memory that ``MODEL.ICE.MEMORY`` names.

    Raises:
        ValueError: no memory of this name is registered.
    """
    advice = "Register your own with fastreid_ice.modeling.MEMORY_REGISTRY, in a module that MODEL.ICE.IMPORTS names."
    return look_up(MEMORY_REGISTRY, cfg.MODEL.ICE.MEMORY, "MODEL.ICE.MEMORY", advice)(cfg)
