"""What the clusterer takes and gives beside the labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

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
