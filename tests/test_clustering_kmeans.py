"""k-means by its definition."""

from __future__ import annotations

import pytest
import torch

from fastreid_ice.clustering import Clusterer, ClusteringConfig, kmeans
from tests.clustering_features import blobs


def test_kmeans_is_a_fixed_point_of_its_definition():
    # Spherical k-means: each image is nearest to the normalised mean of its own cluster.
    features = blobs(12, 40, dimensions=8, spread=0.5)
    result = Clusterer(ClusteringConfig(method="kmeans", num_clusters=12))(features)
    labels = result.labels
    assert result.num_outliers == 0
    means = torch.stack([features[labels == label].mean(dim=0) for label in range(result.num_clusters)])
    nearest = (features @ torch.nn.functional.normalize(means, dim=1).t()).argmax(dim=1)
    assert (nearest == labels).float().mean() > 0.98
    first_images = [int((labels == label).nonzero()[0]) for label in range(12)]
    assert first_images == sorted(first_images)


def test_every_seed_of_a_run_is_one_of_kmeans():
    features = torch.nn.functional.normalize(torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    config = ClusteringConfig(method="kmeans", num_clusters=3, seed=2**32 - 1)
    assert Clusterer(config)(features).num_clusters == 3


def test_kmeans_with_too_many_clusters():
    with pytest.raises(ValueError, match="CLUSTERING.NUM_CLUSTERS is 9, but there are only 8"):
        kmeans(blobs(1, 8), 9)
