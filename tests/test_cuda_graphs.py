"""Passes as CUDA graphs: what surrounds the recording, with graphs that record on the CPU.

``benchmarks/acceptance.py`` compares real ones.
"""

import copy
import pickle

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import pytest
import torch
from fastreid.modeling import build_model
from fastreid.utils.events import EventStorage
from torch import nn

from fastreid_ice.config_files import load_config
from fastreid_ice.engine.amp import Precision
from fastreid_ice.engine.checks import check_config
from fastreid_ice.engine.configure import adapt_to_device
from fastreid_ice.engine.loss_log import LossLog
from fastreid_ice.engine.optimizer import build_optimizer
from fastreid_ice.engine.step import TrainingStep
from fastreid_ice.modeling import cuda_graphs
from fastreid_ice.modeling.cuda_graphs import GraphedPasses
from tests import recorded_graphs
from tests.conftest import ROOT, ice_config

VIEWS = ("images", "images_key", "images_weak")


@pytest.fixture
def graphs(monkeypatch):
    return recorded_graphs.install(monkeypatch)


def batches(size):
    generator = torch.Generator().manual_seed(0)
    labels = {"targets": torch.arange(size) // 2 % 4, "camids": torch.arange(size) % 2}
    return [{view: 255 * torch.rand(size, 3, 32, 16, generator=generator) for view in VIEWS} | labels for _ in range(3)]


def train(graphed, **keys):
    """The losses of three steps, the gradients of the last, and the model behind them."""
    torch.manual_seed(0)
    cfg = ice_config(MODEL__ICE__CUDA_GRAPHS=graphed, **keys)
    model = build_model(cfg).train()
    features = torch.nn.functional.normalize(torch.randn(16, 32), dim=1)
    model.memory.rebuild(features, torch.arange(4).repeat_interleave(4), torch.arange(16) % 2)
    model.seed_shuffle(0)
    optimizer, losses = build_optimizer(cfg, model), []
    batch = batches(8)
    step = TrainingStep(model, iter(batch), optimizer, Precision(torch.device("cpu")), LossLog(1, str))
    for step.iter in range(len(batch)):
        with EventStorage(step.iter) as storage:
            step.run_step()
        model.after_step()
        losses.append({name: value[0] for name, value in storage.latest().items() if "loss" in name})
    return losses, [p.grad for p in model.parameters()], model


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


@pytest.mark.parametrize("keys", [{}, {"MODEL__ICE__UNUSED_PASSES": True}], ids=["plain", "unused"])
@pytest.mark.parametrize("chunks", [1, 2])
def test_the_same_numbers(graphs, chunks, keys):
    losses, gradients, model = train(False, MODEL__ICE__BN_CHUNKS=chunks, **keys)
    assert not graphs
    graphed_losses, graphed_gradients, graphed = train(True, MODEL__ICE__BN_CHUNKS=chunks, **keys)
    assert graphed_losses == losses
    assert_same(gradients, graphed_gradients)
    assert_same(list(model.state_dict().values()), list(graphed.state_dict().values()))


def test_each_pass_is_recorded_once(graphs):
    train(True)
    online, backward, momentum = graphs
    assert (online.replays, backward.replays, momentum.replays) == (3, 3, 6)


def test_a_layer_that_the_pass_does_not_use_has_no_gradient(graphs):
    used, unused = nn.Linear(4, 2), nn.Linear(4, 2)
    images = torch.rand(3, 4)
    features = GraphedPasses()("online", used, (used, unused), images)
    features.square().sum().backward()
    assert unused.weight.grad is None
    expected = torch.autograd.grad(used(images).square().sum(), used.weight)[0]
    assert torch.equal(used.weight.grad, expected)


def test_a_pass_without_gradient(graphs):
    layer, passes = nn.Linear(4, 2), GraphedPasses()
    with torch.no_grad():
        first = passes("momentum", layer, (layer,), torch.ones(3, 4))
        second = passes("momentum", layer, (layer,), torch.zeros(3, 4))
        assert torch.equal(first, layer(torch.ones(3, 4)))  # is not written over
    assert torch.equal(second, layer.bias.expand(3, 2)) and not second.requires_grad
    assert len(graphs) == 1


def test_new_weights_are_recorded_anew(graphs):
    _, _, model = train(True)
    precise_bn = torch.no_grad()(lambda: model(batches(8)[0]))
    for change in (lambda: model.load_state_dict(model.state_dict()), lambda: model.double().float(), precise_bn):
        assert model._graphs._recorded
        change()
        assert not model._graphs._recorded
        model.train()(batches(8)[0])


def test_a_copy_has_none(graphs):
    _, _, model = train(True)
    assert not pickle.loads(pickle.dumps(model._graphs))._recorded
    copied = copy.deepcopy(model)
    assert model._graphs._recorded and not copied._graphs._recorded
    losses = copied(batches(8)[0])
    assert all(loss.isfinite() for loss in losses.values())


def test_a_pass_that_cannot_be_recorded(graphs, monkeypatch):
    def fail(graph, **options):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", fail)
    with pytest.raises(RuntimeError, match="MODEL.ICE.CUDA_GRAPHS is True, but .*not permitted"):
        train(True)


@pytest.mark.parametrize(
    "keys, problem",
    [
        ({}, "MODEL.DEVICE cpu: it needs CUDA"),
        ({"MODEL__DEVICE": "cuda", "DATASETS__SOURCE": ("TinySource",)}, "DATASETS.SOURCE"),
        ({"MODEL__DEVICE": "cuda", "MODEL__BACKBONE__NORM": "GhostBN"}, "the norm GhostBN"),
        ({"MODEL__DEVICE": "cuda", "SOLVER__ACCUMULATION": 3}, "SOLVER.ACCUMULATION 3"),
        ({"MODEL__DEVICE": "cuda", "MODEL__FREEZE_LAYERS": ["backbone"], "SOLVER__FREEZE_ITERS": 2}, "FREEZE_LAYERS"),
        ({"MODEL__DEVICE": "cuda", "MODEL__HEADS__NORM": "syncBN", "MODEL__ICE__BN_CHUNKS": 1}, "syncBN"),
    ],
)
def test_what_does_not_go_with_it(keys, problem):
    with pytest.raises(ValueError, match=f"MODEL.ICE.CUDA_GRAPHS is True, which does not go with .*{problem}"):
        check_config(ice_config(MODEL__ICE__CUDA_GRAPHS=True, **keys))


def test_off_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = load_config(ROOT / "configs/ICE/market.yml", ["MODEL.ICE.CUDA_GRAPHS", True])
    assert "MODEL.ICE.CUDA_GRAPHS is False: it needs CUDA" in adapt_to_device(cfg)
    assert cfg.MODEL.ICE.CUDA_GRAPHS is False


def test_not_in_several_processes(monkeypatch):
    """Within DistributedDataParallel a recording fails; seen on an H100 with torch 2.11, in a group of one."""
    monkeypatch.setattr("fastreid_ice.engine.checks.comm.get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="does not go with 2 processes"):
        check_config(ice_config(MODEL__ICE__CUDA_GRAPHS=True, MODEL__DEVICE="cuda"))


class _Replaces(nn.Module):
    """As fastreid's GhostBN: the statistics are another tensor after each pass."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(dim=0)
        return self.layer(x - self.mean)


def test_a_buffer_that_is_replaced(graphs):
    module = _Replaces()
    with pytest.raises(RuntimeError, match="its buffer mean is another tensor after each pass"):
        GraphedPasses()("online", module, (module,), torch.rand(3, 4))


def test_a_second_batch_before_the_backward_pass(graphs):
    layer, passes = nn.Linear(4, 2), GraphedPasses()
    first, second = (passes("online", layer, (layer,), torch.rand(3, 4)) for _ in range(2))
    second.sum().backward()
    with pytest.raises(RuntimeError, match="a second batch went through the model"):
        first.sum().backward()


def test_a_weight_of_two_modules_counts_once(graphs):
    layer = nn.Linear(4, 2)
    images = torch.rand(3, 4)
    GraphedPasses()("online", layer, (layer, nn.Sequential(layer)), images).sum().backward()
    assert torch.equal(layer.bias.grad, torch.full((2,), 3.0))


def test_a_weight_that_is_used_several_times_in_mixed_precision(graphs):
    """Its gradients are summed in bfloat16, by the graph too; after a step the graph casts the new weight."""
    torch.manual_seed(0)
    layer, images, passes = nn.Linear(8, 8), torch.randn(16, 8), GraphedPasses()

    def run(rows):
        return sum(layer(scale * rows) for scale in (1, 3, 7))

    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):  # keeps the copy that the first of the two makes
            features = [run(images), passes("online", cuda_graphs._within(torch.bfloat16, run), (layer,), images)]
        assert torch.equal(*features)
        expected, given = (torch.autograd.grad(rows.float().square().sum(), layer.weight)[0] for rows in features)
        assert torch.equal(expected, given)
        with torch.no_grad():
            layer.weight -= 0.01 * expected


def test_the_model_itself_refuses_a_source():
    with pytest.raises(ValueError, match="does not go with DATASETS.SOURCE"):
        build_model(ice_config(MODEL__ICE__CUDA_GRAPHS=True, DATASETS__SOURCE=("TinySource",)))
