"""Pseudo labels from features: nearest neighbours, k-reciprocal Jaccard distances, DBSCAN. Never imports fastreid."""

from .clusterer import Clusterer, ClusteringResult, cluster_features
from .config import ClusteringConfig
from .dbscan import dbscan
from .features import prepare_features
from .neighbors import nearest_neighbors

__all__ = [
    "Clusterer",
    "ClusteringConfig",
    "ClusteringResult",
    "cluster_features",
    "dbscan",
    "nearest_neighbors",
    "prepare_features",
]
