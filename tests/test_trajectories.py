"""Twelve training steps of the reference code, in one batch and in four chunks, step for step."""

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import pytest
import torch
from fastreid.modeling import build_model
from fastreid.solver import build_optimizer

import fastreid_ice.modeling  # noqa: F401
from tests import tiny  # noqa: F401  (registers the backbone)
from tests.conftest import ice_config, load_numbers

VIEWS = ("strong_1", "strong_2", "weak")


def build(chunks: int, unused_passes: bool):
    cfg = ice_config(
        MODEL__BACKBONE__NAME="build_two_convolutions",
        MODEL__BACKBONE__FEAT_DIM=32,
        MODEL__PIXEL_MEAN=[0.0, 0.0, 0.0],
        MODEL__PIXEL_STD=[1.0, 1.0, 1.0],
        MODEL__ICE__MOMENTUM=0.999,
        MODEL__ICE__BN_CHUNKS=chunks,
        MODEL__ICE__UNUSED_PASSES=unused_passes,
    )
    model = build_model(cfg)
    return model, build_optimizer(cfg, model)[0]


def our_state(numbers: dict, moment: str) -> dict:
    """The reference's state at a moment ("init", "final") under our names."""
    state = {}
    for encoder, prefix in (("online", ""), ("momentum", "momentum_encoder.")):
        start = f"{moment}_{encoder}/"
        for name, value in numbers.items():
            if name.startswith(start):
                state[prefix + name.removeprefix(start).replace("neck", "heads.bottleneck.0")] = torch.as_tensor(value)
    return state


def train(model, optimizer, numbers: dict, share: slice = slice(None), wrapped=None) -> dict:
    """The losses of every step.

    ``share``: this process's part of each batch; ``wrapped``: the model as it averages gradients between processes.
    """
    model.memory.rebuild(numbers["features"], numbers["pseudo_labels"], numbers["camids"])
    torch.testing.assert_close(model.memory.centroids, numbers["centroids"])
    steps = len(numbers["targets"])
    if "shuffles" in numbers:
        orders = iter(numbers["shuffles"])
        model._permutation = lambda batch_size: next(orders)
    losses = []
    for step in range(steps):
        first, second, weak = (numbers[view][step][share].float() for view in VIEWS)
        batch = {"images": first, "images_key": second, "images_weak": weak}
        batch |= {"targets": numbers["targets"][step][share], "camids": numbers["batch_camids"][step][share]}
        losses.append((wrapped or model)(batch))
        optimizer.zero_grad()
        sum(losses[-1].values()).backward()
        optimizer.step()
        model.update_momentum_encoder()
    return {name: torch.stack([step[name].detach() for step in losses]) for name in losses[0]}


@pytest.mark.parametrize("chunks", [1, 4])
@pytest.mark.parametrize("unused_passes", [True, False])
def test_trajectory(chunks, unused_passes):
    name = f"trajectory_{chunks}_chunk"
    numbers = load_numbers(name, *(f"{name}_{view}" for view in VIEWS))
    model, optimizer = build(chunks, unused_passes)
    model.load_state_dict(our_state(numbers, "init"))
    model.train()
    losses = train(model, optimizer, numbers)
    assert len(losses) == 4
    for key, values in losses.items():
        torch.testing.assert_close(values.double(), numbers[key], atol=1e-4, rtol=0, msg=key)
    expected, parameters = our_state(numbers, "final"), dict(model.named_parameters())
    for key, value in model.state_dict().items():
        if unused_passes or key in parameters:  # without the unused passes only the running statistics differ
            torch.testing.assert_close(value, expected[key].to(value.dtype), atol=1e-5, rtol=0, msg=key)


def test_chunks_matter():
    """The two reference runs differ by more than our tolerance, so the tests above can tell them apart."""
    numbers = load_numbers("trajectory_4_chunk", *(f"trajectory_4_chunk_{view}" for view in VIEWS))
    model, optimizer = build(1, unused_passes=True)
    model.load_state_dict(our_state(numbers, "init"))
    model.train()
    losses = train(model, optimizer, numbers)
    assert (losses["loss_hard_instance"].double() - numbers["loss_hard_instance"]).abs().max() > 1e-2
