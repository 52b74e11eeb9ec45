"""Size and scores of a clustering by hand."""

from __future__ import annotations

import math

import pytest
import torch

from fastreid_ice.clustering import summarize


def test_sizes_without_identities():
    assert summarize(torch.tensor([0, 0, 0, 1, -1, -1])) == {
        "clusters": 2,
        "outliers": 2,
        "mean_cluster_size": 2.0,
        "largest_cluster": 3,
    }
    assert summarize(torch.tensor([-1, -1]))["largest_cluster"] == 0


def test_scores_by_hand():
    identities = torch.tensor([0, 0, 1, 1])
    perfect = summarize(torch.tensor([1, 1, 0, 0]), identities)
    assert perfect["nmi"] == pytest.approx(1) and perfect["ari"] == pytest.approx(1)
    # An outlier is a cluster of its own: {0, 1}, {2}, {3}.
    partial = summarize(torch.tensor([0, 0, -1, -1]), identities)
    assert partial["nmi"] == pytest.approx(2 * math.log(2) / (math.log(2) + 1.5 * math.log(2)))
    # Pairs: one agrees in both of 6, 1 within clusters, 2 within identities; expected 1 * 2 / 6.
    assert partial["ari"] == pytest.approx((1 - 1 / 3) / (1.5 - 1 / 3))
