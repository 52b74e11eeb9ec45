"""Features with which a clustering is easily wrong, through all stages."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastreid_ice.clustering import Clusterer, ClusteringConfig
from tests.clustering_features import BACKENDS, blobs


def labels_of(features, backend, **options):
    return Clusterer(ClusteringConfig(backend=backend, **options))(features).labels.tolist()


@pytest.mark.parametrize("backend", BACKENDS)
class TestDegenerate:
    def test_one_image(self, backend):
        assert labels_of(torch.ones(1, 3), backend) == [-1]
        assert labels_of(torch.ones(1, 3), backend, min_samples=1) == [0]

    def test_fewer_images_than_k1(self, backend):
        assert labels_of(blobs(1, 5), backend) == [0] * 5

    def test_all_identical(self, backend):
        assert labels_of(torch.ones(100, 8), backend) == [0] * 100

    def test_one_giant_cluster(self, backend):
        assert labels_of(blobs(1, 300, spread=0.01), backend, eps=0.9) == [0] * 300

    def test_all_outliers(self, backend):
        result = Clusterer(ClusteringConfig(eps=0.01, backend=backend))(torch.eye(64) + 0.01 * torch.rand(64, 64))
        assert result.labels.tolist() == [-1] * 64
        assert (result.num_clusters, result.num_outliers) == (0, 64)

    def test_zero_vectors(self, backend, caplog):
        features = torch.cat([blobs(4, 10), torch.zeros(3, 32)])
        assert labels_of(features, backend, k1=10)[:40] == np.repeat(range(4), 10).tolist()
        assert "3 of 43 images have a zero feature vector" in caplog.text
        assert labels_of(torch.zeros(5, 4), backend) == [0] * 5

    def test_other_types_and_layouts(self, backend):
        features = blobs(6, 10)
        expected = labels_of(features, backend, k1=10)
        assert expected == np.repeat(range(6), 10).tolist()
        strided = torch.stack([features, -features], dim=2)[:, :, 0]
        assert not strided.is_contiguous()
        backwards = features.numpy()[::-1].copy()[::-1]  # negative strides
        others = features.double(), features.half(), strided, 7 * features, features.numpy(), backwards
        for other in (*others, features.clone().requires_grad_()):
            assert labels_of(other, backend, k1=10) == expected
