"""The ICE model: its encoders, what it loads, what it refuses."""

import pickle
import re
from pathlib import Path

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import pytest
import torch
import torchvision
from fastreid.modeling import build_model

from fastreid_ice.modeling import ICE, LOSS_REGISTRY, MemoryBank, StepFeatures, build_losses
from fastreid_ice.modeling.pretrained import names_of_mobilenetv2
from tests import tiny  # noqa: F401  (registers the backbone)
from tests.conftest import ice_config

BACKBONE = {"MODEL__BACKBONE__NAME": "build_two_convolutions", "MODEL__BACKBONE__FEAT_DIM": 32}


def build(**overrides):
    torch.manual_seed(0)
    model = build_model(ice_config(**BACKBONE, **overrides))
    labels = torch.arange(4).repeat_interleave(4)
    model.memory.rebuild(torch.nn.functional.normalize(torch.randn(16, 32), dim=1), labels, torch.arange(16) % 2)
    return model


def batch(size=8):
    views = ("images", "images_key", "images_weak")
    return {view: 255 * torch.rand(size, 3, 16, 8) for view in views} | {
        "targets": torch.arange(4).repeat_interleave(2)[:size],
        "camids": torch.arange(size) % 2,
    }


def test_losses_by_name():
    losses = build().train()(batch())
    assert list(losses) == ["loss_agnostic", "loss_cross_camera", "loss_hard_instance", "loss_soft_instance"]


def test_an_ablation_is_a_config_line():
    everything, inputs = build().train(), batch()
    one = build(MODEL__LOSSES__NAME=("SoftInstanceLoss",)).train()
    loss = one(inputs)
    assert list(loss) == ["loss_soft_instance"]
    torch.testing.assert_close(loss["loss_soft_instance"], everything(inputs)["loss_soft_instance"])


@pytest.mark.parametrize("key", ["AGNOSTIC", "CROSS_CAMERA", "HARD_INSTANCE", "SOFT_INSTANCE"])
def test_scales_and_temperatures_reach_the_losses(key):
    inputs, name = batch(), f"loss_{key.lower()}"
    plain = build().train()(inputs)[name]
    cfg = ice_config()
    scale = cfg.MODEL.LOSSES[key].SCALE
    doubled = build(**{f"MODEL__LOSSES__{key}__SCALE": 2 * scale}).train()(inputs)[name]
    torch.testing.assert_close(doubled, 2 * plain)
    warmer = build(**{f"MODEL__LOSSES__{key}__TEMPERATURE": 2.0}).train()(inputs)[name]
    assert (warmer - plain).abs() > 1e-3


def test_a_users_own_loss():
    @LOSS_REGISTRY.register()
    class PullToCentroidLoss:
        def __init__(self, cfg):
            self.scale = cfg.AGNOSTIC.SCALE

        def __call__(self, step, memory):
            return self.scale * (step.query - memory.centroids[step.labels]).square().mean()

    try:
        losses = build(MODEL__LOSSES__NAME=("PullToCentroidLoss",)).train()(batch())
    finally:
        del LOSS_REGISTRY._obj_map["PullToCentroidLoss"]
    assert list(losses) == ["loss_pull_to_centroid"] and losses["loss_pull_to_centroid"].requires_grad


def test_unknown_loss_lists_the_choices():
    with pytest.raises(ValueError, match="AgnosticLoss, CrossCameraLoss, HardInstanceLoss, HardMeanLoss, "):
        build(MODEL__LOSSES__NAME=("TripletLoss",))


def test_passes_that_nothing_looks_at_are_left_out(monkeypatch):
    """Cluster-Contrast with and without the momentum encoder's passes: the same losses, gradients and memory."""
    recipe = {
        "MODEL__LOSSES__NAME": ("AgnosticLoss", "CrossCameraLoss", "IntraCameraLoss", "OnlineAssociationLoss"),
        "MODEL__ICE__MEMORY": "MomentumMemory",
        "MODEL__ICE__MOMENTUM_MEMORY__FEATURES": "queries",
        "MODEL__ICE__EVAL_ENCODER": "online",
    }
    passes = []
    original = ICE._momentum
    monkeypatch.setattr(ICE, "_momentum", lambda *args: (passes.append(1), original(*args))[1])

    def step(**overrides):
        passes.clear()
        torch.manual_seed(5)
        model = build(**{**recipe, **overrides}).train()
        losses = model(batch())
        sum(losses.values()).backward()
        model.after_step()
        gradients = [parameter.grad for parameter in model.backbone.parameters()]
        return len(passes), losses, gradients, model.memory.centroids, model.memory.proxies

    monkeypatch.setattr(ICE, "_needs_keys", lambda model: True)
    with_passes = step()
    monkeypatch.undo()
    monkeypatch.setattr(ICE, "_momentum", lambda *args: (passes.append(1), original(*args))[1])
    without = step()
    assert (with_passes[0], without[0]) == (2, 0)
    torch.testing.assert_close(without[1:], with_passes[1:], rtol=0, atol=0)
    assert step(MODEL__ICE__EVAL_ENCODER="momentum")[0] == 2  # its statistics move in these passes
    assert step(MODEL__ICE__MOMENTUM_MEMORY__FEATURES="keys")[0] == 2
    assert step(MODEL__ICE__MEMORY="MemoryBank")[0] == 0  # it does not move within an epoch

    class Own(MemoryBank):
        def update(self, step):
            return None

    own, model = Own(), build(**recipe)
    monkeypatch.setattr(ICE, "memory", property(lambda model: own))
    assert model._needs_keys()  # a memory of one's own may use them
    monkeypatch.setattr(Own, "uses_keys", False)
    assert not model._needs_keys()  # unless it says that it does not
    assert step(MODEL__LOSSES__NAME=("AgnosticLoss", "HardInstanceLoss"))[0] == 2


def test_the_weak_views_pass_may_be_left_out(monkeypatch):
    """Losses and gradients stay; the momentum encoder's statistics are those of the second strong view alone."""
    names = ("AgnosticLoss", "CrossCameraLoss", "HardInstanceLoss")
    inputs = batch()
    whole, without = (build(MODEL__LOSSES__NAME=names, MODEL__ICE__WEAK_PASS=kept).train() for kept in (True, False))
    losses = whole(inputs)
    sum(losses.values()).backward()
    del inputs["images_weak"]
    found = without(inputs)
    sum(found.values()).backward()
    torch.testing.assert_close(found, losses, rtol=0, atol=0)
    for one, other in zip(without.backbone.parameters(), whole.backbone.parameters()):
        assert torch.equal(one.grad, other.grad)
    assert len(without._steps[0].weak_keys) == len(without._steps[0].weak_query) == 0
    norms = [model.momentum_encoder.backbone[1] for model in (whole, without)]
    assert [int(norm.num_batches_tracked) for norm in norms] == [2, 1]
    assert not torch.equal(norms[0].running_mean, norms[1].running_mean)


def test_a_loss_on_weak_views_needs_their_pass():
    with pytest.raises(ValueError, match="WEAK_PASS is False, but SoftInstanceLoss of MODEL.LOSSES.NAME"):
        build(MODEL__ICE__WEAK_PASS=False)

    @LOSS_REGISTRY.register()
    class OwnLoss:  # may look at anything
        def __init__(self, cfg): ...

    try:
        with pytest.raises(ValueError, match="but OwnLoss of"):
            build(MODEL__ICE__WEAK_PASS=False, MODEL__LOSSES__NAME=("AgnosticLoss", "OwnLoss"))
    finally:
        del LOSS_REGISTRY._obj_map["OwnLoss"]


def test_only_the_online_encoder_trains():
    model = build().train()
    sum(model(batch()).values()).backward()
    for name, parameter in model.named_parameters():
        trains = not name.startswith("momentum_encoder.") and name != "heads.bottleneck.0.bias"
        assert parameter.requires_grad == trains, name
        assert (parameter.grad is not None) == trains, name  # no parameter is unused: DDP would fail on it


def test_momentum_update():
    model = build(MODEL__ICE__MOMENTUM=0.9)
    online, momentum = model.backbone[0].weight, model.momentum_encoder.backbone[0].weight
    with torch.no_grad():
        online.add_(1.0)
    before, storage = momentum.clone(), momentum.data_ptr()
    model.update_momentum_encoder()
    torch.testing.assert_close(momentum, 0.9 * before + 0.1 * online)
    assert momentum.data_ptr() == storage
    buffer = model.momentum_encoder.backbone[1].running_mean
    model.backbone[1].running_mean.fill_(5.0)
    model.update_momentum_encoder()
    assert buffer.abs().max() < 5  # buffers are the encoder's own


def test_evaluation_uses_the_encoder_of_the_config():
    images = 255 * torch.rand(4, 3, 16, 8)
    for encoder, used in (("momentum", "momentum_encoder.backbone"), ("online", "backbone")):
        model = build(MODEL__ICE__EVAL_ENCODER=encoder).eval()
        before = model({"images": images})
        with torch.no_grad():
            model.get_submodule(used)[0].weight.mul_(-1)
        assert not torch.allclose(model(images), before)


def test_preprocessing_leaves_the_batch_alone():
    model, images = build().eval(), 255 * torch.rand(2, 3, 16, 8)
    kept = images.clone()
    first = model({"images": images})
    assert torch.equal(images, kept) and torch.equal(model({"images": images}), first)


def test_weights_without_momentum_encoder_load_into_both():
    source = build()
    for parameter in source.parameters():
        parameter.data.add_(0.5)
    zoo = {k: v for k, v in source.state_dict().items() if k.startswith(("backbone.", "heads."))}
    zoo["heads.weight"] = torch.zeros(751, 32)  # the classifier of a supervised model
    model = build()
    result = model.load_state_dict(zoo, strict=False)
    assert result.missing_keys == [] and result.unexpected_keys == ["heads.weight"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, source.state_dict()[name.removeprefix("momentum_encoder.")]), name


def test_own_checkpoint_keeps_both_encoders():
    source = build()
    source.momentum_encoder.backbone[0].weight.data.fill_(3.0)
    model = build()
    model.load_state_dict(source.state_dict())
    assert (model.momentum_encoder.backbone[0].weight == 3).all() and (model.backbone[0].weight != 3).any()


def test_foreign_weights_are_refused():
    with pytest.raises(ValueError, match="conv1.conv.weight.*MODEL.BACKBONE.PRETRAIN_PATH"):
        build().load_state_dict({"conv1.conv.weight": torch.zeros(1)}, strict=False)


def test_deploys_as_stock_baseline():
    """fastreid's own Baseline and EmbeddingHead load our checkpoint and give the online encoder's embedding."""
    model = build().eval()
    cfg = ice_config(**BACKBONE, MODEL__META_ARCHITECTURE="Baseline", MODEL__HEADS__NAME="EmbeddingHead")
    stock = build_model(cfg).eval()
    result = stock.load_state_dict(model.state_dict(), strict=False)
    assert result.missing_keys == ["heads.weight"]
    images = 255 * torch.rand(4, 3, 16, 8)
    expected = model._online(model.preprocess_image(images))
    torch.testing.assert_close(stock({"images": images.clone()}), expected)


def test_shuffling_is_undone():
    """With one chunk per image pair the keys change with the partners, with one chunk they cannot."""
    inputs = batch()
    model = build(MODEL__ICE__BN_CHUNKS=1).train()
    images = model.preprocess_image(inputs)
    order = torch.tensor([3, 1, 7, 5, 0, 2, 4, 6])
    torch.testing.assert_close(model._momentum(images, order), model._momentum(images, None))
    chunked = build(MODEL__ICE__BN_CHUNKS=2).train()
    assert chunked._permutation(8) is not None and not torch.allclose(
        chunked._momentum(images, order), chunked._momentum(images, None)
    )


def test_running_statistics_take_the_momentum_of_the_config():
    """Both encoders' move by its share of the distance to a batch's, and nothing else changes."""
    inputs, usual, slow = batch(), build().train(), build(MODEL__ICE__BN_MOMENTUM=0.02).train()
    slow.load_state_dict(usual.state_dict())
    start = {name: value.clone() for name, value in usual.state_dict().items()}
    losses = [model(inputs) for model in (usual, slow)]
    assert losses[0] == losses[1]
    moved = [{name: value - start[name] for name, value in model.state_dict().items()} for model in (usual, slow)]
    name = "backbone.1.running_mean"  # moved once in a step; the momentum encoder's twice
    torch.testing.assert_close(moved[1][name], moved[0][name] / 5)
    first, second = (step["momentum_encoder." + name].norm() for step in moved)
    assert 0 < second < 0.3 * first


def test_shuffles_follow_their_seed():
    model = build(MODEL__ICE__BN_CHUNKS=2)
    model.seed_shuffle(3)
    first = [model._permutation(8).tolist() for _ in range(2)]
    model.seed_shuffle(3)
    assert [model._permutation(8).tolist() for _ in range(2)] == first and first[0] != first[1]
    assert build(MODEL__ICE__BN_CHUNKS=2, MODEL__ICE__SHUFFLE_BN=False)._permutation(8) is None


def test_without_clusters_it_says_who_is_missing():
    model = build_model(ice_config(**BACKBONE)).train()
    with pytest.raises(RuntimeError, match="ClusteringHook"):
        model(batch())


def test_precise_bn_batches_move_statistics_only():
    model = build().train()
    inputs = batch() | {"targets": torch.full((8,), -1)}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        assert model(inputs) == {}
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all("running" in k or "num_batches" in k for k in changed)
    with pytest.raises(RuntimeError, match="ClusteringHook"):
        model(inputs)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"MODEL__ICE__MOMENTUM": 1.0}, "MODEL.ICE.MOMENTUM"),
        ({"MODEL__ICE__EVAL_ENCODER": "teacher"}, "momentum, online"),
        ({"MODEL__HEADS__POOL_LAYER": "AvgPool"}, "GlobalAvgPool"),
        ({"MODEL__ICE__MEMORY": "Queue"}, "choose one of HardMeanMemory, MemoryBank"),
        ({"MODEL__LOSSES__AGNOSTIC__TEMPERATURE": 0.0}, "MODEL.LOSSES.AGNOSTIC.TEMPERATURE is 0.0"),
        ({"MODEL__LOSSES__AGNOSTIC__SMOOTHING": 1.0}, "MODEL.LOSSES.AGNOSTIC.SMOOTHING"),
        ({"MODEL__LOSSES__CROSS_CAMERA__AVERAGE": "mean"}, "camera, image"),
        ({"MODEL__LOSSES__HARD_INSTANCE__SCALE": -1.0}, "MODEL.LOSSES.HARD_INSTANCE.SCALE is -1.0"),
        ({"MODEL__ICE__BN_CHUNKS": -1}, "MODEL.ICE.BN_CHUNKS"),
    ],
)
def test_bad_keys(overrides, message):
    with pytest.raises(ValueError, match=message):
        build(**overrides)


class TestPretrained:
    def test_missing_file(self):
        with pytest.raises(FileNotFoundError, match="MODEL.BACKBONE.PRETRAIN_PATH.*nowhere.pth"):
            build_model(ice_config(MODEL__BACKBONE__PRETRAIN=True, MODEL__BACKBONE__PRETRAIN_PATH="nowhere.pth"))

    def test_foreign_file(self, tmp_path):
        torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other.pth")
        with pytest.raises(ValueError, match="holds no tensor of this backbone"):
            build_model(
                ice_config(MODEL__BACKBONE__PRETRAIN=True, MODEL__BACKBONE__PRETRAIN_PATH=str(tmp_path / "other.pth"))
            )

    @pytest.mark.parametrize(
        "content, said", [(b"PK\x03\x04 cut off", "holds no weights"), (pickle.dumps(Path("x")), "may run code")]
    )
    def test_file_that_cannot_be_read(self, tmp_path, content, said):
        (tmp_path / "half.pth").write_bytes(content)
        node = {"MODEL__BACKBONE__PRETRAIN": True, "MODEL__BACKBONE__PRETRAIN_PATH": str(tmp_path / "half.pth")}
        with pytest.raises(ValueError, match=f"MODEL.BACKBONE.PRETRAIN_PATH: .*half.pth .*{said}"):
            build_model(ice_config(**node))

    def test_both_encoders_start_from_the_file(self, tmp_path):
        torch.manual_seed(1)
        osnet = {"MODEL__BACKBONE__NAME": "build_osnet_backbone", "MODEL__BACKBONE__FEAT_DIM": 128}
        source = build_model(ice_config(**osnet)).backbone
        torch.save(source.state_dict(), tmp_path / "backbone.pth")
        pretrained = {"PRETRAIN": True, "PRETRAIN_PATH": str(tmp_path / "backbone.pth")}
        pretrained = {f"MODEL__BACKBONE__{key}": value for key, value in pretrained.items()}
        model = build_model(ice_config(**osnet, **pretrained))
        for name, value in source.state_dict().items():
            assert torch.equal(model.backbone.state_dict()[name], value)
            assert torch.equal(model.momentum_encoder.backbone.state_dict()[name], value)

    @pytest.mark.parametrize("grouped", [True, False], ids=["torchvision", "elsewhere"])
    def test_mobilenetv2_by_other_names(self, tmp_path, grouped):
        theirs = torchvision.models.mobilenet_v2().eval()
        stored = theirs.state_dict()
        if not grouped:  # as fastreid names the blocks, but for the last convolution
            stored = names_of_mobilenetv2(stored)
            stored = {re.sub(r"^conv\.", "features.18.", name): value for name, value in stored.items()}
        torch.save(stored, tmp_path / "mobilenet_v2.pth")
        mobilenet = {"NAME": "build_mobilenetv2_backbone", "DEPTH": "1.0x", "FEAT_DIM": 1280, "PRETRAIN": True}
        mobilenet["PRETRAIN_PATH"] = str(tmp_path / "mobilenet_v2.pth")
        model = build_model(ice_config(**{f"MODEL__BACKBONE__{key}": value for key, value in mobilenet.items()})).eval()
        images = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            torch.testing.assert_close(model.backbone(images), theirs.features(images))

    def test_mobilenetv2_is_downloaded(self, tmp_path, monkeypatch):
        theirs = torchvision.models.mobilenet_v2()
        downloads = []

        def download(url, **arguments):
            downloads.append((url, arguments))
            return theirs.state_dict()

        monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
        mobilenet = {"NAME": "build_mobilenetv2_backbone", "DEPTH": "1.0x", "FEAT_DIM": 1280, "PRETRAIN": True}
        mobilenet = {f"MODEL__BACKBONE__{key}": value for key, value in mobilenet.items()}
        model = build_model(ice_config(**mobilenet))
        assert torch.equal(model.backbone.conv[0].weight, theirs.features[18][0].weight)
        ((url, arguments),) = downloads
        assert url.endswith("mobilenet_v2-b0353104.pth") and arguments["check_hash"]
        with pytest.raises(ValueError, match="MODEL.BACKBONE.DEPTH is 0.5x"):
            build_model(ice_config(**{**mobilenet, "MODEL__BACKBONE__DEPTH": "0.5x"}))

    def test_a_file_of_another_width(self, tmp_path):
        torch.save(torchvision.models.mobilenet_v2(width_mult=0.5).state_dict(), tmp_path / "half.pth")
        mobilenet = {"NAME": "build_mobilenetv2_backbone", "DEPTH": "0.25x", "FEAT_DIM": 1280, "PRETRAIN": True}
        mobilenet["PRETRAIN_PATH"] = str(tmp_path / "half.pth")
        with pytest.raises(ValueError, match="half.pth.*0.25x"):
            build_model(ice_config(**{f"MODEL__BACKBONE__{key}": value for key, value in mobilenet.items()}))


def test_one_memory_in_the_online_head():
    model = build()
    assert model.memory is model.heads.memory and model.momentum_encoder.heads.memory is None
    assert [name for name, module in model.named_modules() if isinstance(module, MemoryBank)] == ["heads.memory"]


def test_the_memory_sees_each_step_once_after_the_momentum_update():
    model, seen = build(MODEL__ICE__MOMENTUM=0.5).train(), []
    momentum = model.momentum_encoder.backbone[0].weight
    with torch.no_grad():
        model.backbone[0].weight.add_(1.0)
    before = momentum.clone()
    model.memory.update = lambda step: seen.append((step, momentum.clone()))
    inputs = batch()
    sum(model(inputs).values()).backward()
    model.after_step()
    model.after_step()  # no step in between
    ((step, weight),) = seen
    assert not step.query.requires_grad and step.query.shape == (8, 32)
    assert torch.equal(step.key_labels, inputs["targets"]) and torch.equal(step.labels, inputs["targets"])
    assert not torch.equal(weight, before)


def test_losses_read_their_config_once():
    cfg = ice_config(**BACKBONE)
    losses = build_losses(cfg)
    cfg.MODEL.LOSSES.SOFT_INSTANCE.SCALE = 0.0
    views, labels = torch.randn(4, 8, 32, generator=torch.Generator().manual_seed(0)), torch.arange(8) // 2
    step = StepFeatures(views[0], views[1], labels, labels, views[2], views[3], labels, labels)
    assert losses["loss_soft_instance"](step, MemoryBank()) > 0
