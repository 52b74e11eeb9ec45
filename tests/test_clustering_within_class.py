"""Whitening by the covariance within clusters, and clustering again behind it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import adjusted_rand_score

from fastreid_ice.clustering import Clusterer, ClusteringConfig, Tracks
from fastreid_ice.clustering import within_class as module
from fastreid_ice.clustering.within_class import whitening, within_class_covariance, within_class_normalized
from tests.clustering_features import blobs

CONFIG = ClusteringConfig(k1=10, k2=1)


def people_in_one_pose_or_another(
    people: int = 12, images: int = 12, poses: float = 2.0
) -> tuple[torch.Tensor, np.ndarray]:
    """(N, 24) features: people differ in 20 dimensions, their images in 4 others, by more. And the (N,) people."""
    generator = torch.Generator().manual_seed(3)
    identity = torch.randn(people, 20, generator=generator).repeat_interleave(images, dim=0)
    noise = 0.3 * torch.randn(people * images, 20, generator=generator)
    pose = poses * torch.randn(people * images, 4, generator=generator)
    return F.normalize(torch.cat([identity + noise, pose], dim=1)), np.repeat(np.arange(people), images)


def test_covariance_is_the_naive_sum(monkeypatch):
    monkeypatch.setattr(module, "PIECE_ROWS", 7)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(50, 6, generator=generator)
    labels = torch.randint(-1, 5, (50,), generator=generator)
    rows = [
        features[i].double() - features[labels == labels[i]].double().mean(dim=0) for i in range(50) if labels[i] >= 0
    ]
    expected = sum(torch.outer(row, row) for row in rows) / len(rows)
    torch.testing.assert_close(within_class_covariance(features, labels), expected, rtol=1e-6, atol=1e-6)


def test_whitened_clusters_spread_equally_in_all_directions():
    features, people = people_in_one_pose_or_another()
    labels = torch.from_numpy(people)
    matrix = whitening(within_class_covariance(features, labels), 1e-9)
    after = within_class_covariance((features.double() @ matrix).float(), labels)
    torch.testing.assert_close(after / after[0, 0], torch.eye(24, dtype=torch.float64), rtol=0, atol=1e-4)
    assert float(torch.linalg.eigvalsh(matrix)[-1]) <= 1 + 1e-9


def test_a_shrinkage_of_one_turns_nothing():
    features, people = people_in_one_pose_or_another()
    torch.testing.assert_close(within_class_normalized(features, torch.from_numpy(people), 1.0), features)


def test_without_a_spread_nothing_is_whitened():
    features = F.normalize(torch.randn(4, 3, generator=torch.Generator().manual_seed(1)))
    for labels in (torch.full((4,), -1), torch.arange(4)):  # no cluster, and clusters of one image
        torch.testing.assert_close(within_class_normalized(features, labels, 0.2), features)
    zero = torch.zeros(2, 3)
    assert within_class_normalized(zero, torch.tensor([0, 0]), 0.2).tolist() == zero.tolist()


@pytest.mark.parametrize("rounds", [1, 2])
def test_rounds_cluster_again_what_the_labels_before_whiten(rounds):
    features, _ = people_in_one_pose_or_another()
    labels = Clusterer(CONFIG)(features).labels
    for _ in range(rounds):
        labels = Clusterer(CONFIG)(within_class_normalized(features, labels, 0.3)).labels
    result = Clusterer(replace(CONFIG, wccn_rounds=rounds, wccn_shrinkage=0.3))(features)
    assert result.labels.tolist() == labels.tolist()
    assert list(result.seconds) == ["search", "reciprocal", "jaccard", "dbscan", "whitening"]


def test_a_round_finds_people_whom_their_poses_had_split():
    features, people = people_in_one_pose_or_another()
    found = [
        adjusted_rand_score(people, Clusterer(replace(CONFIG, wccn_rounds=rounds))(features).labels.numpy())
        for rounds in (0, 1)
    ]
    assert found[1] > found[0] + 0.1


@pytest.mark.parametrize("shrinkage", [1e-9, 1e-7])
def test_a_small_shrinkage_of_few_images_stays_finite(shrinkage):
    """Rounding makes the smallest eigenvalues of a covariance of low rank negative."""
    features = F.normalize(torch.randn(60, 512, generator=torch.Generator().manual_seed(2)))
    whitened = within_class_normalized(features, torch.arange(60) // 6, shrinkage)
    assert bool(whitened.isfinite().all())


def test_the_truth_is_not_clustered_again():
    features, people = people_in_one_pose_or_another()
    result = Clusterer(replace(CONFIG, method="ground_truth", wccn_rounds=2))(features, identities=people)
    assert result.labels.tolist() == people.tolist() and not result.seconds


def test_outliers_only_are_left_alone():
    features = torch.eye(12)
    result = Clusterer(replace(CONFIG, wccn_rounds=2))(features)
    assert result.num_clusters == 0 and "whitening" not in result.seconds


def test_tracks_are_rows_of_the_covariance_too():
    features = blobs(6, 10)
    tracks = Tracks(torch.arange(len(features)) // 2)
    config = replace(CONFIG, k1=5, min_samples=2, tracks="must_link", wccn_rounds=1)
    labels = Clusterer(config)(features, tracks=tracks).labels
    rows = F.normalize(features.reshape(-1, 2, features.shape[1]).mean(dim=1))
    assert labels[::2].tolist() == Clusterer(replace(config, tracks="none"))(rows).labels.tolist()


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"wccn_rounds": -1}, "CLUSTERING.WCCN_ROUNDS is -1; it must be at least 0"),
        ({"wccn_shrinkage": 0.0}, "CLUSTERING.WCCN_SHRINKAGE is 0.0; it must be above 0 and at most 1"),
        ({"wccn_shrinkage": 1.5}, "CLUSTERING.WCCN_SHRINKAGE is 1.5"),
    ],
)
def test_values_out_of_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        ClusteringConfig(**wrong)
