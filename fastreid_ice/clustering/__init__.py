"""Pseudo labels from features: nearest neighbours, k-reciprocal Jaccard distances, DBSCAN. Never imports fastreid."""

from .clusterer import Clusterer, ClusteringResult, cluster_features
from .config import ClusteringConfig
from .features import prepare_features
from .neighbors import nearest_neighbors
from .stages import dbscan, jaccard_distances, k_reciprocal_encoding

__all__ = [
    "Clusterer",
    "ClusteringConfig",
    "ClusteringResult",
    "cluster_features",
    "dbscan",
    "jaccard_distances",
    "k_reciprocal_encoding",
    "nearest_neighbors",
    "prepare_features",
]
