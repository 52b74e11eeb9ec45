"""Clustering against hand-made cases, the dense definitions and the reference code's numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from benchmarks import dense as reference
from fastreid_ice.clustering import (
    Clusterer,
    ClusteringConfig,
    cluster_features,
    dbscan,
    jaccard_distances,
    k_reciprocal_encoding,
    nearest_neighbors,
)
from fastreid_ice.clustering.torch_ops.sparse_rows import SparseRows

DATA = Path(__file__).parent / "data"
BACKENDS = ["numba", "torch"]


def unit_rows(rows):
    rows = torch.as_tensor(np.asarray(rows), dtype=torch.float32)
    return torch.nn.functional.normalize(rows, dim=1)


def circle(*degrees):
    radians = np.deg2rad(degrees)
    return unit_rows(np.stack([np.cos(radians), np.sin(radians)], axis=1))


def dense(matrix):
    """Any of the two sparse kinds -> dense array, stored zeros told apart by NaN elsewhere."""
    if isinstance(matrix, SparseRows):
        matrix = sparse.csr_array(tuple(part.numpy() for part in (matrix.values, matrix.indices, matrix.indptr)))
        matrix.resize((len(matrix.indptr) - 1,) * 2)
    full = np.full(matrix.shape, np.nan)
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    full[rows, matrix.indices] = matrix.data
    return full


def encode(features, k1, k2, backend):
    similarities, ranks = nearest_neighbors(features, k1, backend=backend)
    return k_reciprocal_encoding(features, ranks, similarities, k1, k2, backend=backend)


# By hand


@pytest.mark.parametrize("backend", BACKENDS)
def test_neighbors_by_hand(backend):
    # Angles 0, 10, 30, 90: image 2 (30 degrees) has 1 at 20, 0 at 30, 3 at 60 degrees.
    similarities, ranks = nearest_neighbors(circle(0, 10, 30, 90), 3, backend=backend)
    assert ranks.tolist() == [[0, 1, 2], [1, 0, 2], [2, 1, 0], [3, 2, 1]]
    expected = np.cos(np.deg2rad([[0, 10, 30], [0, 10, 20], [0, 20, 30], [0, 60, 80]]))
    assert similarities.numpy() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_neighbors_are_ordered_by_index(backend):
    features = circle(90, 0, 0, 90, 0)
    assert nearest_neighbors(features, 4, backend=backend)[1].tolist() == [
        [0, 3, 1, 2],
        [1, 2, 4, 0],
        [1, 2, 4, 0],
        [0, 3, 1, 2],
        [1, 2, 4, 0],
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_encoding_by_hand(backend):
    # k1 = 2: lists 0: 0 1, 1: 1 0, 2: 2 1. Image 2 has 1, but 1 has not 2: it stands alone.
    # Images 0 and 1 are 10 degrees apart: squared distance 2 - 2 cos 10 = 0.030384.
    weights = dense(encode(circle(0, 10, 30), 2, 1, backend))
    near = 1 / (1 + np.exp(-(2 - 2 * np.cos(np.deg2rad(10)))))
    x = np.nan
    expected = np.array([[near, 1 - near, x], [1 - near, near, x], [x, x, 1]])
    assert weights == pytest.approx(expected, nan_ok=True, abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_query_expansion_by_hand(backend):
    # k2 = 2: rows of 0 and 1 become their mean (1/2, 1/2); row 2 the mean of rows 2 and 1.
    weights = np.nan_to_num(dense(encode(circle(0, 10, 30), 2, 2, backend)))
    near = 1 / (1 + np.exp(-(2 - 2 * np.cos(np.deg2rad(10)))))
    assert weights == pytest.approx(np.array([[0.5, 0.5, 0], [0.5, 0.5, 0], [(1 - near) / 2, near / 2, 0.5]]), abs=1e-6)


def rows_of(matrix, backend):
    matrix = sparse.csr_array(np.asarray(matrix, np.float32))
    matrix.sort_indices()
    if backend == "numba":
        return matrix
    indptr, indices = matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64)
    return SparseRows(*(torch.from_numpy(part) for part in (indptr, indices, matrix.data)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_jaccard_by_hand(backend):
    # Overlaps: 0 and 1 share 1/2 + 1/4 = 3/4, distance 1 - 0.75 / 1.25 = 0.4; 1 and 2 share 1/4, distance 6 / 7.
    encoding = rows_of([[0.5, 0.5, 0, 0], [0.5, 0.25, 0.25, 0], [0, 0, 0.5, 0.5], [0, 0, 0, 1]], backend)
    distances = dense(jaccard_distances(encoding, 0.4))
    x = np.nan
    assert distances == pytest.approx(
        np.array([[0, 0.4, x, x], [0.4, 0, x, x], [x, x, 0, x], [x, x, x, 0]]), nan_ok=True, abs=1e-6
    )
    assert np.isnan(dense(jaccard_distances(encoding, 0.39))[0, 1])
    assert dense(jaccard_distances(encoding, 0.9))[1, 2] == pytest.approx(6 / 7)
    # Images that share nothing are no pair, whatever eps below 1.
    assert np.isfinite(dense(jaccard_distances(encoding, 1 - 1e-9))).tolist() == [
        [True, True, False, False],
        [True, True, True, False],
        [False, True, True, True],
        [False, False, True, True],
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_border_image_joins_the_lowest_cluster(backend):
    # 1-2-3 and 4-5-6 are cliques of core images, 0 touches 4 and 1: a border image, first in order. Numbering is by
    # first CORE image: 1's clique is cluster 0. Image 7 touches only 0, which is no core image: an outlier.
    adjacency = np.eye(8)
    for a, b in [(1, 2), (1, 3), (2, 3), (4, 5), (4, 6), (5, 6), (0, 4), (0, 7)]:
        adjacency[a, b] = adjacency[b, a] = 1
    assert dbscan(rows_of(adjacency, backend), min_samples=4).tolist() == [0, -1, -1, -1, 0, 0, 0, -1]
    adjacency[0, 1] = adjacency[1, 0] = 1
    assert dbscan(rows_of(adjacency, backend), min_samples=4).tolist() == [0, 0, 0, 0, 0, 0, 0, 0]
    adjacency[0, 7] = adjacency[7, 0] = 0
    adjacency[1, 7] = adjacency[7, 1] = 1
    assert dbscan(rows_of(adjacency, backend), min_samples=4).tolist() == [0, 0, 0, 0, 1, 1, 1, 0]


# The dense definitions


def problem(kind, images, dimensions, seed):
    """Features that are generic, tightly clustered, full of duplicates, or full of ties."""
    rng = np.random.default_rng(seed)
    if kind == "duplicates":
        return unit_rows(
            rng.normal(size=(max(1, images // 8), dimensions))[rng.integers(0, max(1, images // 8), images)]
        )
    if kind == "ties":
        return unit_rows(rng.integers(-1, 2, size=(images, min(dimensions, 4))))
    if kind == "clusters":
        centers = rng.normal(size=(max(1, images // 6), dimensions))
        return unit_rows(centers[rng.integers(0, len(centers), images)] + 0.3 * rng.normal(size=(images, dimensions)))
    return unit_rows(rng.normal(size=(images, dimensions)))


@settings(max_examples=240, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(["generic", "clusters", "duplicates", "ties"]),
    images=st.integers(1, 60),
    dimensions=st.integers(1, 12),
    k1=st.integers(1, 32),
    k2=st.integers(1, 8),
    eps=st.sampled_from([0.2, 0.4, 0.5, 0.55, 0.6, 0.7, 0.9]),
    min_samples=st.integers(1, 6),
    seed=st.integers(0, 10**6),
)
def test_labels_equal_the_dense_definition(kind, images, dimensions, k1, k2, eps, min_samples, seed):
    features = problem(kind, images, dimensions, seed)
    k2 = min(k1, k2)
    expected = reference.dense_clusters(features, k1, k2, eps, min_samples).tolist()
    for backend in BACKENDS:
        config = ClusteringConfig(k1=k1, k2=k2, eps=eps, min_samples=min_samples, backend=backend)
        assert Clusterer(config)(features).labels.tolist() == expected, backend


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["clusters", "duplicates", "ties"])
def test_stages_equal_the_dense_definition(backend, kind):
    features = problem(kind, 300, 16, seed=5)
    encoding = reference.dense_encoding(features, 20, 6)
    ours = encode(features, 20, 6, backend)
    assert np.nan_to_num(dense(ours)) == pytest.approx(encoding, abs=1e-6)
    distances = reference.dense_jaccard(encoding)
    found = dense(jaccard_distances(ours, 0.6))
    assert np.array_equal(np.isnan(found), distances > 0.6 + 1e-6)
    assert found == pytest.approx(np.where(distances > 0.6 + 1e-6, np.nan, distances), abs=2e-6, nan_ok=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_jaccard_of_many_short_rows(backend):
    # The sums of a row lie in a few parts of all, and its pairs are few enough to be put in order by insertion.
    rng = np.random.default_rng(1)
    rows, columns = np.repeat(np.arange(700), 2), rng.integers(0, 150, 1400)
    encoding = sparse.csr_array((np.full(1400, 0.5, np.float32), (rows, columns)), shape=(700, 700)).toarray()
    expected = reference.dense_jaccard(encoding)
    found = dense(jaccard_distances(rows_of(encoding, backend), 0.7))
    assert found == pytest.approx(np.where(expected > 0.7, np.nan, expected), abs=1e-6, nan_ok=True)
    assert np.isfinite(found).sum() > 700 * 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_budget_does_not_change_the_result(backend):
    features = problem("clusters", 700, 16, seed=2)
    expected = cluster_features(features)
    config = ClusteringConfig(backend=backend, memory_budget_mb=1)
    assert torch.equal(Clusterer(config)(features).labels, expected)
    assert expected.max() > 10


# The search


@pytest.mark.parametrize("kind", ["generic", "clusters", "duplicates", "ties"])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_pruned_search_is_exact(kind, bfloat16, monkeypatch):
    # 2,500 images: several blocks, the last one not full. Ties: 81 distinct rows, so lists full of equal neighbours.
    monkeypatch.setattr("fastreid_ice.clustering.numba_kernels.estimates.bfloat16_is_faster", lambda: bfloat16)
    features = problem(kind, 2500, 48, seed=3)
    similarities, ranks = nearest_neighbors(features, 30, backend="numba")
    expected, order = reference.dense_neighbors(features, 30)
    assert np.array_equal(ranks.numpy(), order)
    assert similarities.numpy() == pytest.approx(np.take_along_axis(expected, order, axis=1), abs=1e-6)
    some = nearest_neighbors(features, 30, rows=(1000, 2100), backend="numba")
    assert torch.equal(some[1], ranks[1000:2100]) and torch.equal(some[0], similarities[1000:2100])


def test_collapsed_features_are_searched_exactly():
    # A collapsed network: all features within 1e-3 of each other. Estimates cannot tell them apart.
    rng = np.random.default_rng(0)
    features = unit_rows(rng.normal(size=32) + 1e-3 * rng.normal(size=(1500, 32)))
    expected = reference.dense_neighbors(features, 30)[1]
    for backend in BACKENDS:
        assert np.array_equal(nearest_neighbors(features, 30, backend=backend)[1].numpy(), expected)


def test_tf32_setting_is_put_back():
    before = torch.backends.cuda.matmul.allow_tf32
    nearest_neighbors(circle(0, 10, 20), 2, backend="torch", allow_tf32=not before)
    assert torch.backends.cuda.matmul.allow_tf32 == before


# The reference code's numbers


@pytest.fixture(scope="module")
def market():
    parts = [np.load(DATA / f"clustering_market1501_features_{part}.npz")["features_float16"] for part in range(4)]
    features = np.concatenate(parts).astype(np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_small(backend):
    golden = np.load(DATA / "clustering_small.npz")
    result = Clusterer(ClusteringConfig(backend=backend))(golden["features"])
    assert np.array_equal(result.labels.numpy(), golden["labels"])
    pairs = np.load(DATA / "clustering_small_distances.npz")
    features = torch.from_numpy(golden["features"])
    found = dense(jaccard_distances(encode(features, 30, 6, backend), 0.7))
    assert found[pairs["rows"], pairs["columns"]] == pytest.approx(pairs["distances"], abs=2e-6)
    assert np.isfinite(found[np.triu_indices(len(found))]).sum() == len(pairs["rows"])


def golden_eps():
    return [name for name in np.load(DATA / "clustering_market1501_labels.npz").files if name.startswith("labels")]


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_market1501(market, backend):
    golden = np.load(DATA / "clustering_market1501_labels.npz")
    encoding = encode(torch.from_numpy(market), 30, 6, backend)
    assert len(golden_eps()) == 4
    for name in golden_eps():
        labels = dbscan(jaccard_distances(encoding, float(name.rpartition("_")[2])), 4)
        assert np.array_equal(labels.numpy(), golden[name]), name
        assert golden[name].max() > 200


def test_golden_distances_of_market1501(market):
    golden = np.load(DATA / "clustering_market1501_labels.npz")
    encoding = encode(torch.from_numpy(market), 30, 6, "numba")
    distances = jaccard_distances(encoding, 0.99).tocsr()[golden["jaccard_rows"]].toarray()
    spots = golden["spot_rows"], golden["spot_columns"]
    near = golden["spot_distances"] < 0.985
    found = distances[spots[0][near], spots[1][near]]
    assert found == pytest.approx(golden["spot_distances"][near].astype(np.float32), abs=5e-4)  # float16 numbers
