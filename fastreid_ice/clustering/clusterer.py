"""From features to pseudo labels, with the seconds and the memory of each stage."""

import logging
import resource
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from .config import ClusteringConfig
from .features import prepare_features
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
        seconds: wall time per stage: "search", "reciprocal", "jaccard", "dbscan"; or "kmeans".
        peak_memory_mb: highest memory of this process so far, in MiB, after each stage.
        knn_recall: share of the true neighbours that an approximate search found on a sample; None if exact.
    """

    labels: Tensor
    num_clusters: int
    num_outliers: int
    seconds: dict = field(default_factory=dict)
    peak_memory_mb: dict = field(default_factory=dict)
    knn_recall: float | None = None


class Clusterer:
    """Cluster features once per epoch."""

    def __init__(self, config: ClusteringConfig | None = None):
        self.config = config or ClusteringConfig()
        self._seconds = {}
        self._memory = {}

    def __call__(self, features, camids=None, names=None) -> ClusteringResult:
        config = self.config
        self._seconds, self._memory = {}, {}
        features = prepare_features(features, names=names)
        options = config.backend, config.memory_budget_mb
        with self._stage("search"):
            similarities, ranks = nearest_neighbors(features, config.k1, None, *options)
        with self._stage("reciprocal"):
            encoding = k_reciprocal_encoding(features, ranks, similarities, config.k1, config.k2, *options)
        with self._stage("jaccard"):
            graph = jaccard_distances(encoding, config.eps, config.memory_budget_mb)
        with self._stage("dbscan"):
            labels = dbscan(graph, config.min_samples).cpu()
        return ClusteringResult(
            labels, int(labels.max()) + 1, int((labels < 0).sum()), self._seconds, self._memory, None
        )

    @contextmanager
    def _stage(self, name):
        start = time.perf_counter()
        yield
        self._seconds[name] = time.perf_counter() - start
        self._memory[name] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cluster_features(features, k1=30, k2=6, eps=0.55, min_samples=4, device=None) -> Tensor:
    """Cluster features into pseudo labels."""
    config = ClusteringConfig(k1=k1, k2=k2, eps=eps, min_samples=min_samples)
    return Clusterer(config)(prepare_features(features, device)).labels
