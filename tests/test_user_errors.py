"""Mistakes of a user: one line that names key, value, file and choices, exit code 1, and nothing written."""

import os
import pickle
import shutil

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import pytest
import torch

from fastreid_ice.cli.train import main
from fastreid_ice.errors import closest, of_child_process, one_line, told_in_one_line
from tests import tiny  # noqa: F401  (registers the dataset and the backbone)
from tests.conftest import ROOT, SMALL, small_options

pytestmark = pytest.mark.usefixtures("tiny_dataset")

DEMO = str(ROOT / "configs" / "ICE" / "demo.yml")


def fails(capsys, *argv) -> str:
    """Run the command line, which must fail as for a user's mistake; returns the one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([str(item) for item in argv])
    assert end.value.code == 1
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert err.splitlines()[-1] == line
    return line


def train(output_dir, config=DEMO, **keys) -> list:
    options = {**SMALL, "OUTPUT_DIR": str(output_dir), **{key.replace("__", "."): value for key, value in keys.items()}}
    return ["--config-file", config, *small_options(options)]


# Found before anything is built or written: no output folder, nothing but the line.
WRONG_KEYS = [
    ({"MODEL.WEIGHTS": "nowhere.pth"}, ["MODEL.WEIGHTS", "nowhere.pth"]),
    ({"MODEL.BACKBONE.PRETRAIN": True, "MODEL.BACKBONE.PRETRAIN_PATH": "no.pth"}, ["PRETRAIN_PATH", "no.pth"]),
    ({"DATASETS.NAMES": "('Market1510',)"}, ["DATASETS.NAMES is 'Market1510'", "did you mean Market1501", "MSMT17"]),
    ({"DATASETS.TESTS": "('Nothing',)"}, ["DATASETS.TESTS is 'Nothing'", "DukeMTMC"]),
    ({"DATASETS.NAMES": "()"}, ["DATASETS.NAMES is empty"]),
    (
        {"MODEL.BACKBONE.NAME": "build_resnet"},
        ["MODEL.BACKBONE.NAME", "did you mean build_resn", "build_osnet_backbone"],
    ),
    (
        {"MODEL.BACKBONE.NAME": "build_resnet_backbone", "MODEL.BACKBONE.DEPTH": "50"},
        ["MODEL.BACKBONE.DEPTH is '50', which build_resnet_backbone does not know", "50x"],
    ),
    ({"SOLVER.WARMUP_EPOCHS": 1, "SOLVER.WARMUP_METHOD": "constant"}, ["WARMUP_METHOD is 'constant'", "linear"]),
    ({"MODEL.META_ARCHITECTURE": "Baseline"}, ["MODEL.META_ARCHITECTURE is 'Baseline'", "ICE"]),
    ({"MODEL.HEADS.NAME": "EmbeddingHead"}, ["MODEL.HEADS.NAME is 'EmbeddingHead'", "MemoryBankHead"]),
    ({"MODEL.HEADS.POOL_LAYER": "AvgPool"}, ["MODEL.HEADS.POOL_LAYER", "GlobalAvgPool"]),
    ({"MODEL.BACKBONE.NORM": "batch"}, ["MODEL.BACKBONE.NORM", "syncBN"]),
    ({"MODEL.LOSSES.NAME": "('TripletLoss',)"}, ["MODEL.LOSSES.NAME is 'TripletLoss'", "AgnosticLoss"]),
    ({"MODEL.LOSSES.AGNOSTIC.TEMPERATURE": -1}, ["MODEL.LOSSES.AGNOSTIC.TEMPERATURE is -1.0", "above 0"]),
    ({"MODEL.ICE.MOMENTUM": 1.0}, ["MODEL.ICE.MOMENTUM is 1.0", "[0, 1)"]),
    ({"MODEL.ICE.EVAL_ENCODER": "teacher"}, ["MODEL.ICE.EVAL_ENCODER", "momentum, online"]),
    ({"MODEL.ICE.BN_CHUNKS": 3}, ["MODEL.ICE.BN_CHUNKS (3)"]),
    ({"MODEL.ICE.BN_MOMENTUM": 0.0}, ["MODEL.ICE.BN_MOMENTUM is 0.0", "(0, 1]"]),
    ({"MODEL.ICE.IMPORTS": "('no_such_module',)"}, ["MODEL.ICE.IMPORTS names 'no_such_module'"]),
    ({"MODEL.DEVICE": "gpu"}, ["MODEL.DEVICE is 'gpu'", "cuda"]),
    ({"SOLVER.BASE_LR": -0.1}, ["SOLVER.BASE_LR is -0.1", "above 0"]),
    ({"SOLVER.BASE_LR": "fast"}, ["SOLVER.BASE_LR is 'fast'", "must be a number"]),
    ({"SOLVER.MAX_EPOCH": 0}, ["SOLVER.MAX_EPOCH is 0", "at least 1"]),
    ({"SOLVER.MAX_EPOCH": 2.5}, ["SOLVER.MAX_EPOCH is 2.5", "a whole number"]),
    ({"SOLVER.OPT": "adam"}, ["SOLVER.OPT is 'adam'", "AdamW"]),
    ({"SOLVER.SCHED": "StepLR"}, ["SOLVER.SCHED", "CosineAnnealingLR"]),
    ({"SOLVER.STEPS": "[20 30]"}, ["SOLVER.STEPS is", "whole numbers"]),
    ({"SOLVER.STEPS": "[30, 20]"}, ["SOLVER.STEPS is [30, 20]", "ascending"]),
    ({"MODEL.HEADS.NORM": "FrozenBN"}, ["MODEL.HEADS.NORM is 'FrozenBN'", "one of BN"]),
    ({"SOLVER.IMS_PER_BATCH": 10}, ["SOLVER.IMS_PER_BATCH (10)", "DATALOADER.NUM_INSTANCE (4)"]),
    ({"SOLVER.IMS_PER_BATCH": 0}, ["SOLVER.IMS_PER_BATCH is 0"]),
    ({"DATALOADER.NUM_INSTANCE": 0}, ["DATALOADER.NUM_INSTANCE is 0"]),
    ({"DATALOADER.NUM_WORKERS": -1}, ["DATALOADER.NUM_WORKERS is -1"]),
    ({"INPUT.SIZE_TRAIN": "[0, 0]"}, ["INPUT.SIZE_TRAIN is [0, 0]", "[height, width]"]),
    ({"INPUT.CROP.ENABLED": "True"}, ["INPUT.CROP.ENABLED is True", "must be False"]),
    ({"SEED": str(2**32)}, ["SEED is 4294967296", "below 2**32"]),
    ({"INPUT.SIZE_TEST": "[128]"}, ["INPUT.SIZE_TEST is [128]", "[height, width]"]),
    ({"INPUT.REA.AREA": "[0.5, 0.1]"}, ["INPUT.REA.AREA", "[smallest, largest]"]),
    ({"CLUSTERING.EPS": 7.0}, ["CLUSTERING.EPS is 7.0", "between 0 and 1"]),
    ({"CLUSTERING.METHOD": "typo"}, ["CLUSTERING.METHOD is 'typo'", "jaccard_dbscan", "ground_truth"]),
    ({"CLUSTERING.METHOD": "kmeans"}, ["CLUSTERING.NUM_CLUSTERS"]),
    ({"CLUSTERING.KNN": "annoy"}, ["CLUSTERING.KNN is 'annoy'", "hnsw"]),
    ({"CLUSTERING.K1": 0}, ["CLUSTERING.K1 is 0"]),
    ({"CLUSTERING.PERIOD": 0}, ["CLUSTERING.PERIOD is 0"]),
    ({"TEST.METRIC": "hamming"}, ["TEST.METRIC is 'hamming'", "cosine"]),
    ({"TEST.EVAL_PERIOD": -1}, ["TEST.EVAL_PERIOD is -1"]),
    ({"DATASETS.USE_CAMERAS": False}, ["CrossCameraLoss", "DATASETS.USE_CAMERAS is False", "market_agnostic.yml"]),
    (
        {"DATASETS.USE_CAMERAS": False, "MODEL.LOSSES.NAME": "('AgnosticLoss','IntraCameraLoss')"},
        ["MODEL.LOSSES.NAME has IntraCameraLoss, which needs camera ids"],
    ),
    ({"SOLVER.LEARNING_RATE": 0.1}, ["no config key SOLVER.LEARNING_RATE", "SOLVER has", "BASE_LR"]),
    ({"MODEL.BACKBON.NAME": "x"}, ["no config key MODEL.BACKBON", "did you mean BACKBONE"]),
    ({"MODEL.BACKBONE": "x"}, ["MODEL.BACKBONE is a group of keys"]),
    ({"OUTPUT_DIR": ""}, ["OUTPUT_DIR is empty"]),
    ({"DATASETS.TESTS": None}, ["DATASETS.TESTS is None", "must be a tuple"]),
    ({"CLUSTERING.K1": None}, ["CLUSTERING.K1 is None", "a whole number"]),
    ({"MODEL.BACKBONE.FEAT_DIM": 2048}, ["MODEL.BACKBONE.FEAT_DIM is 2048", "has 32 channels"]),
    (
        {"SOLVER.WARMUP_FACTOR": 0, "SOLVER.WARMUP_EPOCHS": 2},
        ["SOLVER.WARMUP_FACTOR is 0", "SOLVER.WARMUP_EPOCHS", "above 0"],
    ),
    (
        {"TEST.PRECISE_BN.ENABLED": True, "TEST.PRECISE_BN.DATASET": "Tiny"},
        ["TEST.PRECISE_BN.DATASET", "'Tiny'", "TinyReID"],
    ),
]


@pytest.mark.parametrize("keys, parts", WRONG_KEYS, ids=[next(iter(keys)) for keys, _ in WRONG_KEYS])
def test_wrong_keys(keys, parts, tmp_path, capsys):
    folder = tmp_path / "run"
    line = fails(capsys, *train(folder, **keys))
    assert all(part in line for part in parts), line
    assert not folder.exists()


def test_only_the_line_is_shown(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(item) for item in train(tmp_path / "run", **{"CLUSTERING.EPS": 7.0})])
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1


def test_a_whole_number_for_a_float(tmp_path):
    from fastreid_ice.config_files import load_config

    assert load_config(DEMO, ["SOLVER.BASE_LR", "1", "DATASETS.TESTS", "Market1501"]).SOLVER.BASE_LR == 1.0


@pytest.mark.parametrize(
    "argv, parts",
    [
        ([], ["--config-file"]),
        (["--config-file", str(ROOT / "configs/ICE/markt.yml")], ["markt.yml", "did you mean market.yml"]),
        (["--config-file", DEMO, "SOLVER.MAX_EPOCH"], ["SOLVER.MAX_EPOCH has no value"]),
        (["--config-file", DEMO, "--eval-only"], ["--eval-only needs MODEL.WEIGHTS"]),
        (
            ["--config-file", DEMO, "--eval-only", "MODEL.WEIGHTS", DEMO, "DATASETS.TESTS", "()"],
            ["--eval-only needs DATASETS.TESTS"],
        ),
    ],
)
def test_wrong_command_lines(argv, parts, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    line = fails(capsys, *argv)
    assert all(part in line for part in parts), line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text, parts",
    [
        ("a: [1", ["broken.yml is not YAML"]),
        ("- a\n- b\n", ["broken.yml holds list"]),
        ("_BASE_: nowhere.yml\n", ["broken.yml: _BASE_ names nowhere.yml"]),
        ("SOLVER:\n  MAX_EPOCH: soon\n", ["broken.yml: SOLVER.MAX_EPOCH is 'soon'"]),
        ("_BASE_: broken.yml\n", ["broken.yml is its own _BASE_"]),
        ("_BASE_: [a.yml, b.yml]\n", ["broken.yml: _BASE_ is ['a.yml', 'b.yml']", "one file"]),
    ],
)
def test_broken_config_files(text, parts, tmp_path, capsys):
    (tmp_path / "broken.yml").write_text(text)
    line = fails(capsys, "--config-file", tmp_path / "broken.yml")
    assert all(part in line for part in parts), line


def test_a_module_that_fails_to_import(tmp_path, capsys):
    (tmp_path / "broken_module.py").write_text("1 / 0\n")
    shutil.copy(DEMO, tmp_path / "demo.yml")
    shutil.copy(ROOT / "configs" / "ICE" / "Base-ICE.yml", tmp_path / "Base-ICE.yml")
    config = str(tmp_path / "demo.yml")
    line = fails(capsys, *train(tmp_path / "run", config, **{"MODEL.ICE.IMPORTS": "('broken_module',)"}))
    assert "importing broken_module" in line and "ZeroDivisionError" in line


# Files that are not what they should be.


@pytest.mark.parametrize("eval_only", [False, True])
@pytest.mark.parametrize("content", ["text", "empty", "code", "half"])
def test_weights_that_are_none(content, eval_only, tmp_path, capsys):
    path = tmp_path / "weights.pth"
    if content == "code":
        path.write_bytes(pickle.dumps({"model": pytest.approx(1)}))
    elif content == "half":
        torch.save({"model": {"a": torch.zeros(1000)}}, path)
        path.write_bytes(path.read_bytes()[:2000])
    else:
        path.write_text("weights" if content == "text" else "")
    line = fails(capsys, *["--eval-only"] * eval_only, *train(tmp_path / "run", **{"MODEL.WEIGHTS": str(path)}))
    assert f"{path} is not a checkpoint" in line


def test_weights_of_another_model(tmp_path, capsys):
    torch.save({"model": {"conv1.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    for flags in ([], ["--eval-only"]):
        line = fails(capsys, *flags, *train(tmp_path / "run", **{"MODEL.WEIGHTS": str(tmp_path / "other.pth")}))
        assert "None of the checkpoint's tensors belongs to this model" in line


def test_a_missing_dataset(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastreid.data.build._root", str(tmp_path / "nothing"))
    for key in ("DATASETS.NAMES", "DATASETS.TESTS"):
        line = fails(capsys, *train(tmp_path / "run", **{key: "('Market1501',)"}))
        assert f"Market1501 of {key}" in line and "FASTREID_DATASETS" in line


def test_an_output_folder_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    line = fails(capsys, *train(tmp_path / "file" / "run"))
    assert "OUTPUT_DIR" in line and "is a file" in line
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture
def damaged(tiny_dataset, tmp_path, monkeypatch):
    """A copy of the dataset whose images a test may damage."""
    root = tmp_path / "datasets"
    shutil.copytree(tiny_dataset, root / tiny_dataset.name)
    monkeypatch.setattr("fastreid.data.build._root", str(root))
    return root / tiny_dataset.name


@pytest.mark.parametrize("content", [b"no picture", b""])
@pytest.mark.parametrize("part, last", [("bounding_box_train", False), ("query", True), ("bounding_box_test", False)])
def test_a_corrupt_image_is_named(content, part, last, damaged, tmp_path, capsys):
    path = sorted((damaged / part).glob("*.jpg"))[-1 if last else 0]
    path.write_bytes(content)
    line = fails(capsys, *train(tmp_path / "run"))
    assert f"{path} cannot be read as an image" in line
    assert "Traceback" in (tmp_path / "run" / "log.txt").read_text()  # kept for whoever needs it


def test_a_workers_error_is_one_line_too(damaged, tmp_path, capsys):
    path = min((damaged / "bounding_box_train").glob("*.jpg"))
    path.write_bytes(b"no picture")
    line = fails(capsys, *train(tmp_path / "run", **{"DATALOADER.NUM_WORKERS": 1}))
    assert line.startswith(f"error: {path} cannot be read as an image") and "Caught" not in line


def test_too_few_clusters(tmp_path, capsys):
    line = fails(capsys, *train(tmp_path / "run", **{"CLUSTERING.EPS": 0.01, "CLUSTERING.MIN_SAMPLES": 30}))
    assert "CLUSTERING.EPS (now 0.01)" in line


def test_a_loss_that_becomes_nan(tmp_path, capsys):
    line = fails(capsys, *train(tmp_path / "run", **{"MODEL.LOSSES.SOFT_INSTANCE.SCALE": float("inf")}))
    assert "infinite or NaN" in line and "No checkpoint was written before" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_without_permission(tmp_path, capsys):
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "closed" in fails(capsys, *train(tmp_path / "closed" / "run"))


def test_a_failed_download(tmp_path, capsys, monkeypatch):
    from fastreid_ice.modeling import pretrained

    build = pretrained.build_backbone

    def offline(cfg):
        if cfg.MODEL.BACKBONE.PRETRAIN:
            raise OSError("no network")
        return build(cfg)

    monkeypatch.setattr(pretrained, "build_backbone", offline)
    line = fails(capsys, *train(tmp_path / "run", **{"MODEL.BACKBONE.PRETRAIN": True}))
    assert "could not be downloaded" in line and "MODEL.BACKBONE.PRETRAIN_PATH" in line


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ValueError, match="CLUSTERING.EPS is 7.0"):
        main([*map(str, train(tmp_path / "run", **{"CLUSTERING.EPS": 7.0})), "--debug"])


def test_a_mistake_of_ours_keeps_its_traceback(capsys):
    with pytest.raises(TypeError), told_in_one_line():
        len(None)
    with pytest.raises(SystemExit) as end, told_in_one_line():
        raise KeyboardInterrupt
    assert end.value.code == 130


def test_two_processes_tell_one_line(tmp_path, capsys):
    keys = {"SOLVER.IMS_PER_BATCH": 8, "DATASETS.NAMES": "('Market1501',)", "MODEL.BACKBONE.FEAT_DIM": 128}
    argv = train(tmp_path / "run", **keys)
    argv[argv.index("MODEL.BACKBONE.NAME") + 1] = "build_osnet_backbone"  # spawned processes do not import tests.tiny
    argv += ["DATASETS.TESTS", "('Market1501',)"]
    line = fails(capsys, "--num-gpus", 2, "--dist-url", "auto", *argv)
    assert "Market1501 of DATASETS.TESTS" in line


def test_messages():
    assert one_line(OSError(28, "No space left on device", "model.pth")) == "model.pth: No space left on device"
    assert one_line(ValueError("a\n   b")) == "a b" and one_line(ValueError()) == "ValueError"
    assert closest("xyz", ["Market1501"]) == ""
    assert of_child_process(ValueError("of this process")) is None


def test_the_home_folder(tmp_path, monkeypatch):
    """fastreid opens files by the names that it is given."""
    from fastreid_ice.config_files import load_config

    monkeypatch.setenv("HOME", str(tmp_path))
    keys = ("MODEL.WEIGHTS", "MODEL.BACKBONE.PRETRAIN_PATH", "OUTPUT_DIR")
    cfg = load_config(DEMO, [text for key in keys for text in (key, "~/x")])
    found = (cfg.MODEL.WEIGHTS, cfg.MODEL.BACKBONE.PRETRAIN_PATH, cfg.OUTPUT_DIR)
    assert found == (str(tmp_path / "x"),) * 3
