"""One group for many parameters: the same numbers, and old checkpoints go on as if nothing had changed."""

from types import SimpleNamespace

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import pytest
import torch
from fastreid.modeling import build_model
from fastreid.solver import build_optimizer as build_with_a_group_per_parameter

import fastreid_ice.modeling  # noqa: F401  (registers the ICE meta-architecture)
from fastreid_ice.engine import ICETrainer
from fastreid_ice.engine import optimizer as ours
from fastreid_ice.engine.hooks.training import FrozenLayersHook
from fastreid_ice.engine.optimizer import adapt_checkpoint, build_optimizer
from tests import test_trajectories, tiny  # noqa: F401  (tiny registers the backbone)
from tests.conftest import ice_config, load_numbers

BACKBONE = {"MODEL__BACKBONE__NAME": "build_two_convolutions", "MODEL__BACKBONE__FEAT_DIM": 32}
# Four kinds of parameter: convolutions, norms, biases of norms, the head.
FOUR_KINDS = {"SOLVER__WEIGHT_DECAY_NORM": 1e-4, "SOLVER__BIAS_LR_FACTOR": 2.0, "SOLVER__HEADS_LR_FACTOR": 3.0}


def build(builder, **overrides):
    torch.manual_seed(0)
    cfg = ice_config(**BACKBONE, **overrides)
    model = build_model(cfg)
    return model, builder(cfg, model)


def upstream(cfg, model):
    return build_with_a_group_per_parameter(cfg, model)[0]


def move(model, optimizer, steps, seed=0):
    """Steps on gradients from a seeded generator."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def assert_equal_weights(first, second):
    for (name, weight), other in zip(first.named_parameters(), second.parameters()):
        assert torch.equal(weight, other), name


def test_a_handful_of_groups():
    model, optimizer = build(build_optimizer)
    trained = sum(parameter.requires_grad for parameter in model.parameters())
    assert [len(group["params"]) for group in optimizer.param_groups] == [trained] and trained == 7
    _, optimizer = build(build_optimizer, **FOUR_KINDS)
    options = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert len(set(options)) == len(options) == 4


@pytest.mark.parametrize("solver", ["Adam", "SGD", "AdamW", "RMSprop"])
@pytest.mark.parametrize("clip", [False, True])
def test_bit_equal_to_a_group_per_parameter(solver, clip):
    overrides = {"SOLVER__OPT": solver, "SOLVER__CLIP_GRADIENTS__ENABLED": clip, **FOUR_KINDS}
    (merged, optimizer), (single, reference) = build(build_optimizer, **overrides), build(upstream, **overrides)
    start = [parameter.detach().clone() for parameter in merged.parameters() if parameter.requires_grad]
    move(merged, optimizer, steps=4)
    move(single, reference, steps=4)
    assert_equal_weights(merged, single)
    moved = [parameter for parameter in merged.parameters() if parameter.requires_grad]
    assert all(not torch.equal(before, after) for before, after in zip(start, moved))


def frozen(steps=2, begin=0, layers=("backbone",)):
    """A model, its optimizer, and a function that makes the next step of a run that is ``begin`` steps old."""
    model, optimizer = build(build_optimizer, MODEL__FREEZE_LAYERS=list(layers), SOLVER__FREEZE_ITERS=steps)
    hook = FrozenLayersHook(model, optimizer, layers, steps)
    hook.trainer = SimpleNamespace(iter=begin)

    def step():
        hook.before_step()
        move(model, optimizer, steps=1)
        hook.trainer.iter += 1

    return model, optimizer, step


def test_frozen_layers_wait():
    model, optimizer, step = frozen()
    assert [group["freeze_status"] for group in optimizer.param_groups] == ["freeze", "normal"]
    convolution, head = model.backbone[0].weight, model.heads.bottleneck[0].weight
    start, start_head = convolution.detach().clone(), head.detach().clone()
    step()
    model.train()  # as behind an evaluation
    step()
    assert torch.equal(convolution, start) and not torch.equal(head, start_head)
    assert not model.backbone.training and model.heads.training
    step()
    assert not torch.equal(convolution, start) and model.backbone.training


def test_a_resumed_run_is_not_frozen_again():
    model, _, step = frozen(begin=2)
    start = model.backbone[0].weight.detach().clone()
    step()
    assert not torch.equal(model.backbone[0].weight, start) and model.backbone.training


def test_frozen_layers_as_upstream():
    """Bit for bit, where nothing is resumed and nothing evaluated."""
    model, _, step = frozen(layers=("backbone.0",))
    other, optimizer = build(upstream, MODEL__FREEZE_LAYERS=["backbone.0"], SOLVER__FREEZE_ITERS=2)
    for _ in range(4):
        step()
        move(other, optimizer, steps=1)
    assert_equal_weights(model, other)


def test_layers_that_are_none():
    with pytest.raises(ValueError, match="MODEL.FREEZE_LAYERS has 'back_bone', which is no part .* backbone, heads"):
        frozen(layers=("back_bone",))


@pytest.mark.parametrize("chunks", [1, 4])
def test_golden_trajectory(chunks, monkeypatch):
    monkeypatch.setattr(test_trajectories, "build_optimizer", lambda cfg, model: (build_optimizer(cfg, model),))
    test_trajectories.test_trajectory(chunks, unused_passes=False)
    assert load_numbers("trajectory_1_chunk")  # the numbers are there


def test_old_state_goes_on_bit_equal():
    """Four steps with a group per parameter against two of them, a load into merged groups, and two more."""
    model, optimizer = build(upstream, **FOUR_KINDS)
    move(model, optimizer, steps=2)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    saved = {"model": weights, "optimizer": optimizer.state_dict()}
    saved["optimizer"]["state"] = {
        index: {name: value.clone() for name, value in state.items()}
        for index, state in saved["optimizer"]["state"].items()
    }
    resumed, merged = build(build_optimizer, **FOUR_KINDS)
    resumed.load_state_dict(saved["model"])
    merged.load_state_dict(adapt_checkpoint(saved, merged, resumed)["optimizer"])
    move(model, optimizer, steps=2, seed=1)
    move(resumed, merged, steps=2, seed=1)
    assert_equal_weights(model, resumed)


def test_a_state_of_ours_is_left_alone():
    model, optimizer = build(build_optimizer, **FOUR_KINDS)
    move(model, optimizer, steps=1)
    saved = optimizer.state_dict()
    adapted = adapt_checkpoint({"optimizer": saved}, optimizer, model)["optimizer"]
    assert adapted["state"] is saved["state"] and adapted["param_groups"] == optimizer.state_dict()["param_groups"]
    assert adapt_checkpoint({"model": {}}, optimizer, model) == {"model": {}}


def test_the_device_chooses_the_kernels():
    """What a checkpoint from a GPU says of fused kernels does not bind a CPU, and the other way round."""
    model, optimizer = build(build_optimizer)
    saved = optimizer.state_dict()
    saved["param_groups"][0]["fused"] = True
    optimizer.load_state_dict(adapt_checkpoint({"optimizer": saved}, optimizer, model)["optimizer"])
    assert optimizer.param_groups[0]["fused"] is None


def test_fused_on_a_gpu():
    """Asked of parameters that say they lie on one."""

    class Parameter:
        device = torch.device("cuda", 0)

    class Stand:  # what _can_be_fused looks at
        param_groups = [{"params": [Parameter()]}]

    frozen = type("AdamWithFreezeLayer", (torch.optim.Adam,), {"__init__": lambda self, *args, **kwargs: None})
    assert ours._can_be_fused(type("Stand", (Stand, frozen), {})())
    for kind in (torch.optim.Rprop, torch.optim.SGD, torch.optim.Adagrad):  # see FUSED
        unfused = type("Stand", (Stand, kind), {"__init__": lambda self: None})
        assert not ours._can_be_fused(unfused())


@pytest.mark.parametrize("schedule", ["MultiStepLR", "CosineAnnealingLR"])
def test_an_old_run_resumes_bit_equal(schedule, tmp_path, tiny_dataset, monkeypatch):
    """Three epochs with a group per parameter against one of them and two in merged groups."""

    def train(folder, epochs, resume=False):
        cfg = ice_config(OUTPUT_DIR=str(folder), SOLVER__MAX_EPOCH=epochs, **settings)
        trainer = ICETrainer(cfg)
        trainer.resume_or_load(resume=resume)
        trainer.max_epoch = min(epochs, stop_after)
        trainer.train()
        return trainer

    settings = {"SOLVER__SCHED": schedule, "SOLVER__WARMUP_EPOCHS": 2, "SOLVER__STEPS": [2], **FOUR_KINDS, **BACKBONE}
    settings |= {"SOLVER__ITERS_PER_EPOCH": 1, "SOLVER__CHECKPOINT_PERIOD": 1, "DATASETS__TESTS": ()}
    with monkeypatch.context() as old:
        old.setattr(ICETrainer, "build_optimizer", lambda self, cfg, model: (upstream(cfg, model), None))
        stop_after = 3
        train(tmp_path / "whole", 3)
        stop_after = 1
        train(tmp_path / "resumed", 3)
    stop_after = 3
    trainer = train(tmp_path / "resumed", 3, resume=True)
    assert len(trainer.optimizer.param_groups) < 10 and trainer.start_epoch == 1
    whole, resumed = (torch.load(tmp_path / run / "model_final.pth", weights_only=True) for run in ("whole", "resumed"))
    assert all(torch.equal(whole["model"][name], resumed["model"][name]) for name in whole["model"])
    rates = [sorted({group["lr"] for group in run["optimizer"]["param_groups"]}) for run in (whole, resumed)]
    assert rates[0] == rates[1]
    groups = resumed["optimizer"]["param_groups"]
    for part in resumed["lr_sched"]["_schedulers"]:  # a rate per group
        assert part["base_lrs"] == [group["initial_lr"] for group in groups]
        assert len(part["_last_lr"]) == len(groups)
