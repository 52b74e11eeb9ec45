"""What the clusterer takes and gives beside the labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastreid_ice.camera_normalization import camera_normalized
from fastreid_ice.clustering import Clusterer, ClusteringConfig
from tests.clustering_features import blobs


def test_camids_of_another_length():
    with pytest.raises(ValueError, match="16 features but 15 camera ids"):
        Clusterer()(blobs(2, 8), camids=np.zeros(15))


@pytest.mark.parametrize("wrong, message", [({"names": "abc"}, "3 names"), ({"identities": [1]}, "1 identities")])
def test_facts_of_another_length(wrong, message):
    with pytest.raises(ValueError, match=f"16 features but {message}"):
        Clusterer()(blobs(2, 8), **wrong)


def test_result_counts_and_costs():
    features = torch.zeros(51, 33)
    features[:50, :32], features[50, 32] = blobs(5, 10), 1  # at right angles to all others
    result = Clusterer(ClusteringConfig(k1=10, k2=1))(features, camids=[0] * 51)
    assert (result.num_clusters, result.num_outliers, result.knn_recall) == (5, 1, None)
    assert list(result.seconds) == list(result.process_peak_mb) == ["search", "reciprocal", "jaccard", "dbscan"]
    assert result.labels.dtype == torch.int64 and result.labels.device.type == "cpu"


def test_camera_normalization_clusters_normalised_features():
    features = blobs(6, 10)
    cameras = torch.arange(len(features)) % 2
    shifted = features + 3 * cameras[:, None]  # each camera sees everybody otherwise
    config = ClusteringConfig(k1=10, k2=1, camera_normalization=True)
    result = Clusterer(config)(shifted, cameras)
    expected = Clusterer(replace(config, camera_normalization=False))(camera_normalized(shifted, cameras))
    assert result.labels.tolist() == expected.labels.tolist()
    assert list(result.seconds)[0] == "cameras"
    assert result.labels.tolist() != Clusterer(replace(config, camera_normalization=False))(shifted).labels.tolist()


def test_a_person_alone_under_a_small_camera_stays_one():
    """The mean of ten images of one person is that person: taken out, nothing but noise would be left."""
    generator = torch.Generator().manual_seed(0)
    people = torch.randn(20, 16, generator=generator).repeat_interleave(20, dim=0)
    features = people + 0.1 * torch.randn(400, 16, generator=generator)
    cameras = torch.ones(400, dtype=torch.int64)
    cameras[:10] = 0  # half of the first person's images
    labels = Clusterer(ClusteringConfig(k1=20, camera_normalization=True))(features, cameras).labels
    assert labels.tolist() == torch.arange(20).repeat_interleave(20).tolist()


def test_camera_normalization_needs_cameras():
    with pytest.raises(ValueError, match="CLUSTERING.CAMERA_NORMALIZATION needs camera ids"):
        Clusterer(ClusteringConfig(camera_normalization=True))(blobs(2, 8))
