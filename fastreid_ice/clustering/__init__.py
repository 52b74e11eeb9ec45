"""Pseudo labels from features: nearest neighbours, k-reciprocal Jaccard distances, DBSCAN. Never imports fastreid."""

from .approximate import approximate_neighbors
from .clusterer import Clusterer, ClusteringResult, cluster_features
from .config import ClusteringConfig
from .features import prepare_features
from .kmeans import kmeans
from .neighbors import nearest_neighbors
from .stages import dbscan, jaccard_distances, k_reciprocal_encoding

__all__ = [
    "Clusterer",
    "ClusteringConfig",
    "ClusteringResult",
    "approximate_neighbors",
    "cluster_features",
    "dbscan",
    "jaccard_distances",
    "k_reciprocal_encoding",
    "kmeans",
    "nearest_neighbors",
    "prepare_features",
]
