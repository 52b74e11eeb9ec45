"""A step does not wait for its device, dispatches little, and its losses are read late without a difference."""

import contextlib
import json

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import pytest
import torch
from fastreid.modeling import build_model
from fastreid.utils.events import EventStorage
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from benchmarks.operations import Operations
from fastreid_ice.engine import ICETrainer
from fastreid_ice.engine.amp import Precision, all_finite
from fastreid_ice.engine.checks import check_config
from fastreid_ice.engine.hooks.training import LRScheduler
from fastreid_ice.engine.loss_log import LossLog
from fastreid_ice.engine.optimizer import build_optimizer
from fastreid_ice.engine.step import TrainingStep
from tests import tiny  # noqa: F401  (registers dataset and backbone)
from tests.conftest import ice_config

BACKBONE = {"MODEL__BACKBONE__NAME": "build_two_convolutions", "MODEL__BACKBONE__FEAT_DIM": 32}
TORCH = tuple(map(int, torch.__version__.split(".")[:2]))
VIEWS = ("images", "images_key", "images_weak")


def build(**overrides):
    torch.manual_seed(0)
    model = build_model(ice_config(**{**BACKBONE, **overrides})).train()
    width = model.heads.bottleneck[0].num_features
    features = torch.nn.functional.normalize(torch.randn(16, width), dim=1)
    model.memory.rebuild(features, torch.arange(4).repeat_interleave(4), torch.arange(16) % 2)
    return model


def batch(size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    views = {view: 255 * torch.rand(size, 3, 32, 16, generator=generator) for view in VIEWS}
    return views | {"targets": torch.arange(size) // 2 % 4, "camids": torch.arange(size) % 2}


def steps_of(model, batches, accumulation=1, optimizer=None, log=None):
    optimizer = optimizer or torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    log = log or LossLog(10**9, lambda: "")
    step = TrainingStep(model, batches, optimizer, Precision(torch.device("cpu")), log, accumulation)
    step.iter = 0
    return step


def run(step, count):
    with EventStorage(0) as storage:
        for step.iter in range(count):
            storage.iter = step.iter
            step.run_step()
            if step.has_updated:
                step.model.after_step()
    return storage


class BlockingCopies(Operations):
    """Counts copies from device to device that the host waits for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        moves = "_to_copy" in str(func) and kwargs.get("device", args[0].device).type != args[0].device.type
        self.names["blocking"] += moves and not kwargs.get("non_blocking")
        return func(*args, **kwargs)


class TestWaitsForNobody:
    """On a device without numbers whatever would have to wait for one raises.

    The device "meta" stands for a GPU: there, as on a GPU, the checks of labels that cost nothing on a CPU are off. A
    fake "cuda" shows what the code does on that very device, as far as autograd goes without one: forward only.
    """

    @pytest.fixture(autouse=True)
    def no_autocast(self, monkeypatch):
        monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())  # "meta" has none

    def on_meta(self, **overrides):
        model = build(**overrides).to("meta")
        optimizer = build_optimizer(ice_config(**BACKBONE, **overrides), model)
        inputs = {name: value.to("meta") if name == "targets" else value for name, value in batch().items()}
        return steps_of(model, iter([inputs] * 2), optimizer=optimizer)

    @pytest.mark.parametrize("chunks", [1, 4])
    def test_the_whole_step(self, chunks):
        step = self.on_meta(MODEL__ICE__BN_CHUNKS=chunks)
        with BlockingCopies() as copies:
            run(step, 2)
        assert copies.names["blocking"] == 0
        assert all(p.grad is not None for p in step.model.parameters() if p.requires_grad)

    @pytest.mark.parametrize("denominator", ["joint", "single"])
    @pytest.mark.parametrize("positives", ["all", "other_cameras"])
    def test_every_variant_of_the_losses(self, positives, denominator):
        keys = {"POSITIVES": positives, "DENOMINATOR": denominator, "PROXY_NORM": "proxy", "PAD_WITH_POSITIVES": False}
        run(self.on_meta(**{f"MODEL__LOSSES__CROSS_CAMERA__{key}": value for key, value in keys.items()}), 1)

    def test_both_domains(self):
        """The part of the source, its statistics and its rows of the memory."""
        model = build(DATASETS__SOURCE=("TinySource",), MODEL__ICE__MEMORY="MomentumMemory", MODEL__ICE__BN_CHUNKS=2)
        model.memory.mark_source(2)
        model.to("meta")
        inputs = {name: value.to("meta") if name == "targets" else value for name, value in batch(16).items()}
        step = steps_of(model, iter([inputs] * 2), optimizer=build_optimizer(ice_config(**BACKBONE), model))
        with BlockingCopies() as copies:
            run(step, 2)
        assert copies.names["blocking"] == 0 and len(step.model.source_statistics.state_dict()) == 18

    def test_a_loss_that_waits_is_found(self):
        step = self.on_meta()
        step.model.loss_functions["loss_waits"] = lambda features, memory: (
            features.query.sum() * features.labels.max().item()
        )
        with pytest.raises(RuntimeError, match="(?i)meta"):
            run(step, 1)

    def test_reading_the_losses_waits(self):
        step = self.on_meta()
        step.log.every = 2
        with pytest.raises((RuntimeError, NotImplementedError), match="(?i)meta"):
            run(step, 2)  # the first goes through

    @pytest.mark.skipif(TORCH < (2, 9), reason="fake CUDA tensors of torch 2.3 to 2.8 ask for a driver")
    def test_forward_on_fake_cuda(self):
        model = build(MODEL__ICE__BN_CHUNKS=4)
        with FakeTensorMode(allow_non_fake_inputs=True):
            device = torch.device("cuda", 0)
            for module in model.modules():
                for tensors in (module._parameters, module._buffers):
                    for name, value in tensors.items():
                        if value is not None:
                            fake = torch.empty(value.shape, dtype=value.dtype, device=device)
                            tensors[name] = torch.nn.Parameter(fake) if tensors is module._parameters else fake
            inputs = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in batch().items()}
            inputs["targets"] = torch.empty(8, dtype=torch.int64, device=device)
            with BlockingCopies() as copies:
                losses = model(inputs)
                model.after_step()
            assert {loss.device for loss in losses.values()} == {device} and copies.names["blocking"] == 0
            with pytest.raises(DataDependentOutputException):
                losses["loss_agnostic"].item()


def test_four_chunks_dispatch_what_one_does():
    counts = []
    for chunks in (1, 4):
        model = build(
            MODEL__ICE__BN_CHUNKS=chunks, MODEL__BACKBONE__NAME="build_osnet_backbone", MODEL__BACKBONE__FEAT_DIM=128
        )
        model(batch())  # makes what is made once
        with Operations() as counted:
            sum(model(batch()).values()).backward()
            model.after_step()
        counts.append(counted.total)
    assert counts[0] > 1000 and counts[1] <= 1.1 * counts[0]


@pytest.mark.parametrize("chunks", [1, 4])
def test_channels_last_computes_the_same(chunks):
    steps = []
    for last in (False, True):
        model, layouts = build(MODEL__ICE__BN_CHUNKS=chunks, MODEL__ICE__CHANNELS_LAST=last), []
        for convolution in (model.backbone[3], model.momentum_encoder.backbone[3]):
            assert convolution.weight.is_contiguous(memory_format=torch.channels_last) == last
            convolution.register_forward_hook(lambda module, args, out: layouts.append(out.stride(1) == 1))  # noqa: B023
        losses = model(batch(32))
        sum(losses.values()).backward()
        assert layouts == [last] * 3
        steps.append((torch.stack(list(losses.values())), [p.grad for p in model.parameters() if p.requires_grad]))
    (losses, gradients), (losses_last, gradients_last) = steps
    torch.testing.assert_close(losses, losses_last, atol=1e-4, rtol=1e-4)
    for first, second in zip(gradients, gradients_last):
        assert (first - second).norm() < 1e-2 * first.norm()


class TestLossLog:
    def add(self, log, values):
        with EventStorage(0) as storage:
            for iteration, value in enumerate(values):
                storage.iter = iteration
                log.add(iteration, {"loss_a": torch.tensor(value), "loss_b": torch.tensor(2 * value)}, 0.1)
            storage.iter = len(values) - 1
            log.read()
        return {name: history.values() for name, history in storage.histories().items()}, storage

    def test_late_is_the_same(self):
        values = [1.0, 0.5, 0.25, 0.125, 0.1]
        at_once, _ = self.add(LossLog(1, str), values)
        late, storage = self.add(LossLog(3, str), values)
        assert late == at_once and storage.iter == 4
        assert [value for value, _ in late["total_loss"]] == pytest.approx([3 * value for value in values])
        assert [iteration for _, iteration in late["loss_a"]] == [0, 1, 2, 3, 4]

    def test_only_every_so_often(self, monkeypatch):
        log, reads = LossLog(3, str), []
        read = log.read
        monkeypatch.setattr(log, "read", lambda: reads.append(len(log._steps)) or read())
        self.add(log, [1.0] * 7)
        assert reads == [3, 3, 1]

    @pytest.mark.parametrize(
        "checkpoint, said", [("runs/model_0002.pth", "good checkpoint is runs/model_0002.pth"), ("", "No checkpoint")]
    )
    def test_not_a_number_names_the_step_and_what_is_left(self, checkpoint, said):
        log = LossLog(4, lambda: checkpoint)
        with pytest.raises(FloatingPointError, match=rf"in step 1 \(loss_a nan.*after step 3.*{said}.*SOLVER.BASE_LR"):
            self.add(log, [1.0, float("nan"), 1.0, float("inf")])


def test_all_finite():
    good = [torch.ones(3), torch.zeros(0), torch.ones(2, 2), torch.tensor(3)]
    assert all_finite(good) and all_finite([])
    assert not all_finite([*good, torch.tensor([1.0, float("nan")])])
    assert not all_finite([*good, torch.tensor([float("inf")])])


def test_the_scale_is_asked_only_for_a_warm_up_by_step():
    asked = []

    class Trainer:
        iter, warmup_iters = 0, 0

        class grad_scaler:  # noqa: N801
            get_scale = staticmethod(lambda: asked.append(1) or 1.0)

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    hook = LRScheduler(optimizer, {})
    hook.trainer = Trainer
    hook.before_step()
    assert not asked
    Trainer.warmup_iters = 1
    hook.before_step()
    assert asked == [1]


def test_the_golden_order_of_a_step():
    """Forward, backward, update: by hand, against the step."""
    ours, by_hand = build(), build()
    run(steps_of(ours, iter([batch(seed=1), batch(seed=2)])), 2)
    optimizer = torch.optim.SGD([p for p in by_hand.parameters() if p.requires_grad], lr=0.1)
    for seed in (1, 2):
        losses = by_hand(batch(seed=seed))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        by_hand.after_step()
    for (name, value), expected in zip(ours.state_dict().items(), by_hand.state_dict().values()):
        assert torch.equal(value, expected), name


@pytest.mark.parametrize("accumulation, expected", [(1, [False] * 4), (2, [False, True] * 2)])
def test_the_gradients_of_the_last_update_make_room_for_the_next_pass(accumulation, expected):
    model, held = build(), []
    model.backbone[0].register_forward_hook(lambda *args: held.append(model.backbone[0].weight.grad is not None))
    run(steps_of(model, iter([batch(seed=seed) for seed in range(4)]), accumulation), 4)
    assert held == expected


class TestAccumulation:
    def test_gradients_are_averaged(self):
        """Two batches on the same weights. Batch statistics and the losses' pairs are each batch's own."""
        model, expected = build(), []
        for seed in (1, 2):
            model.zero_grad()
            sum(model(batch(seed=seed)).values()).backward()
            expected.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
        model = build()
        step = steps_of(model, iter([batch(seed=1), batch(seed=2)]), accumulation=2)
        run(step, 2)
        actual = [p.grad for p in model.parameters() if p.requires_grad]
        for gradient, first, second in zip(actual, *expected):
            torch.testing.assert_close(gradient, (first + second) / 2)

    def test_two_halves_are_a_whole(self):
        """Where an image's loss depends on no other: one loss over the images, normalisation as in evaluation."""
        models = []
        for parts in (1, 2):
            model = build(MODEL__LOSSES__NAME=("AgnosticLoss",))
            inputs = batch()
            halves = [{name: value[i::parts] for name, value in inputs.items()} for i in range(parts)]
            step = steps_of(model, iter(halves), accumulation=parts)
            for module in (model.backbone, model.heads, model.momentum_encoder):
                module.eval()
            run(step, parts)
            models.append(model)
        for first, second in zip(models[0].parameters(), models[1].parameters()):
            torch.testing.assert_close(first, second)

    def test_nothing_moves_before_the_update(self):
        model, seen = build(MODEL__ICE__MOMENTUM=0.5), []
        model.memory.update = lambda step: seen.append(step)
        step = steps_of(model, iter([batch(seed=seed) for seed in range(4)]), accumulation=2)
        start = [p.detach().clone() for p in model.parameters()]
        run(step, 1)
        assert not step.has_updated and not seen
        assert all(torch.equal(p, before) for p, before in zip(model.parameters(), start))
        step.iter = 1
        step.run_step()
        model.after_step()
        assert step.has_updated and len(seen) == 2  # the features of both batches
        moved = [not torch.equal(p, before) for p, before in zip(model.parameters(), start)]
        trained = [
            name.removeprefix("momentum_encoder.") != "heads.bottleneck.0.bias" for name, _ in model.named_parameters()
        ]
        assert moved == trained

    def test_processes_average_once_an_update(self, tmp_path):
        model, averaged = build(), []
        store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            parallel = torch.nn.parallel.DistributedDataParallel(model)

            def count(step, bucket):
                averaged.append(step.iter)
                future = torch.futures.Future()
                future.set_result(bucket.buffer())
                return future

            step = steps_of(parallel, iter([batch(seed=seed) for seed in range(6)]), accumulation=3)
            parallel.register_comm_hook(step, count)
            with EventStorage(0):
                for step.iter in range(6):
                    step.run_step()
        finally:
            torch.distributed.destroy_process_group()
        assert sorted(set(averaged)) == [2, 5]

    def test_no_warm_up_within_an_update(self):
        keys = {"SOLVER__ACCUMULATION": 3, "SOLVER__WARMUP_ITERS": 2, "SOLVER__WARMUP_EPOCHS": 0}
        with pytest.raises(ValueError, match=r"SOLVER.WARMUP_ITERS \(2\).*SOLVER.ACCUMULATION 3"):
            check_config(ice_config(**BACKBONE, **keys))

    def test_an_epoch_ends_with_an_update(self):
        with pytest.raises(ValueError, match="ITERS_PER_EPOCH is 3.*multiple of SOLVER.ACCUMULATION"):
            check_config(ice_config(**BACKBONE, SOLVER__ACCUMULATION=2))


@pytest.mark.usefixtures("tiny_dataset")
class TestRuns:
    SMALL = {**BACKBONE, "TEST__EVAL_PERIOD": 0, "TEST__EVAL_START": False, "DATASETS__TESTS": ()}

    def trainer(self, folder, every=None, **overrides):
        trainer = ICETrainer(ice_config(OUTPUT_DIR=str(folder), **{**self.SMALL, **overrides}))
        if every:
            trainer.training_step.log.every = every
        trainer.resume_or_load(resume=False)
        return trainer

    def test_late_losses_are_logged_alike(self, tmp_path):
        logged = []
        for name, every in (("at_once", None), ("late", 2)):
            trainer = self.trainer(tmp_path / name, every)
            trainer.train()
            losses = {key: history.values() for key, history in trainer.storage.histories().items() if "loss" in key}
            rows = json.loads((tmp_path / name / "results.json").read_text())
            written = [json.loads(line) for line in (tmp_path / name / "metrics.json").read_text().splitlines()]
            logged.append(
                (
                    losses,
                    [{key: value for key, value in row.items() if "loss" in key} for row in rows],
                    [
                        {key: value for key, value in row.items() if "loss" in key or key == "iteration"}
                        for row in written
                    ],
                )
            )
        assert logged[0] == logged[1] and len(logged[0][0]["total_loss"]) == 6 and logged[0][1][-1]

    @pytest.mark.parametrize("every", [1, 100])
    def test_not_a_number_stops_with_the_checkpoint_before(self, tmp_path, every):
        trainer = self.trainer(tmp_path, every, SOLVER__CHECKPOINT_PERIOD=1, SOLVER__MAX_EPOCH=3)
        agnostic = trainer.model.loss_functions["loss_agnostic"]
        trainer.model.loss_functions["loss_agnostic"] = lambda step, memory: (
            agnostic(step, memory) * (float("nan") if trainer.iter == 4 else 1.0)
        )
        with pytest.raises(
            FloatingPointError, match=r"in step 4 .*loss_agnostic nan.*good checkpoint is .*model_0000.pth"
        ):
            trainer.train()
        assert [path.name for path in tmp_path.glob("*.pth")] == ["model_0000.pth"]
        weights = torch.load(tmp_path / "model_0000.pth", weights_only=True)["model"]
        assert all(value.isfinite().all() for value in weights.values())

    def test_weights_that_break_in_the_last_step_are_not_saved(self, tmp_path):
        trainer = self.trainer(tmp_path, SOLVER__CHECKPOINT_PERIOD=1)

        def break_at_the_end(*args):
            if trainer.iter == 5:
                trainer.model.backbone[0].weight.data[0] = float("inf")

        trainer.optimizer.register_step_post_hook(break_at_the_end)
        with pytest.raises(FloatingPointError, match=r"weights became infinite.*after step 5.*model_0000.pth"):
            trainer.train()
        assert [path.name for path in tmp_path.glob("*.pth")] == ["model_0000.pth"]

    def test_a_checkpoint_of_another_run_in_the_folder_is_not_named(self, tmp_path):
        self.trainer(tmp_path, SOLVER__MAX_EPOCH=1).train()
        assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
        with pytest.raises(FloatingPointError, match="No checkpoint was written before"):
            self.trainer(tmp_path, MODEL__LOSSES__SOFT_INSTANCE__SCALE=float("inf")).train()

    def test_a_resumed_run_names_what_it_was_resumed_from(self, tmp_path):
        self.trainer(tmp_path, SOLVER__MAX_EPOCH=1).train()
        trainer = ICETrainer(
            ice_config(OUTPUT_DIR=str(tmp_path), **self.SMALL, MODEL__LOSSES__SOFT_INSTANCE__SCALE=float("inf"))
        )
        trainer.resume_or_load(resume=True)
        with pytest.raises(FloatingPointError, match="good checkpoint is .*model_final.pth"):
            trainer.train()

    def test_statistics_that_break_are_not_saved(self, tmp_path):
        trainer = self.trainer(tmp_path, SOLVER__MAX_EPOCH=1)
        statistic = trainer.model.momentum_encoder.backbone[1].running_var
        trainer.optimizer.register_step_post_hook(lambda *args: statistic.fill_(float("nan")))
        with pytest.raises(FloatingPointError, match="weights became infinite"):
            trainer.train()
        assert not list(tmp_path.glob("*.pth"))

    def test_accumulation(self, tmp_path):
        trainer = self.trainer(tmp_path, SOLVER__ACCUMULATION=2, SOLVER__ITERS_PER_EPOCH=4, SOLVER__MAX_EPOCH=1)
        updates = []
        trainer.optimizer.register_step_post_hook(lambda *args: updates.append(trainer.iter))
        trainer.train()
        assert updates == [1, 3] and len(trainer.storage.history("total_loss").values()) == 4
