"""What may be wrong with features."""

from __future__ import annotations

import pytest
import torch

from fastreid_ice.clustering import cluster_features, prepare_features
from tests.clustering_features import blobs


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_finite_names_the_image(value):
    features = blobs(2, 8)
    features[5, 3] = value
    with pytest.raises(ValueError, match=r"1 of 16 images are NaN or infinite, first of image 5 \(c\.jpg\)"):
        prepare_features(features, names=["a.jpg"] * 5 + ["c.jpg"] * 11)
    with pytest.raises(ValueError, match="image 5"):
        cluster_features(features)


def test_huge_and_tiny_features_are_normalised():
    rows = torch.tensor([[3e38, 3e38], [1e-44, 0.0]])
    assert prepare_features(rows).flatten().tolist() == pytest.approx([0.5**0.5, 0.5**0.5, 1, 0], abs=1e-6)
    rows = torch.tensor([[3e300, 4e300], [3e-300, 4e-300]], dtype=torch.float64)
    assert prepare_features(rows).flatten().tolist() == pytest.approx([0.6, 0.8, 0.6, 0.8])


def test_unit_rows_are_not_touched():
    features = blobs(2, 8)
    assert prepare_features(features).data_ptr() == features.data_ptr()


@pytest.mark.parametrize("features", [torch.ones(4), torch.ones(0, 4), torch.ones(4, 0), torch.ones(4, 4).long()])
def test_wrong_features(features):
    with pytest.raises(ValueError, match="Clustering needs"):
        cluster_features(features)
