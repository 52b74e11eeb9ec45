"""The camera-aware Jaccard distance: by hand, against the dense definition, and what it needs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import DBSCAN
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.dense import dense_camera_aware_encoding, dense_jaccard
from fastreid_ice.clustering import (
    Clusterer,
    ClusteringConfig,
    Tracks,
    ca_jaccard,
    camera_aware_encoding,
    camera_aware_neighbors,
)
from fastreid_ice.clustering.eps_sweep import sweep
from tests.clustering_features import BACKENDS, blobs
from tests.test_clustering import circle, dense

METHOD = "ca_jaccard_dbscan"
FEW = {"k1_intra": 1, "k1_inter": 1, "k2_intra": 1, "k2_inter": 1, "min_samples": 2}  # for a few rows


def seen_by_cameras(identities=12, images_each=8, cameras=3, shift=0.25, seed=0):
    """Blobs whose images of one camera are moved alike: (N, D) features and (N,) cameras."""
    features = blobs(identities, images_each, spread=0.15, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    camids = torch.randint(cameras, (len(features),), generator=generator)
    moved = features + shift * torch.randn(cameras, features.shape[1], generator=generator)[camids] / 5
    return torch.nn.functional.normalize(moved, dim=1), camids


def encoding_of(features, camids, k1, k2):
    lists = camera_aware_neighbors(features, camids, k1[0] + 1, k1[1] + 1)
    return np.nan_to_num(dense(camera_aware_encoding(features, *lists, *k2)))


def labels_of(features, camids, **options):
    return Clusterer(ClusteringConfig(METHOD, **options))(features, camids=camids).labels


def test_neighbors_by_hand():
    # Cameras 0 0 1 1 1 at 0, 10, 12, 40, 90 degrees.
    intra, inter = camera_aware_neighbors(circle(0, 10, 12, 40, 90), torch.tensor([5, 5, 2, 2, 2]), 3, 2)
    assert intra.tolist() == [[0, 1, -1], [1, 0, -1], [2, 3, 4], [3, 2, 4], [4, 3, 2]]
    assert inter.tolist() == [[2, 3], [2, 3], [1, 0], [1, 0], [1, 0]]


def test_encoding_by_hand():
    # Two cameras, an image each at 0 and 60 degrees: each has itself and the other, whose squared distance is 1.
    features, camids = circle(0, 60), torch.tensor([0, 1])
    own = 1 / (1 + np.exp(-1))
    assert encoding_of(features, camids, (1, 1), (1, 0)) == pytest.approx(np.array([[own, 1 - own], [1 - own, own]]))
    assert encoding_of(features, camids, (1, 1), (1, 1)) == pytest.approx(np.full((2, 2), 0.5))


@pytest.mark.parametrize("k2", [(1, 0), (2, 4), (3, 3)])
@pytest.mark.parametrize("k1", [(5, 20), (1, 4)])
def test_encoding_is_the_dense_one(k1, k2):
    k2 = min(k2[0], k1[0] + 1), min(k2[1], k1[1] + 1)
    features, camids = seen_by_cameras()
    expected = dense_camera_aware_encoding(features, camids, k1, k2)
    assert encoding_of(features, camids, k1, k2) == pytest.approx(expected, abs=1e-6)
    assert expected.sum(axis=1) == pytest.approx(1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cameras", [1, 3, 60])  # 60: most have fewer images than an intra list
def test_labels_are_those_of_the_dense_distances(backend, cameras):
    features, camids = seen_by_cameras(cameras=cameras)
    encoding = dense_camera_aware_encoding(features, camids, (5, 20), (2, 4))
    expected = DBSCAN(0.6, min_samples=3, metric="precomputed").fit_predict(dense_jaccard(encoding))
    found = labels_of(features, camids, eps=0.6, min_samples=3, backend=backend)
    assert found.tolist() == expected.tolist()
    assert found.max() > 3


def test_one_camera_is_told(caplog):
    labels_of(blobs(3, 5), torch.full((15,), 7), min_samples=2)
    assert "All images are of one camera: CLUSTERING.METHOD ca_jaccard_dbscan has no neighbours from" in caplog.text


def test_two_cameras_find_each_other_where_plain_lists_do_not():
    """Each person has 6 images a camera; the cameras differ more than the people."""
    people = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    noise = 0.2 * torch.randn(8, 2, 6, 16, generator=torch.Generator().manual_seed(2))
    shift = torch.randn(2, 16, generator=torch.Generator().manual_seed(3))
    features = (people[:, None, None] + shift[None, :, None] + noise).reshape(96, 16)
    camids = torch.arange(2).repeat_interleave(6).repeat(8)
    plain = Clusterer(ClusteringConfig(k1=8, k2=4))(features)
    aware = Clusterer(ClusteringConfig(METHOD, k1_inter=8))(features, camids=camids)
    assert plain.labels.tolist() == [image // 6 for image in range(96)]
    right = aware.labels == torch.arange(96) // 12
    assert aware.num_clusters == 8 and right.sum() >= 95  # one image is an outlier


@pytest.mark.parametrize("backend", BACKENDS)
def test_degenerate(backend):
    cameras = torch.arange(100) % 3
    assert labels_of(torch.ones(100, 8), cameras, backend=backend).tolist() == [0] * 100
    assert labels_of(torch.ones(1, 3), [0], backend=backend).tolist() == [-1]
    assert labels_of(blobs(2, 5), torch.arange(10), backend=backend, min_samples=2).tolist() == [0] * 5 + [1] * 5


def test_many_equal_neighbours_are_ordered_by_index():
    """More than the spare candidates: the rows are searched once more in float64."""
    intra, inter = camera_aware_neighbors(torch.ones(90, 4) / 2, torch.arange(90) % 2, 3, 4)
    assert intra.tolist() == [[0, 2, 4], [1, 3, 5]] * 45
    assert inter.tolist() == [[1, 3, 5, 7], [0, 2, 4, 6]] * 45


class Largest(TorchDispatchMode):
    """Remembers the most elements of a tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return made


def test_nothing_is_n_by_n():
    features, camids = seen_by_cameras(identities=300, images_each=10)
    with Largest() as largest:
        result = Clusterer(ClusteringConfig(METHOD, backend="torch", memory_budget_mb=1))(features, camids=camids)
    assert result.num_clusters > 100
    assert largest.elements < len(features) ** 2 / 10
    assert torch.equal(labels_of(features, camids, backend="numba"), result.labels)


def test_stages_are_recorded():
    features, camids = seen_by_cameras()
    result = Clusterer(ClusteringConfig(METHOD))(features, camids=camids)
    assert list(result.seconds) == ["search", "reciprocal", "jaccard", "dbscan"]


def test_with_tracks_and_camera_normalization():
    features, camids = seen_by_cameras(cameras=2)
    order = np.lexsort((camids, np.arange(96) // 8))  # a track is of one person and one camera
    features, camids = features[order], camids[order]
    ids = torch.unique(torch.arange(96) // 8 * 2 + camids, return_inverse=True)[1]
    assert len(ids.unique()) == 24
    config = ClusteringConfig(METHOD, tracks="must_link", camera_normalization=True, **FEW)
    labels = Clusterer(config)(features, camids=camids, tracks=Tracks(ids, camids)).labels
    assert all(len(labels[ids == track].unique()) == 1 for track in ids.unique())
    assert labels.max() > 2


def test_cameras_are_needed():
    with pytest.raises(ValueError, match="CLUSTERING.METHOD ca_jaccard_dbscan needs camera ids, and there are none"):
        Clusterer(ClusteringConfig(METHOD))(blobs(2, 5))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"knn": "hnsw"}, "CLUSTERING.KNN is 'hnsw', but CLUSTERING.METHOD ca_jaccard_dbscan"),
        ({"k1_intra": 0}, "CLUSTERING.K1_INTRA is 0"),
        ({"k1_inter": 0}, "CLUSTERING.K1_INTER is 0"),
        ({"k2_intra": 0}, "CLUSTERING.K2_INTRA is 0"),
        ({"k2_inter": -1}, "CLUSTERING.K2_INTER is -1; it must be at least 0"),
        ({"k2_inter": 22}, r"CLUSTERING.K2_INTER is 22; .* at most CLUSTERING.K1_INTER \(now 20\) \+ 1"),
    ],
)
def test_wrong_parameters_name_their_keys(options, message):
    with pytest.raises(ValueError, match=message):
        ClusteringConfig(METHOD, **options)


def test_the_sweep_knows_plain_distances_only():
    with pytest.raises(ValueError, match="CLUSTERING.METHOD is 'ca_jaccard_dbscan'.*jaccard_dbscan only"):
        sweep(blobs(2, 5), [0.5], [2], ClusteringConfig(METHOD))


def test_rows_of_a_rank_are_those_of_the_whole():
    features, camids = seen_by_cameras()
    whole = camera_aware_neighbors(features, camids, 6, 21)
    for rows in ((0, 40), (40, 96), (96, 96)):
        part = camera_aware_neighbors(features, camids, 6, 21, rows)
        assert all(torch.equal(some, every[slice(*rows)]) for some, every in zip(part, whole))
    assert ca_jaccard.NAME == METHOD
