"""Two processes equal one."""

from __future__ import annotations

from fastreid_ice.compat.launching import leave_process_group

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fastreid_ice.clustering import METHODS, Clusterer, ClusteringConfig, approximate, register_method
from fastreid_ice.clustering.methods import Method
from tests.clustering_features import blobs


def halves(features, images, config, costs):
    """A method that knows nothing of ranks, and must not be called on the second."""
    assert not dist.is_initialized() or dist.get_rank() == 0
    return torch.arange(len(features)) * 8 // len(features)


def _rank(rank, world, store, features, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    register_method("halves")(halves)
    if rank == 1:  # it is sent the index
        approximate._IVF.build = approximate._HNSW.build = None
    for number, options in enumerate(_OPTIONS):
        result = Clusterer(ClusteringConfig(k1=10, **options))(features, camids=_CAMERAS)
        torch.save((result.labels, result.num_clusters, result.knn_recall), folder / f"{rank}-{number}.pt")
    for knn in ("exact", "ivf", "hnsw"):
        one = Clusterer(ClusteringConfig(min_samples=1, knn=knn))(features[:1])  # the second rank has no rows
        assert one.labels.tolist() == [0]
    dist.barrier()  # who ends closes its connections
    leave_process_group()


_OPTIONS = [
    {},
    {"backend": "torch"},
    {"knn": "hnsw"},
    {"knn": "ivf"},
    {"method": "kmeans", "num_clusters": 30},
    {"method": "halves"},
    {"method": "ca_jaccard_dbscan"},
    {"wccn_rounds": 2},
]
_CAMERAS = torch.arange(341) % 3


def test_two_processes_equal_one(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "halves", Method(halves))
    features = blobs(31, 11, dimensions=6, spread=0.3)  # 341 images: unequal shares
    mp.spawn(_rank, (2, tmp_path / "store", features, tmp_path), nprocs=2)
    for number, options in enumerate(_OPTIONS):
        alone = Clusterer(ClusteringConfig(k1=10, **options))(features, camids=_CAMERAS)
        assert alone.num_clusters > 5
        first, second = (torch.load(tmp_path / f"{rank}-{number}.pt") for rank in range(2))
        assert torch.equal(first[0], second[0]) and torch.equal(first[0], alone.labels)
        assert first[1:] == second[1:]
        assert first[1] == alone.num_clusters
