"""ONNX, TorchScript and safetensors: run by their own runtimes, compared with the model in torch."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import shutil
from pathlib import Path

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import pytest
import torch
import torch.nn.functional as F

from fastreid_ice.cli.export import main
from fastreid_ice.config_files import load_config
from fastreid_ice.engine.checkpoints import load_trained_model
from fastreid_ice.export import export_model, onnx_format, torchscript_format
from fastreid_ice.export.comparison import max_difference
from fastreid_ice.export.encoder import IMAGENET_MEAN, IMAGENET_STD, INPUT_FORMS
from fastreid_ice.export.safetensors_format import SBS_RESNEST50, reid_architecture
from fastreid_ice.files import sha256
from fastreid_ice.modeling import onnx_graph
from tests.conftest import ROOT
from tests.exported_runs import people, untrained_run

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
safetensors_torch = pytest.importorskip("safetensors.torch")

pytestmark = pytest.mark.usefixtures("tiny_dataset")

GRAPHS = ("onnx", "torchscript")
RUNNERS = {"onnx": onnx_format.runner, "torchscript": torchscript_format.runner}
NAME = "osnet_x0_25_tinyreid_ice"


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_dataset):
    return untrained_run(tmp_path_factory.mktemp("graphs") / "run", "osnet", "x0_25", 128)


@pytest.fixture(scope="module")
def exported(run):
    """{(format, input form): file}"""
    files = {}
    for file_format in GRAPHS:
        for form in INPUT_FORMS:
            result = export_model(run, format=file_format, output=run.parent / "out", input_form=form)
            assert result.max_difference < 1e-4 and result.images == "8 training images of TinyReID"
            files[file_format, form] = result.files[0]
    return files


def trained(run: Path, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return load_trained_model(run, device="cpu").model(images.clone())


@pytest.mark.parametrize("file_format", GRAPHS)
def test_each_input_form_means_what_it_says(run, exported, file_format):
    """By hand: what a consumer feeds, for batches of any size."""
    images = people(5)
    expected = F.normalize(trained(run, images), dim=1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    inputs = {"normalized": (images / 255 - mean) / std, "raw255": images, "square01": images / 255}
    for form, values in inputs.items():
        run_file = RUNNERS[file_format](exported[file_format, form])
        for count in (1, 3, 5):
            assert torch.allclose(run_file(values[:count]), expected[:count], atol=5e-5, rtol=0)


@pytest.mark.parametrize("file_format", GRAPHS)
def test_square01_resizes_inside(run, exported, file_format):
    run_file = RUNNERS[file_format](exported[file_format, "square01"])
    for size in ((96, 96), (31, 70)):
        images = people(2, size)
        resized = F.interpolate(images, (64, 32), mode="bilinear", align_corners=False)
        expected = F.normalize(trained(run, resized), dim=1)
        assert torch.allclose(run_file(images / 255), expected, atol=5e-5, rtol=0)


def test_the_onnx_file(run, exported):
    path = exported["onnx", "normalized"]
    assert path.name == f"{NAME}.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (images,), (embeddings,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.shape) == ("images", ["batch", 3, 64, 32])
    assert (embeddings.name, embeddings.shape) == ("embeddings", ["batch", 128])
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == 17
    any_size = onnxruntime.InferenceSession(str(exported["onnx", "square01"]), providers=["CPUExecutionProvider"])
    assert any_size.get_inputs()[0].shape == ["batch", 3, "height", "width"]


@pytest.mark.parametrize("file_format", GRAPHS)
def test_the_description_is_in_the_file_and_beside_it(run, exported, file_format):
    path = exported[file_format, "normalized"]
    text = path.with_name(f"{path.name}.metadata.json").read_text()
    beside = json.loads(text)
    expected = {
        "input": "normalized",
        "size": [64, 32],
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "colour_order": "RGB",
        "l2_normalized": True,
        "embedding_size": 128,
        "input_names": ["images"],
        "output_names": ["embeddings"],
        "datasets": ["TinyReID"],
        "architecture": "osnet_x0_25",
        "source": "model_0004.pth",
        "source_sha256": sha256(run / "model_0004.pth"),
    }
    assert expected.items() <= beside.items()
    assert beside["model_kwargs"] == {"img_size": [64, 32]}  # what boxmot reads
    assert str(run.parent) not in text
    if file_format == "onnx":
        inside = {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}
        # ultralytics makes each key an attribute of its own object: none may be one that it has
        assert all(key.startswith("reid_") for key in inside)
        assert json.loads(inside["reid_size"]) == [64, 32] and inside["reid_colour_order"] == "RGB"
        assert inside["reid_source_sha256"] == beside["source_sha256"]
    else:
        _, inside = torchscript_format.read_torchscript(path)
        assert inside == {key: beside[key] for key in inside} and expected.keys() <= inside.keys()


@pytest.mark.parametrize("file_format", GRAPHS)
def test_raw_output_keeps_the_length(run, tmp_path, file_format):
    result = export_model(run, format=file_format, output=tmp_path, input_form="raw255", raw_output=True)
    images = people(3)
    assert torch.allclose(RUNNERS[file_format](result.files[0])(images), trained(run, images), atol=5e-4, rtol=1e-4)
    assert json.loads(result.files[1].read_text())["l2_normalized"] is False


def test_imagenet_values_fit_a_model_with_other_statistics(run, tmp_path):
    """A model trained with its own mean and std still takes what consumers feed."""
    opts = ["MODEL.PIXEL_MEAN", [100.0, 110.0, 120.0], "MODEL.PIXEL_STD", [50.0, 60.0, 70.0]]
    result = export_model(run, format="torchscript", output=tmp_path, opts=opts)
    images = people(2)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        expected = F.normalize(load_trained_model(run, opts=opts, device="cpu").model(images), dim=1)
    found = RUNNERS["torchscript"](result.files[0])((images / 255 - mean) / std)
    assert torch.allclose(found, expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize(
    "backbone, depth, channels, more",
    [
        ("mobilenetv2", "0.25x", 1280, {}),
        ("resnet", "18x", 512, {"MODEL.BACKBONE.WITH_IBN": True}),
        ("resnet", "34x", 512, {"MODEL.HEADS.POOL_LAYER": "GeneralizedMeanPoolingP"}),
        ("osnet", "x0_25", 128, {"MODEL.HEADS.EMBEDDING_DIM": 32, "MODEL.HEADS.POOL_LAYER": "FastGlobalAvgPool"}),
    ],
    ids=["mobilenetv2", "resnet18_ibn", "resnet34_gem", "osnet_reduced"],
)
def test_other_backbones_and_heads_agree_with_torch(tmp_path, backbone, depth, channels, more):
    run = untrained_run(tmp_path / "run", backbone, depth, channels, **more)
    for file_format in ("fastreid", "onnx", "torchscript", "safetensors"):
        assert export_model(run, format=file_format, output=tmp_path / file_format).max_difference < 1e-4


def test_a_backbone_of_ones_own_exports_as_a_graph(tmp_path):
    more = {"MODEL.BACKBONE.NAME": "build_two_convolutions", "MODEL.ICE.IMPORTS": ("tests.tiny",)}
    run = untrained_run(tmp_path / "run", "two_convolutions", "", 32, **more)
    for file_format in GRAPHS:
        result = export_model(run, format=file_format, output=tmp_path)
        assert result.max_difference < 1e-4 and result.files[0].name == f"two_convolutions_tinyreid_ice.{file_format}"


def test_safetensors(run, tmp_path):
    result = export_model(run, format="safetensors", output=tmp_path)
    folder = tmp_path / NAME
    assert sorted(path.name for path in folder.iterdir()) == ["export.json", "reid_config.json", "weights.safetensors"]
    weights = safetensors_torch.load_file(str(folder / "weights.safetensors"))
    stored = torch.load(run / "model_0004.pth", weights_only=True)["model"]
    assert all(torch.equal(value, stored[f"momentum_encoder.{name}"]) for name, value in weights.items())
    assert len(weights) == sum(name.startswith("momentum_encoder.") for name in stored)
    config = json.loads((folder / "reid_config.json").read_text())
    assert config["architecture"] == "fastreid:osnet_x0_25"
    assert config["preprocessing"]["input_size"] == [64, 32]
    assert any("cannot load this folder" in note for note in result.notes)


def test_safetensors_names_the_models_own_statistics(run, tmp_path):
    """There is no graph that could correct for them."""
    opts = ["MODEL.PIXEL_MEAN", [127.5] * 3, "MODEL.PIXEL_STD", [51.0] * 3]
    export_model(run, format="safetensors", output=tmp_path, opts=opts)
    for name in ("reid_config.json", "export.json"):
        content = json.loads((tmp_path / NAME / name).read_text())
        content = content.get("preprocessing", content)
        assert content["mean"] == [0.5] * 3 and content["std"] == [0.2] * 3


def test_a_run_that_evaluates_in_bfloat16(run, tmp_path):
    """Exports compute in float32, and are compared so."""
    opts = ["TEST.AMP", True, "SOLVER.AMP.DTYPE", "bfloat16"]
    assert export_model(run, format="torchscript", output=tmp_path, opts=opts).max_difference < 1e-4


def test_resnest50_is_an_architecture_of_reid(tmp_path):
    """Pooling by the mean is its generalised mean with power 1; the power is then in the file."""
    more = {"MODEL.HEADS.POOL_LAYER": "GlobalAvgPool"}
    run = untrained_run(tmp_path / "run", "resnest", "50x", 2048, **more)
    result = export_model(run, format="safetensors", output=tmp_path)
    folder = tmp_path / "resnest50_tinyreid_ice"
    assert json.loads((folder / "reid_config.json").read_text())["architecture"] == SBS_RESNEST50
    assert safetensors_torch.load_file(str(folder / "weights.safetensors"))["heads.pool_layer.p"].tolist() == [1.0]
    assert result.notes == ()


@pytest.mark.parametrize(
    "change",
    [
        ["MODEL.BACKBONE.DEPTH", "101x"],
        ["MODEL.BACKBONE.LAST_STRIDE", 2],
        ["MODEL.HEADS.WITH_BNNECK", False],
        ["MODEL.HEADS.EMBEDDING_DIM", 256],
        ["MODEL.HEADS.POOL_LAYER", "GlobalMaxPool"],
    ],
    ids=lambda change: change[0].rsplit(".")[-1],
)
def test_what_reid_does_not_compute_has_no_name_of_its(change):
    opts = ["MODEL.BACKBONE.NAME", "build_resnest_backbone"]
    assert reid_architecture(load_config(ROOT / "configs/ICE/market.yml", opts).MODEL, "x") == SBS_RESNEST50
    assert reid_architecture(load_config(ROOT / "configs/ICE/market.yml", opts + change).MODEL, "x") == "fastreid:x"


@pytest.mark.skipif(torch.__version__.startswith("2.3."), reason="torch 2.3 writes a ReduceL2 that opset 18 has not")
def test_another_opset(run, tmp_path):
    path = export_model(run, format="onnx", output=tmp_path, opset=18).files[0]
    assert onnx.load(str(path)).opset_import[0].version == 18


def test_where_tracing_fails_the_other_exporter_is_taken(tmp_path, monkeypatch):
    """As in a torch that has no exporter by tracing any more; it gives the same, with dynamic batch."""
    pytest.importorskip("onnxscript")
    if "dynamo" not in inspect.signature(torch.onnx.export).parameters:
        pytest.skip("this torch has the exporter by tracing only")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()
    export = torch.onnx.export
    asked = []

    def without_tracing(*args, dynamo=True, **options):
        asked.append(dynamo)
        if not dynamo:
            raise TypeError("no such exporter")
        return export(*args, dynamo=True, **options)

    without_tracing.__signature__ = inspect.signature(export)
    monkeypatch.setattr(torch.onnx, "export", without_tracing)
    images, path = people(4), tmp_path / "model.onnx"
    onnx_graph.write_onnx(model, images[:2], path, opset=17, dynamic_size=False)
    assert asked == [False, True] and [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    with torch.no_grad():
        assert torch.allclose(onnx_format.runner(path)(images), model(images), atol=1e-3, rtol=1e-5)


def test_the_largest_difference_by_hand():
    expected = torch.tensor([[0.0, 4.0], [1.0, 1.0]])
    inputs = torch.zeros(2, 3, 1, 1)
    # 0.2 off where the largest value is 4: 0.05. The first image alone is 0.4 off: 0.1.
    wrong = {2: torch.tensor([[0.0, 4.0], [1.2, 1.0]]), 1: torch.tensor([[0.0, 3.6]])}
    assert max_difference(lambda x: wrong[len(x)], inputs, expected) == pytest.approx(0.1)
    with pytest.raises(RuntimeError, match=r"gives \(2, 1\), not \(2, 2\)"):
        max_difference(lambda x: torch.zeros(len(x), 1), inputs, expected)
    with pytest.raises(RuntimeError, match="no numbers"):
        max_difference(lambda x: torch.full((len(x), 2), float("nan")), inputs, expected)


def test_the_pages_commands(run, tmp_path, monkeypatch):
    """docs/export.md, as it stands, for another run."""
    page = (ROOT / "docs" / "export.md").read_text()
    block = re.search(r"```shell\n(.*?)```", page, re.DOTALL)
    assert block is not None
    commands = block[1].splitlines()
    (tmp_path / "logs" / "market1501").mkdir(parents=True)
    shutil.copytree(run, tmp_path / "logs" / "market1501" / "ice_R50")
    folder = tmp_path / "logs" / "market1501" / "ice_R50"
    shutil.copy(folder / "model_0004.pth", folder / "model_0007.pth")
    monkeypatch.chdir(tmp_path)
    for command in commands:
        python, tool, *argv = shlex.split(command)
        assert (python, tool) == ("python", "tools/export_model.py")
        main(argv)
    written = {str(path) for folder in ("zoo", "exported") for path in Path(folder).rglob("*") if path.is_file()}
    assert {
        f"exported/{NAME}{end}" for end in (".onnx", "_square01.onnx", "_raw255_raw.onnx", ".torchscript")
    } <= written
    assert "zoo/configs/TinyReID/ice_osnet_x0_25.yml" in written and len(commands) == 6
