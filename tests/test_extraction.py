"""Features of all images: put together from the processes' shares, in the memory that they need and no longer."""

from __future__ import annotations

from types import SimpleNamespace

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)
from fastreid_ice.compat.launching import leave_process_group

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

from fastreid_ice.engine.extraction import FeatureExtractor
from fastreid_ice.engine.hooks import clustering
from tests.tensor_sizes import Sizes


class Double(nn.Module):
    """A model whose embeddings are twice its images."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, batch):
        return self.factor * batch["images"]


def batches(rows):
    return [{"images": part} for part in rows.split(3)] if len(rows) else []


def images(count):
    return torch.randn(count, 50, generator=torch.Generator().manual_seed(count))


COUNTS = (21, 1)  # unequal shares; no image for the second process


def _rank(rank, store, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    dist.all_gather = None  # shares gathered as a list, and put together behind it, take the memory twice
    for count in COUNTS:
        share = images(count)[rank * (count // 2 + 1) :][: count // 2 + 1]
        with Sizes() as sizes:
            found = FeatureExtractor(count)(Double(), batches(share))
        assert count == 1 or sum(size >= found.nbytes for size in sizes.made) == 1
        torch.save(found.clone(), folder / f"{count}-{rank}.pt")
    dist.barrier()  # who ends closes its connections
    leave_process_group()


def test_shares_are_put_together_in_one_piece_of_memory(tmp_path):
    mp.spawn(_rank, (tmp_path / "store", tmp_path), nprocs=2)
    for count in COUNTS:
        expected = F.normalize(2 * images(count), dim=1)
        for rank in range(2):
            assert torch.equal(torch.load(tmp_path / f"{count}-{rank}.pt"), expected)


def test_nothing_is_kept_between_two_extractions():
    extract = FeatureExtractor(10)
    first = extract(Double(), batches(images(10)))
    before = first.clone()
    second = extract(Double(), batches(-images(10)))
    assert torch.equal(first, before) and torch.equal(second, -before)
    assert not any(isinstance(value, torch.Tensor) for value in vars(extract).values())
    assert not first.is_inference() and not first.requires_grad


@pytest.mark.parametrize(("device", "calls"), [("cuda:1", 1), ("cpu", 0)])
def test_the_memory_of_a_clustering_goes_back_to_a_gpu_before_training(monkeypatch, device, calls):
    """No GPU here: torch's call is stood in for."""
    order = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: order.append("returned"))
    monkeypatch.setattr(clustering.ClusteringHook, "_cluster", lambda self: order.append("clustered"))
    monkeypatch.setattr(clustering, "unwrap", lambda model: model)
    monkeypatch.setattr(clustering, "seed_all_rng", _begin)
    hook = object.__new__(clustering.ClusteringHook)
    hook.cfg, hook.state, hook.labels = (
        SimpleNamespace(CLUSTERING=SimpleNamespace(PERIOD=1)),
        SimpleNamespace(seed=0),
        None,
    )
    model = SimpleNamespace(device=torch.device(device))
    hook.trainer = SimpleNamespace(epoch=0, iter=0, storage=SimpleNamespace(), model=model)
    with pytest.raises(_BegunError):
        hook.before_epoch()
    assert order == ["clustered", *["returned"] * calls]


class _BegunError(Exception):
    """The epoch's random numbers are seeded: what follows is training."""


def _begin(seed):
    raise _BegunError
