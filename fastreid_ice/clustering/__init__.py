"""Pseudo labels from features: nearest neighbours, k-reciprocal Jaccard distances, DBSCAN. Never imports fastreid.

``stages`` holds the stages, each computed by ``numba_kernels`` or ``torch_ops``; ``methods`` the table of clusterings
to which a user may add; ``clusterer`` runs one.
"""

from fastreid_ice.clustering.approximate import approximate_neighbors
from fastreid_ice.clustering.ca_jaccard import camera_aware_encoding, camera_aware_neighbors
from fastreid_ice.clustering.clusterer import Clusterer, ClusteringResult, cluster_features
from fastreid_ice.clustering.config import ClusteringConfig, config_defaults
from fastreid_ice.clustering.costs import Costs
from fastreid_ice.clustering.methods import (
    METHODS,
    ImageFacts,
    check_cameras,
    check_clusters,
    method_names,
    register_method,
)
from fastreid_ice.clustering.outliers import OUTLIERS, instance_labels
from fastreid_ice.clustering.prepare import prepare_features
from fastreid_ice.clustering.quality import agreement, summarize
from fastreid_ice.clustering.spherical_kmeans import kmeans
from fastreid_ice.clustering.stages import dbscan, jaccard_distances, k_reciprocal_encoding, nearest_neighbors
from fastreid_ice.clustering.tracks import TRACK_MODES, Tracks, check_tracks

__all__ = [
    "METHODS",
    "OUTLIERS",
    "TRACK_MODES",
    "Clusterer",
    "ClusteringConfig",
    "ClusteringResult",
    "Costs",
    "ImageFacts",
    "Tracks",
    "agreement",
    "approximate_neighbors",
    "camera_aware_encoding",
    "camera_aware_neighbors",
    "check_cameras",
    "check_clusters",
    "check_tracks",
    "cluster_features",
    "config_defaults",
    "dbscan",
    "instance_labels",
    "jaccard_distances",
    "k_reciprocal_encoding",
    "kmeans",
    "method_names",
    "nearest_neighbors",
    "prepare_features",
    "register_method",
    "summarize",
]
