"""What tools/export_model.py refuses: one line that names it, exit code 1, nothing half-written."""

from __future__ import annotations

import importlib.util
import shutil

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import pytest
import torch

from fastreid_ice.cli.export import main
from fastreid_ice.export import comparison
from tests.exported_runs import untrained_run

pytestmark = pytest.mark.usefixtures("tiny_dataset")


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_dataset):
    return untrained_run(tmp_path_factory.mktemp("errors") / "run", "osnet", "x0_25", 128)


def refused(capsys, output, *argv) -> str:
    """The one line that the program ends with; ``output`` stays as it was."""
    before = {path: path.read_bytes() for path in output.parent.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as ended:
        main([*map(str, argv), "--output", str(output)])
    assert ended.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    assert {path: path.read_bytes() for path in output.parent.rglob("*") if path.is_file()} == before
    assert output in before or not output.exists()
    return lines[0]


# Arguments behind RUN, what the line says.
BAD_OPTIONS = {
    "format": (["--format", "onx"], "--format is 'onx' (did you mean onnx?); choose one of fastreid, onnx"),
    "input": (["--format", "onnx", "--input", "raw"], "--input is 'raw' (did you mean raw255?)"),
    "low opset": (["--format", "onnx", "--opset", "11"], "--opset is 11; it must be in 17..23"),
    "opset of another": (["--format", "torchscript", "--opset", "17"], "--opset is for --format onnx"),
    "input of weights": (["--input", "raw255"], "--input and --raw-output are for --format onnx and torchscript"),
    "raw weights": (["--format", "safetensors", "--raw-output"], "safetensors holds weights"),
    "images": (["--images", "nowhere.jpg"], "--images: there is no nowhere.jpg"),
    "config": (["--config-file", "nowhere.yml"], "nowhere.yml"),
    "key": (["MODEL.BACKBONE.DEPHT", "50x"], "DEPHT (did you mean DEPTH?)"),
    "value missing": (["MODEL.BACKBONE.DEPTH"], "has no value"),
    "weights of another": (["MODEL.HEADS.EMBEDDING_DIM", "16"], "does not fit the config"),
    "dimensions of another": (["MODEL.BACKBONE.FEAT_DIM", "64"], "FEAT_DIM is 64, but build_osnet_backbone"),
}


@pytest.mark.parametrize("argv, said", BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_options(run, tmp_path, capsys, argv, said):
    assert said in refused(capsys, tmp_path / "out", run, *argv)


def test_no_run(tmp_path, capsys):
    assert "There is no run or checkpoint" in refused(capsys, tmp_path / "out", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no checkpoint" in refused(capsys, tmp_path / "out", tmp_path / "empty")


@pytest.mark.parametrize("file_format", ["fastreid", "onnx", "torchscript", "safetensors"])
def test_a_truncated_checkpoint(run, tmp_path, capsys, file_format):
    shutil.copytree(run, tmp_path / "run")
    whole = (run / "model_0004.pth").read_bytes()
    (tmp_path / "run" / "model_0004.pth").write_bytes(whole[: len(whole) // 2])
    line = refused(capsys, tmp_path / "out", tmp_path / "run", "--format", file_format)
    assert "model_0004.pth is not a checkpoint, or is damaged" in line


def test_a_checkpoint_that_lacks_tensors(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    stored = torch.load(run / "model_0004.pth", weights_only=True)
    del stored["model"]["momentum_encoder.backbone.conv1.conv.weight"]
    torch.save(stored, tmp_path / "run" / "model_0004.pth")
    assert "lacks 1 of the model's tensors" in refused(capsys, tmp_path / "out", tmp_path / "run")


def test_no_config_beside_the_checkpoint(run, tmp_path, capsys):
    shutil.copy(run / "model_0004.pth", tmp_path)
    line = refused(capsys, tmp_path / "out", tmp_path / "model_0004.pth")
    assert "There is no config" in line and "--config-file" in line


def test_images_that_are_none(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "holds no image" in refused(capsys, tmp_path / "out", run, "--images", tmp_path / "empty")
    (tmp_path / "text.jpg").write_text("no image")
    line = refused(capsys, tmp_path / "out", run, "--images", tmp_path / "text.jpg")
    assert "text.jpg cannot be read as an image" in line


def test_an_output_that_cannot_be_written(run, tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    assert "out is a file; name a folder" in refused(capsys, tmp_path / "out", run)
    with pytest.raises(SystemExit):
        main([str(run), "--output", str(tmp_path / "out" / "below")])
    assert "cannot be written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_stock_fastreid_has_no_backbone_of_ones_own(tmp_path, capsys):
    more = {"MODEL.BACKBONE.NAME": "build_two_convolutions"}
    run = untrained_run(tmp_path / "run", "two_convolutions", "", 32, **more)
    assert "build_two_convolutions is not a backbone of stock fastreid" in refused(capsys, tmp_path / "out", run)


@pytest.mark.parametrize(
    "file_format, missing",
    [("onnx", "onnxruntime"), ("safetensors", "safetensors")],
)
def test_a_missing_package_is_named_with_the_command(run, tmp_path, capsys, monkeypatch, file_format, missing):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    line = refused(capsys, tmp_path / "out", run, "--format", file_format)
    assert line.endswith(f"--format {file_format} needs {missing}: pip install {missing}")


@pytest.mark.parametrize("file_format", ["fastreid", "onnx", "torchscript", "safetensors"])
def test_an_export_that_differs_is_not_kept(run, tmp_path, capsys, monkeypatch, file_format):
    """An older export at that place stays."""
    main([str(run), "--format", file_format, "--output", str(tmp_path / "a" / "out")])
    capsys.readouterr()
    older = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(comparison, "TOLERANCE", -1.0)
    with pytest.raises(SystemExit):
        main([str(run), "--format", file_format, "--output", str(tmp_path / "a" / "out")])
    assert "differs from torch by" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == older
    line = refused(capsys, tmp_path / "b", run, "--format", file_format)
    assert "The export is wrong, and was not kept" in line
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_the_screen_shows(run, tmp_path, capsys):
    main([str(run), "--format", "torchscript", "--output", str(tmp_path / "out"), "TEST.IMS_PER_BATCH", "4"])
    lines = capsys.readouterr().out.splitlines()
    name = "osnet_x0_25_tinyreid_ice.torchscript"
    assert f"wrote {tmp_path / 'out' / name}" in lines
    assert any(line.startswith("largest difference from torch: ") and "training images" in line for line in lines)


def test_without_data_the_comparison_is_on_noise_and_says_so(run, tmp_path, capsys):
    argv = ["--format", "torchscript", "--output", str(tmp_path), "DATASETS.NAMES", "()", "DATASETS.TESTS", "()"]
    main([str(run), *argv])
    assert "noise: none of the run's datasets can be read here" in capsys.readouterr().out


def test_images_of_ones_own(run, tmp_path, tiny_dataset, capsys):
    folder = tiny_dataset / "query"
    main([str(run), "--format", "torchscript", "--output", str(tmp_path), "--images", str(folder)])
    assert "on 8 given images" in capsys.readouterr().out
