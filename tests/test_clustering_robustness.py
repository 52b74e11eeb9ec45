"""What may go wrong with features, and what else the clusterer offers."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fastreid_ice.clustering import (
    Clusterer,
    ClusteringConfig,
    approximate_neighbors,
    cluster_features,
    kmeans,
    nearest_neighbors,
    prepare_features,
)

BACKENDS = ["numba", "torch"]


def blobs(identities, images_each, dimensions=32, spread=0.1, seed=0):
    rng = np.random.default_rng(seed)
    centers = np.repeat(rng.normal(size=(identities, dimensions)), images_each, axis=0)
    rows = centers + spread * rng.normal(size=centers.shape)
    return torch.nn.functional.normalize(torch.from_numpy(rows).float(), dim=1)


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


@pytest.mark.parametrize(
    "wrong, key",
    [
        ({"eps": 1.5}, "CLUSTERING.EPS"),
        ({"eps": 0}, "CLUSTERING.EPS"),
        ({"k1": 0}, "CLUSTERING.K1"),
        ({"k1": 4, "k2": 6}, "CLUSTERING.K2"),
        ({"min_samples": 0}, "CLUSTERING.MIN_SAMPLES"),
        ({"knn": "annoy"}, "CLUSTERING.KNN"),
        ({"knn_recall": 0}, "CLUSTERING.KNN_RECALL"),
        ({"knn_recall": 1.1}, "CLUSTERING.KNN_RECALL"),
        ({"method": "infomap"}, "CLUSTERING.METHOD"),
        ({"backend": "cuda"}, "CLUSTERING.BACKEND"),
        ({"method": "kmeans"}, "CLUSTERING.NUM_CLUSTERS"),
    ],
)
def test_wrong_configuration_names_the_key(wrong, key):
    with pytest.raises(ValueError, match=key):
        ClusteringConfig(**wrong)


def test_camids_of_another_length():
    with pytest.raises(ValueError, match="16 features but 15 camera ids"):
        Clusterer()(blobs(2, 8), camids=np.zeros(15))


def test_result_counts_and_costs():
    features = torch.zeros(51, 33)
    features[:50, :32], features[50, 32] = blobs(5, 10), 1  # at right angles to all others
    result = Clusterer(ClusteringConfig(k1=10, k2=1))(features, camids=[0] * 51)
    assert (result.num_clusters, result.num_outliers, result.knn_recall) == (5, 1, None)
    assert list(result.seconds) == list(result.peak_memory_mb) == ["search", "reciprocal", "jaccard", "dbscan"]
    assert result.labels.dtype == torch.int64 and result.labels.device.type == "cpu"


# Approximate search and k-means


def share_of(truth, ranks):
    """Share of the true lists (n, K) that ``ranks`` (n, K) holds."""
    return (truth[:, :, None] == ranks[:, None, :]).any(dim=2).double().mean().item()


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_approximate_search(kind):
    features = blobs(60, 20, spread=0.2)
    similarities, ranks, recall = approximate_neighbors(features, 20, kind)
    exact = nearest_neighbors(features, 20)
    found = share_of(exact[1], ranks)
    assert found > 0.9
    assert recall == pytest.approx(found, abs=0.05)
    same = (ranks == exact[1]).all(dim=1)
    assert torch.allclose(similarities[same], exact[0][same], atol=1e-6)
    result = Clusterer(ClusteringConfig(k1=20, knn=kind))(features)
    assert result.knn_recall == recall
    assert result.labels.tolist() == np.repeat(range(60), 20).tolist()


def test_ivf_probes_as_many_cells_as_the_recall_needs():
    rng = np.random.default_rng(0)
    features = prepare_features(rng.normal(size=(4000, 32)))  # no clusters: neighbours lie in many cells
    exact = nearest_neighbors(features, 10)
    _, ranks, recall = approximate_neighbors(features, 10, "ivf", target_recall=1.0)
    assert recall == 1 and share_of(exact[1], ranks) > 0.999
    recalls = [approximate_neighbors(features, 10, "ivf", target_recall=target)[2] for target in (0.01, 0.6, 0.9)]
    assert recalls == sorted(recalls) and recalls[0] < 0.6 <= recalls[1] < 0.9 <= recalls[2] < 1


def test_a_recall_out_of_reach_is_said(monkeypatch, caplog):
    from fastreid_ice.clustering import approximate

    monkeypatch.setattr(approximate, "HNSW_MOST", 1)
    features = prepare_features(np.random.default_rng(0).normal(size=(4000, 32)))
    _, _, recall = approximate_neighbors(features, 2, "hnsw", target_recall=0.99)
    assert recall < 0.99
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "CLUSTERING.KNN_RECALL 0.99" in warning.getMessage()


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_approximate_search_among_identical_images(kind):
    _, ranks, recall = approximate_neighbors(torch.ones(50, 4) / 2, 60, kind)
    assert ranks.shape == (50, 50) and ranks.min() == 0
    assert recall == 1


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


def test_kmeans_with_too_many_clusters():
    with pytest.raises(ValueError, match="CLUSTERING.NUM_CLUSTERS is 9, but there are only 8"):
        kmeans(blobs(1, 8), 9)


# Two processes


def _rank(rank, world, store, features, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    for number, options in enumerate(_OPTIONS):
        result = Clusterer(ClusteringConfig(k1=10, **options))(features)
        torch.save((result.labels, result.num_clusters, result.knn_recall), folder / f"{rank}-{number}.pt")
    one = Clusterer(ClusteringConfig(min_samples=1))(features[:1])  # the second rank has no rows
    assert one.labels.tolist() == [0]
    dist.destroy_process_group()


_OPTIONS = [{}, {"backend": "torch"}, {"knn": "hnsw"}, {"method": "kmeans", "num_clusters": 30}]


def test_two_processes_equal_one(tmp_path):
    features = blobs(31, 11, dimensions=6, spread=0.3)  # 341 images: unequal shares
    mp.spawn(_rank, (2, tmp_path / "store", features, tmp_path), nprocs=2)
    for number, options in enumerate(_OPTIONS):
        alone = Clusterer(ClusteringConfig(k1=10, **options))(features)
        assert alone.num_clusters > 5
        first, second = (torch.load(tmp_path / f"{rank}-{number}.pt") for rank in range(2))
        assert torch.equal(first[0], second[0]) and torch.equal(first[0], alone.labels)
        assert first[1:] == second[1:]
        assert first[1] == alone.num_clusters


def test_faiss_gpu_gives_the_candidates_where_it_is_usable(monkeypatch):
    """No GPU here: faiss's search is stood in for by what it is documented to return."""
    from fastreid_ice.clustering import faiss_gpu, neighbors

    calls = []

    def knn_gpu(resources, queries, features, k, metric, device):
        assert metric == faiss_gpu.faiss.METRIC_INNER_PRODUCT and resources == "resources" and device == 0
        calls.append(len(queries))
        return (queries @ features.t()).topk(k, dim=1)

    features = torch.nn.functional.normalize(torch.randn(90, 7, generator=torch.Generator().manual_seed(0)), dim=1)
    expected = neighbors.nearest_neighbors(features, 12, backend="torch")
    assert not faiss_gpu.is_usable(features, 12)
    monkeypatch.setattr(faiss_gpu, "is_usable", lambda features, k: True)
    monkeypatch.setattr(faiss_gpu, "_resources", lambda device: "resources")
    monkeypatch.setattr(faiss_gpu.faiss, "knn_gpu", knn_gpu, raising=False)
    found = neighbors.nearest_neighbors(features, 12, backend="torch")
    assert calls and all(torch.equal(a, b) for a, b in zip(found, expected))
