"""The approximate search against the exact one."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
import torch

from fastreid_ice.clustering import (
    Clusterer,
    ClusteringConfig,
    approximate,
    approximate_neighbors,
    nearest_neighbors,
    prepare_features,
)
from tests.clustering_features import blobs


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
    monkeypatch.setattr(approximate, "HNSW_MOST", 1)
    features = prepare_features(np.random.default_rng(0).normal(size=(4000, 32)))
    _, _, recall = approximate_neighbors(features, 2, "hnsw", target_recall=0.999)
    assert recall < 0.999
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "CLUSTERING.KNN_RECALL 0.999" in warning.getMessage()


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_approximate_search_among_identical_images(kind):
    _, ranks, recall = approximate_neighbors(torch.ones(50, 4) / 2, 60, kind)
    assert ranks.shape == (50, 50) and ranks.min() == 0
    assert recall == 1


def test_an_index_from_its_structure_is_the_one_that_faiss_builds():
    """Cells that are filled from a list, and a graph that is sent without the vectors: the same lists bit for bit."""
    vectors = prepare_features(np.random.default_rng(0).normal(size=(4000, 32))).numpy()
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # else a graph differs from run to run
    try:
        graph = faiss.IndexHNSWFlat(32, approximate.HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction, graph.hnsw.efSearch = approximate.HNSW_BUILD, 20
        cells = faiss.IndexIVFFlat(faiss.IndexFlatIP(32), 32, 102, faiss.METRIC_INNER_PRODUCT)
        cells.cp.spherical, cells.cp.niter, cells.cp.max_points_per_centroid = True, 10, 64
        cells.train(vectors)
        cells.nprobe = 4
        for index, ours in ((graph, approximate._HNSW), (cells, approximate._IVF)):
            index.add(vectors)
            expected = index.search(vectors, 20)
            structure = ours.build(vectors)
            found = ours(vectors, structure, 20)(vectors, 20)
            assert all(np.array_equal(a.numpy(), b) for a, b in zip(found, expected))
            assert sum(part.nbytes for part in structure) < 320 * len(vectors) + vectors.nbytes // 10
    finally:
        faiss.omp_set_num_threads(threads)
