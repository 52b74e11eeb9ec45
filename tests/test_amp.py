"""Mixed precision: bfloat16 on the CPU for real, float16's gradient scaler on a stand-in."""

from argparse import Namespace

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import pytest
import torch
from fastreid.modeling import build_model

from fastreid_ice.engine import ICETrainer, setup
from fastreid_ice.engine.amp import Precision
from fastreid_ice.engine.checks import check_config
from tests.conftest import ROOT, ice_config
from tests.test_step import BACKBONE, batch, build, run, steps_of

BFLOAT16 = {"SOLVER__AMP__ENABLED": True, "SOLVER__AMP__DTYPE": "bfloat16"}
CPU = torch.device("cpu")


def test_losses_of_a_step_are_those_of_float32():
    exact = build()(batch())
    model = build()
    with Precision(CPU, torch.bfloat16).autocast():
        mixed = model(batch())
    for name, loss in mixed.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[name], atol=2e-2, rtol=2e-2)
        assert not torch.equal(loss, exact[name])  # it was mixed


def test_encoders_compute_short_and_losses_long():
    model, seen = build(), {}
    model.backbone[0].register_forward_hook(lambda module, args, output: seen.update(backbone=output.dtype))
    momentum = model.momentum_encoder.backbone[0]
    momentum.register_forward_hook(lambda module, args, output: seen.update(momentum=output.dtype))

    def own_loss(step, memory):
        product = step.query @ memory.centroids.t()
        seen.update(loss=product.dtype, query=step.query.dtype, keys=step.keys.dtype)
        return product.mean()

    model.loss_functions = {"loss_own": own_loss}
    with Precision(CPU, torch.bfloat16).autocast():
        model(batch())
    short, long = torch.bfloat16, torch.float32
    assert seen == {"backbone": short, "momentum": short, "loss": long, "query": long, "keys": long}


@pytest.mark.parametrize("chunks", [1, 4])
def test_weights_move_as_in_float32(chunks):
    moved = []
    for dtype in (None, torch.bfloat16):
        model = build(MODEL__ICE__BN_CHUNKS=chunks)
        start = [p.detach().clone() for p in model.parameters() if p.requires_grad]
        step = steps_of(model, iter([batch()]))
        step.precision = Precision(CPU, dtype)
        run(step, 1)
        now = [p for p in model.parameters() if p.requires_grad]
        assert all(p.dtype == torch.float32 for p in now)
        moved.append(torch.cat([(p - before).flatten() for p, before in zip(now, start)]))
    assert (moved[1] != 0).float().mean() > 0.99
    assert torch.nn.functional.cosine_similarity(moved[0], moved[1], dim=0) > 0.95


class Scaler:
    """What torch's GradScaler does, in the order in which it is asked."""

    def __init__(self, overflows=False):
        self.calls, self.overflows = [], overflows

    def scale(self, loss):
        self.calls.append("scale")
        return 8 * loss

    def unscale_(self, optimizer):
        self.calls.append("unscale")
        for group in optimizer.param_groups:
            for weight in group["params"]:
                weight.grad /= 8

    def step(self, optimizer):
        self.calls.append("step")
        if not self.overflows:
            optimizer.step()

    def update(self):
        self.calls.append("update")


@pytest.mark.parametrize("accumulation", [1, 2])
def test_scaled_gradients_move_the_weights_alike(accumulation):
    """float16's path around a scaler of 8, which is exact: bit for bit as without."""
    models = []
    for scaler in (None, Scaler()):
        model = build()
        step = steps_of(model, iter([batch(seed=1), batch(seed=2)]), accumulation)
        step.precision.scaler = scaler
        run(step, 2)
        models.append(model)
    assert scaler.calls == (
        ["scale", "unscale", "step", "update"] * 2
        if accumulation == 1
        else ["scale"] * 2 + ["unscale", "step", "update"]
    )
    for first, second in zip(models[0].parameters(), models[1].parameters()):
        assert torch.equal(first, second)


def test_an_overflow_skips_the_update():
    model = build()
    start = model.backbone[0].weight.detach().clone()
    step = steps_of(model, iter([batch()]))
    step.precision.scaler = Scaler(overflows=True)
    run(step, 1)
    assert torch.equal(model.backbone[0].weight, start)


def test_clipping_sees_gradients_of_their_true_size():
    overrides = {"SOLVER__CLIP_GRADIENTS__ENABLED": True, "SOLVER__CLIP_GRADIENTS__CLIP_VALUE": 1e-3}
    from fastreid_ice.engine.optimizer import build_optimizer

    weights = []
    for scaler in (None, Scaler()):
        model = build()
        optimizer = build_optimizer(ice_config(**BACKBONE, SOLVER__OPT="SGD", SOLVER__BASE_LR=0.1, **overrides), model)
        step = steps_of(model, iter([batch()]), optimizer=optimizer)
        step.precision.scaler = scaler
        run(step, 1)
        weights.append(model.backbone[0].weight)
    assert torch.equal(*weights)


def test_float16_needs_cuda():
    with pytest.raises(ValueError, match="float16.*needs CUDA.*MODEL.DEVICE is cpu.*bfloat16"):
        Precision(CPU, torch.float16)
    with pytest.raises(ValueError, match="SOLVER.AMP.DTYPE"):
        check_config(ice_config(SOLVER__AMP__ENABLED=True))
    with pytest.raises(ValueError, match="SOLVER.AMP.DTYPE is 'half'; it must be one of float16, bfloat16"):
        check_config(ice_config(SOLVER__AMP__DTYPE="half"))
    check_config(ice_config(**BFLOAT16))


@pytest.mark.parametrize("dtype, enabled", [("float16", False), ("bfloat16", True)])
def test_setup_on_the_cpu(dtype, enabled, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    opts = ["OUTPUT_DIR", str(tmp_path), "SOLVER.AMP.ENABLED", True, "TEST.AMP", True, "SOLVER.AMP.DTYPE", dtype]
    cfg = setup(Namespace(config_file=str(ROOT / "configs/ICE/market.yml"), opts=opts, eval_only=False))
    assert cfg.SOLVER.AMP.ENABLED == cfg.TEST.AMP == enabled
    log = (tmp_path / "log.txt").read_text()
    assert ("float16 needs CUDA: SOLVER.AMP.ENABLED is False" in log) != enabled
    assert ("float16 needs CUDA: TEST.AMP is False" in log) != enabled


class TestEvaluation:
    def embeddings(self, **overrides):
        torch.manual_seed(0)
        model = build_model(ice_config(**BACKBONE, **overrides)).eval()
        return model(batch()["images"])

    def test_off_by_default_and_on_by_its_key(self):
        exact = self.embeddings()
        assert torch.equal(self.embeddings(**BFLOAT16), exact)
        mixed = self.embeddings(TEST__AMP=True, SOLVER__AMP__DTYPE="bfloat16")
        assert mixed.dtype == torch.float32 and not torch.equal(mixed, exact)
        torch.testing.assert_close(mixed, exact, atol=2e-2, rtol=2e-2)

    def test_a_model_of_a_gpu_runs_on_the_cpu(self):
        assert torch.equal(self.embeddings(TEST__AMP=True), self.embeddings())  # DTYPE is float16


@pytest.mark.usefixtures("tiny_dataset")
@pytest.mark.parametrize("scaled, accumulation", [(False, 1), (True, 1), (True, 2)])
def test_resume_equals_uninterrupted(scaled, accumulation, tmp_path, monkeypatch):
    """In bfloat16, bit for bit; with torch's scaler of gradients too, which grows after each step that fits."""

    def with_scaler(self, device, dtype=None, original=Precision.__init__):
        original(self, device, dtype)
        if scaled:
            self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)

    monkeypatch.setattr(Precision, "__init__", with_scaler)

    def train(folder, epochs, resume=False):
        small = {**BACKBONE, **BFLOAT16, "DATASETS__TESTS": (), "SOLVER__WARMUP_EPOCHS": 2, "TEST__AMP": True}
        small |= {"SOLVER__ACCUMULATION": accumulation, "SOLVER__ITERS_PER_EPOCH": 4}
        trainer = ICETrainer(ice_config(OUTPUT_DIR=str(folder), **small))
        trainer.resume_or_load(resume=resume)
        trainer.max_epoch = epochs
        trainer.train()
        return torch.load(folder / "model_final.pth", weights_only=True)

    whole = train(tmp_path / "whole", 2)
    half = train(tmp_path / "resumed", 1)
    resumed = train(tmp_path / "resumed", 2, resume=True)
    assert all(torch.equal(whole["model"][name], resumed["model"][name]) for name in whole["model"])
    assert any(not torch.equal(half["model"][name], resumed["model"][name]) for name in whole["model"])
    assert whole.get("grad_scaler") == resumed.get("grad_scaler")
    if scaled:
        assert whole["grad_scaler"]["scale"] == (16.0 if accumulation == 1 else 8.0)
        assert whole["grad_scaler"]["_growth_tracker"] == (2 if accumulation == 1 else 1)
