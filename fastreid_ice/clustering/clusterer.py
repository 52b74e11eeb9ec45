"""From features to pseudo labels, with the seconds and the memory of each stage."""

from __future__ import annotations  # unions of types, on Python 3.9

import logging
import resource
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from . import distributed
from .approximate import approximate_neighbors
from .config import ClusteringConfig
from .features import prepare_features
from .kmeans import kmeans
from .neighbors import nearest_neighbors
from .stages import dbscan, jaccard_distances, k_reciprocal_encoding

logger = logging.getLogger(__name__)


@dataclass
class ClusteringResult:
    """Pseudo labels and what they cost.

    Attributes:
        labels: (N,) int64 on the CPU, -1 = outlier, clusters numbered by their first core image.
        num_clusters: number of clusters.
        num_outliers: number of images labelled -1.
        seconds: wall time per stage: "search", then on rank 0 "reciprocal", "jaccard", "dbscan"; or "kmeans".
        peak_memory_mb: high-water mark in MiB after each stage, since the start of the process: resident memory, or
            allocated memory of the accelerator where the features are on one.
        knn_recall: lowest share, over the ranks, of the true neighbours that an approximate search found on a
            sample (see :func:`approximate_neighbors`); None if the search was exact.
    """

    labels: Tensor
    num_clusters: int
    num_outliers: int
    seconds: dict = field(default_factory=dict)
    peak_memory_mb: dict = field(default_factory=dict)
    knn_recall: float | None = None


class Clusterer:
    """Cluster the features of the training images, once per epoch.

    Holds no state between calls but its configuration, so that a resumed run clusters as an uninterrupted one.

    Note:
        A collective where torch.distributed is initialised: all ranks must call it, each with all N features. Each
        rank searches the neighbours of its share of the rows; rank 0 clusters and broadcasts the labels.

    Args:
        config: a ClusteringConfig, default that of ICE.
    """

    def __init__(self, config: ClusteringConfig | None = None):
        self.config = config or ClusteringConfig()

    def __call__(self, features, camids=None, names=None) -> ClusteringResult:
        """Cluster.

        Args:
            features: (N, D) tensor or array, any float type, any device; rows are normalised where they are not.
            camids: (N,) camera ids; no method that is built in needs them.
            names: N image paths for error messages.

        Returns:
            A ClusteringResult; the labels are the same on all ranks.

        Raises:
            ValueError: features of a wrong shape or type or with NaN or infinite values, camids of another length.
        """
        features = prepare_features(features, names=names)
        if camids is not None and len(camids) != len(features):
            raise ValueError(f"Clustering got {len(features)} features but {len(camids)} camera ids.")
        costs = _Costs(features.device)
        recall = None
        if self.config.method == "kmeans":
            labels = self._kmeans(features, costs)
        else:
            similarities, ranks, recall = self._search(features, costs)
            labels = None if _waits() else self._label(features, similarities, ranks, costs)
        if distributed.in_group():
            labels = distributed.broadcast_labels(labels, len(features))
        outliers = int((labels < 0).sum())
        return ClusteringResult(labels, int(labels.max()) + 1, outliers, costs.seconds, costs.memory_mb, recall)

    def _search(self, features, costs):
        config, images = self.config, len(features)
        shared = distributed.in_group()
        rows = distributed.own_rows(images) if shared else (0, images)
        recall = None
        with costs.stage("search"):
            if config.knn == "exact":
                options = {"memory_budget_mb": config.memory_budget_mb, "allow_tf32": config.allow_tf32}
                found = nearest_neighbors(features, config.k1, rows, config.backend, **options)
            else:
                options = config.knn, rows, config.seed, config.memory_budget_mb, config.knn_recall
                *found, recall = approximate_neighbors(features, config.k1, *options)
            if shared:
                found = [distributed.gather_rows(part, images) for part in found]
                recall = None if recall is None else distributed.lowest(recall)
        return *found, recall

    def _label(self, features, similarities, ranks, costs):
        config = self.config
        with costs.stage("reciprocal"):
            options = {"backend": config.backend, "memory_budget_mb": config.memory_budget_mb}
            encoding = k_reciprocal_encoding(features, ranks, similarities, config.k1, config.k2, **options)
        with costs.stage("jaccard"):
            graph = jaccard_distances(encoding, config.eps, config.memory_budget_mb)
        with costs.stage("dbscan"):
            return dbscan(graph, config.min_samples).cpu()

    def _kmeans(self, features, costs):
        if _waits():
            return None
        with costs.stage("kmeans"):
            return kmeans(features, self.config.num_clusters, self.config.seed)


def _waits():
    """Whether another rank computes the labels for this one."""
    return distributed.in_group() and dist.get_rank() != 0


class _Costs:
    """Seconds and memory of the stages of one call."""

    def __init__(self, device):
        self.device = device
        self.seconds = {}
        self.memory_mb = {}

    @contextmanager
    def stage(self, name):
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            used = torch.cuda.max_memory_allocated(self.device) / 2**20
        else:
            used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self.seconds[name] = time.perf_counter() - start
        self.memory_mb[name] = used
        logger.debug("Clustering, %s: %.3f s, peak %.0f MiB.", name, self.seconds[name], used)


def cluster_features(features, k1=30, k2=6, eps=0.55, min_samples=4, device=None) -> Tensor:
    """Cluster features into pseudo labels, as ICE does before each epoch.

    Args:
        features: (N, D) tensor or array, any float type; rows are normalised where they are not.
        k1: length of a neighbour list, the image itself included.
        k2: rows averaged by the query expansion.
        eps: largest Jaccard distance between two DBSCAN neighbours.
        min_samples: images within eps, itself included, that make an image a core image.
        device: where to cluster; default where the features are.

    Returns:
        (N,) int64 labels on the CPU, -1 = outlier, clusters numbered by their first core image.

    Raises:
        ValueError: NaN or infinite features (names the image), a wrong shape, or a parameter out of range.

    Example:
        >>> points = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [0.01, 1.0], [-1.0, -1.0]])
        >>> cluster_features(points, k1=2, k2=1, min_samples=2).tolist()
        [0, 0, 1, 1, -1]
    """
    config = ClusteringConfig(k1=k1, k2=k2, eps=eps, min_samples=min_samples)
    return Clusterer(config)(prepare_features(features, device)).labels
