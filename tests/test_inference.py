"""Engines of the evaluation mode: the same embeddings up to rounding, or the model itself."""

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import pytest
import torch

from fastreid_ice.data.datasets import load_training_images
from fastreid_ice.data.inference_loaders import build_feature_loader
from fastreid_ice.engine import ICETrainer, inference
from fastreid_ice.engine.checks import check_config
from fastreid_ice.engine.extraction import FeatureExtractor
from fastreid_ice.engine.inference import ENGINES, inference_engine
from tests.conftest import ice_config
from tests.test_folding import OSNET, used

FAST = ENGINES[1:]


def trained(**overrides):
    return used(ICETrainer.build_model(ice_config(**OSNET, **overrides)))


@pytest.mark.parametrize("engine", FAST)
@pytest.mark.parametrize("overrides", [{}, {"MODEL__ICE__EVAL_ENCODER": "online", "MODEL__ICE__CHANNELS_LAST": True}])
def test_equal_up_to_rounding(engine, overrides):
    model, images = trained(**overrides), 255 * torch.rand(19, 3, 64, 32)
    with torch.no_grad():
        expected = model(images)
        with inference_engine(model, engine):
            found = torch.cat([model(images[:10]), model(images[10:18]), model(images[18:])])  # batches of any size
            assert not torch.equal(found, expected)  # another way, seen by its rounding
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(model(images), expected)  # behind it, the model itself


@pytest.mark.parametrize("engine", FAST)
def test_the_weights_are_those_of_its_beginning(engine):
    """Each use takes the weights anew."""
    model, images = trained(), 255 * torch.rand(4, 3, 64, 32)
    for _ in range(2):
        with torch.no_grad(), inference_engine(model, engine):
            found = model(images)
        torch.testing.assert_close(found, model(images).detach(), rtol=1e-4, atol=1e-5)
        for parameter in model.momentum_encoder.parameters():
            parameter.data.mul_(0.9)


@pytest.mark.parametrize("engine", FAST)
def test_one_image_alone(engine, monkeypatch):
    sessions = []
    monkeypatch.setattr(inference, "_session", lambda *made, make=inference._session: sessions.append(0) or make(*made))
    model, image = trained(), 255 * torch.rand(1, 3, 64, 32)
    with torch.no_grad(), inference_engine(model, engine):
        torch.testing.assert_close(
            model(image), model.momentum_encoder(model.preprocess_image(image)), atol=1e-5, rtol=0
        )
    assert len(sessions) == (engine == "onnxruntime")


def test_what_differs_is_not_used(monkeypatch, caplog):
    monkeypatch.setattr(inference, "_session", lambda encoder, images: lambda images: 1.01 * encoder(images))
    model, images = trained(), 255 * torch.rand(4, 3, 64, 32)
    with torch.no_grad():
        expected = model(images)
        with inference_engine(model, "onnxruntime"):
            torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
    assert "onnxruntime is not used: its embeddings would differ by 1.0e-02" in caplog.text


def test_an_error_leaves_the_model_as_it_was():
    model = trained()
    with pytest.raises(KeyError), inference_engine(model, "folded"):
        raise KeyError
    assert model.fast_encode is None


@pytest.mark.parametrize("engine", FAST)
def test_features_of_a_run(tiny_dataset, engine):
    cfg = ice_config(**OSNET)
    images, model = load_training_images(cfg), trained().train()
    plain = FeatureExtractor(len(images))(model, build_feature_loader(cfg, images))
    fast = FeatureExtractor(len(images), engine)(model, build_feature_loader(cfg, images))
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)
    assert model.training and not torch.equal(fast, plain) and not fast.is_inference()  # the clustering computes on it


@pytest.mark.parametrize("engine", FAST)
def test_scores_of_a_run(tiny_dataset, engine, monkeypatch):
    model, calls = trained(), []
    build = inference._build
    monkeypatch.setattr(inference, "_build", lambda *given: calls.append(given[-1]) or build(*given))
    plain, fast = (ICETrainer.test(ice_config(**OSNET, TEST__ENGINE=name), model) for name in ("torch", engine))
    assert fast["mAP"] == pytest.approx(plain["mAP"], abs=2) and calls == [engine]  # random weights: rounding reorders


@pytest.mark.parametrize(
    "overrides, said",
    [
        ({"TEST__ENGINE": "tensorrt"}, "TEST.ENGINE is 'tensorrt'; it must be one of torch, folded, onnxruntime"),
        ({"TEST__ENGINE": "onnxruntime", "MODEL__DEVICE": "cuda"}, "MODEL.DEVICE is cuda"),
        ({"TEST__ENGINE": "onnxruntime", "TEST__AMP": True}, "TEST.AMP is True"),
    ],
)
def test_keys_that_cannot_be(tiny_dataset, overrides, said):
    with pytest.raises(ValueError, match=said):
        check_config(ice_config(**overrides))


def test_a_package_that_is_missing(tiny_dataset, monkeypatch):
    monkeypatch.setattr(inference, "_PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(ValueError, match="needs no_such_package: pip install no_such_package"):
        check_config(ice_config(TEST__ENGINE="onnxruntime"))
