"""run.json: what is in it, what must not be, and how it follows a run."""

from __future__ import annotations

import copy
import getpass
import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fastreid_ice.report.environment import commit, machine, versions
from fastreid_ice.report.manifest import (
    backbone_name,
    build_manifest,
    method_name,
    plain_config,
    read_manifest,
    update_manifest,
    write_manifest,
)
from fastreid_ice.report.records import best_record, last_record

BASE: dict[str, Any] = {
    "SEED": 1,
    "OUTPUT_DIR": "logs/",
    "CLUSTERING": {"METHOD": "jaccard_dbscan", "EPS": 0.55, "MIN_SAMPLES": 4},
    "DATALOADER": {"NUM_WORKERS": 8},
    "DATASETS": {"NAMES": ("Market1501",), "TESTS": ("Market1501",), "USE_CAMERAS": True},
    "INPUT": {"SIZE_TRAIN": [256, 128]},
    "MODEL": {
        "META_ARCHITECTURE": "ICE",
        "DEVICE": "cpu",
        "WEIGHTS": "",
        "BACKBONE": {"NAME": "build_resnet_backbone", "DEPTH": "50x", "WITH_IBN": False, "PRETRAIN_PATH": ""},
        "LOSSES": {"NAME": ("AgnosticLoss", "HardInstanceLoss"), "AGNOSTIC": {"SCALE": 1.0}},
        "ICE": {"SHUFFLE_BN": True},
    },
    "SOLVER": {"MAX_EPOCH": 2, "ITERS_PER_EPOCH": 400, "CHECKPOINT_PERIOD": 1},
}


def config(**overrides: Any) -> dict[str, Any]:
    """BASE with overrides such as ``CLUSTERING__EPS=0.5``."""
    cfg = copy.deepcopy(BASE)
    for key, value in overrides.items():
        *nodes, last = key.split("__")
        node = cfg
        for name in nodes:
            node = node[name]
        node[last] = value
    return cfg


def row(epoch: int, mean_ap: float, rank1: float | None = None, prefix: str = "", **more: Any) -> dict[str, Any]:
    """A row of results.json; Rank-5 and Rank-10 are 1 and 2 above Rank-1, which is 10 above the mAP by default."""
    rank1 = mean_ap + 10 if rank1 is None else rank1
    scores = {"mAP": mean_ap, "Rank-1": rank1, "Rank-5": rank1 + 1, "Rank-10": rank1 + 2}
    return {"epoch": epoch, **{prefix + name: value for name, value in scores.items()}, **more}


def write_run(
    folder: Path,
    rows: list[dict[str, Any]] | None = None,
    *,
    seed: int = 1,
    status: str = "finished",
    hours: float = 1.0,
    images: int = 12936,
    gpus: tuple[str, ...] = (),
    name: str | None = None,
    **overrides: Any,
) -> Path:
    """A folder as a run leaves it, without weights; by default with 30 and 40 mAP after two epochs."""
    rows = [row(1, 30.0), row(2, 40.0)] if rows is None else rows
    cfg = config(SEED=seed, OUTPUT_DIR=str(folder), **overrides)
    manifest = build_manifest(cfg, BASE, seed=seed, images=images, cameras=6, gpus=gpus, name=name)
    done = max((record["epoch"] for record in rows), default=0)
    manifest = update_manifest(manifest, rows, epochs_done=done, seconds=3600 * hours, status=status)
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder / "run.json", manifest)
    (folder / "results.json").write_text(json.dumps(rows))
    return folder


def start(**overrides: Any) -> dict[str, Any]:
    return build_manifest(config(**overrides), BASE, seed=3, images=100, cameras=6)


def test_start():
    manifest = start(CLUSTERING__EPS=0.5, SEED=-1)
    assert manifest["status"] == "running" and manifest["seed"] == 3
    assert manifest["name"] == "ICE" and manifest["backbone"] == "ResNet-50"
    assert manifest["datasets"] == {"train": ["Market1501"], "tests": ["Market1501"]}
    assert (manifest["images"], manifest["cameras"], manifest["identities"]) == (100, 6, None)
    assert (manifest["epochs"], manifest["steps_per_epoch"], manifest["steps_done"]) == (2, 400, 0)
    assert manifest["scores"] == {"best": None, "last": None}
    assert manifest["differences"] == {"CLUSTERING.EPS": 0.5, "SEED": -1}
    assert manifest["config"]["MODEL"]["LOSSES"]["NAME"] == ["AgnosticLoss", "HardInstanceLoss"]


def test_keys_that_the_base_lacks_are_differences():
    assert start(CLUSTERING__NEW=1)["differences"] == {"CLUSTERING.NEW": 1}


def test_names_of_methods_and_backbones():
    assert method_name(config(DATASETS__USE_CAMERAS=False)) == "ICE (agnostic)"
    assert method_name(config(DATASETS__USE_CAMERAS=False, CLUSTERING__METHOD="ground_truth")) == "true labels"
    assert method_name(config(DATASETS__SOURCE=("DukeMTMC", "CUHK03"))) == "ICE (source DukeMTMC + CUHK03)"
    assert method_name({"MODEL": {"META_ARCHITECTURE": "Baseline"}}) == "Baseline"
    assert build_manifest(BASE, BASE, seed=1, images=1, cameras=1, name="mine")["name"] == "mine"

    def backbone(name: str, depth: str, **more: bool) -> str:
        return backbone_name({"MODEL": {"BACKBONE": {"NAME": f"build_{name}_backbone", "DEPTH": depth, **more}}})

    assert backbone("resnet", "50x", WITH_IBN=True, WITH_NL=True) == "ResNet-50-IBN-NL"
    assert backbone("osnet", "x1_0") == "OSNet x1.0"
    assert backbone("vit", "base") == "ViT-base"
    assert backbone("two_convolutions", "50x") == "two_convolutions"


def test_after_epochs_and_over_a_resume():
    rows = [
        row(0, 5.0),
        row(1, 30.0, best=True, clusters=7.0, outliers=3.0),
        row(2, 20.0, best=False, clusters=9.0, outliers=2.0),
    ]
    first = update_manifest(start(), rows[:2], epochs_done=1, seconds=1800)
    assert (first["hours"], first["steps_done"], first["clusters"]) == (0.5, 400, 7)
    resumed = build_manifest(config(), BASE, seed=3, images=100, cameras=6, earlier=first)
    assert resumed["status"] == "running" and resumed["epochs_done"] == 1 and resumed["scores"] == first["scores"]
    last = update_manifest(resumed, rows, epochs_done=2, seconds=900, status="finished")
    assert (last["status"], last["hours"], last["steps_done"]) == ("finished", 0.75, 800)
    assert (last["clusters"], last["outliers"]) == (9, 2)
    assert last["scores"]["best"]["epoch"] == 1 and last["scores"]["last"]["epoch"] == 2
    assert last["scores"]["last"]["Market1501"] == {"mAP": 20.0, "Rank-1": 30.0, "Rank-5": 31.0, "Rank-10": 32.0}
    assert first["status"] == "running" and start()["hours"] == 0  # copies: none was changed


def test_a_config_that_changes_on_the_way():
    """Said of what a resumed run does otherwise; not of where it computes, nor of how long it is to go on."""

    def resumed(earlier, **overrides):
        return build_manifest(config(**overrides), BASE, seed=3, images=100, cameras=6, earlier=earlier)

    first = {**start(CLUSTERING__EPS=0.6), "epochs_done": 5}
    assert first["changed"] == []
    free = {"SOLVER__MAX_EPOCH": 9, "DATALOADER__NUM_WORKERS": 1, "MODEL__WEIGHTS": "a.pth"}
    assert resumed(first, CLUSTERING__EPS=0.6, **free)["changed"] == []
    second = {**resumed(first, CLUSTERING__EPS=0.5), "epochs_done": 7}
    assert second["changed"] == [{"until_epoch": 5, "before": {"CLUSTERING.EPS": 0.6}}]
    third = resumed(second, CLUSTERING__EPS=0.5, CLUSTERING__MIN_SAMPLES=2)
    assert third["changed"] == [*second["changed"], {"until_epoch": 7, "before": {"CLUSTERING.MIN_SAMPLES": 4}}]


def test_status_is_one_of_three():
    with pytest.raises(ValueError, match="'done'; choose one of running, finished, interrupted"):
        update_manifest(start(), [], epochs_done=1, seconds=1, status="done")


def test_best_and_last():
    def epochs(rows: list[dict[str, Any]]) -> list[int | None]:
        found = [find(rows, ["Market1501"]) for find in (best_record, last_record)]
        return [None if record is None else record["epoch"] for record in found]

    rows = [row(0, 99.0), row(2, 30.0, 50.0), {"epoch": 3, "clusters": 5}, row(1, 31.0, 40.0)]
    # (30 + 50) / 2 beats (31 + 40) / 2; the start does not count; epoch 3 was not evaluated.
    assert epochs(rows) == [2, 2]
    assert epochs([*rows[:3], row(1, 31.0, 40.0, best=True)]) == [1, 2]  # as the run marked it
    assert epochs(rows[:1]) == [0, 0]
    assert epochs([{"epoch": 1}]) == [None, None] == epochs([])
    assert best_record(rows, []) is None  # no test set


def test_several_test_sets():
    tests = ("Market1501", "MSMT17")
    rows = [
        {**row(e, m, prefix="Market1501/"), **row(e, s, prefix="MSMT17/")} for e, m, s in ((1, 30, 20), (2, 20, 25))
    ]
    manifest = update_manifest(start(DATASETS__TESTS=tests), rows, epochs_done=2, seconds=1)
    assert manifest["scores"]["best"]["epoch"] == 1
    assert manifest["scores"]["best"]["MSMT17"]["mAP"] == 20 and manifest["scores"]["last"]["Market1501"]["mAP"] == 20


def test_no_names_of_hosts_users_or_folders(tmp_path):
    home = f"/home/{getpass.getuser()}/secret"
    manifest = start(
        OUTPUT_DIR=f"{home}/runs/market",
        MODEL__WEIGHTS="../secret/start.pth",
        MODEL__BACKBONE__PRETRAIN_PATH=rf"C:\secret\{socket.gethostname()}-x\osnet.pth",
        INPUT__OVERLAY="~/secret/overlay.png",
        INPUT__PATTERN=r"(?P<camera>\d+)/.*",
    )
    text = json.dumps(manifest)
    assert "secret" not in text and str(tmp_path) not in text and str(Path.home()) + "/" not in text
    assert f'"{socket.gethostname()}"' not in text
    kept = manifest["config"]
    assert kept["OUTPUT_DIR"] == "market" and kept["MODEL"]["WEIGHTS"] == "start.pth"
    assert kept["MODEL"]["BACKBONE"]["PRETRAIN_PATH"] == "osnet.pth" and kept["INPUT"]["OVERLAY"] == "overlay.png"
    assert kept["INPUT"]["PATTERN"] == r"(?P<camera>\d+)/.*"  # slashes alone make no path


def test_plain_config_of_a_config_node():
    from yacs.config import CfgNode

    node = CfgNode({"A": {"B": (1, 2)}, "OUTPUT_DIR": "/x/y/"})
    plain = plain_config(node)
    assert plain == {"A": {"B": [1, 2]}, "OUTPUT_DIR": "y"} and type(plain["A"]) is dict


def test_versions_and_machine():
    found = versions()
    assert {"python", "fastreid_ice", "torch", "torchvision", "numpy", "faiss", "numba", "fastreid"} == set(found)
    assert found["numpy"] and found["faiss"]
    hardware = machine(["NVIDIA V100"])
    assert set(hardware) == {"cpu", "cores", "threads", "gpus"} and hardware["gpus"] == ["NVIDIA V100"]
    assert hardware["threads"] >= 1 and hardware["cpu"]
    assert machine(threads=7)["threads"] == 7


def test_commit(tmp_path):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert commit(tmp_path) is None  # no checkout
    git("init", "-q")
    assert commit(tmp_path) is None  # no commit yet
    (tmp_path / "a.txt").write_text("1")
    git("add", "a.txt")
    git("commit", "-qm", "first")
    assert commit(tmp_path) == {"hash": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "a.txt").write_text("2")
    assert commit(tmp_path) == {"hash": git("rev-parse", "HEAD"), "dirty": True}
    assert commit(tmp_path / "a") is None  # inside of a checkout, but not its top
    # A run that is killed meanwhile must not leave the index locked: it is never written, not even to refresh it.
    git("commit", "-qam", "second")
    os.utime(tmp_path / "a.txt", (1, 1))
    index = (tmp_path / ".git" / "index").read_bytes()
    assert commit(tmp_path)["dirty"] is False and (tmp_path / ".git" / "index").read_bytes() == index


def test_written_and_read_again(tmp_path):
    manifest = update_manifest(start(), [row(1, 12.5)], epochs_done=1, seconds=7)
    write_manifest(tmp_path / "deep" / "run.json", manifest)
    assert read_manifest(tmp_path / "deep") == manifest == read_manifest(tmp_path / "deep" / "run.json")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["run.json"]


def test_a_score_that_is_no_number_is_left_out():
    manifest = update_manifest(start(), [row(1, float("nan"), 5.0)], epochs_done=1, seconds=1)
    assert "mAP" not in manifest["scores"]["last"]["Market1501"]
    json.dumps(manifest, allow_nan=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid json"),
        ("[]", "holds a list"),
        ("{}", "format is None, but this version reads format 1"),
        ({"format": 2}, "format is 2"),
        ({"hours": None}, "'hours' is None"),
        ({"config": ...}, "has no 'config'"),
        ({"status": "done"}, "'status' is 'done', but must be one of running"),
        ({"datasets": {"train": ["A"]}}, "no list of names 'tests'"),
        (b"\xff\xfe\xff", "not a text file"),
    ],
)
def test_bad_manifests_are_named(tmp_path, content, message):
    path = tmp_path / "run.json"
    if isinstance(content, dict):
        manifest = {key: value for key, value in {**start(), **content}.items() if value is not ...}
        content = json.dumps(manifest)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as error:
        read_manifest(tmp_path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="run.json: there is no such file"):
        read_manifest(tmp_path)


def test_a_pattern_is_no_path():
    manifest = start(DATASETS__FOLDER={"PATTERN": r"\d+_(?P<camera>c\d+)", "PATH": "/data/shop_a/crops"})
    folder = manifest["config"]["DATASETS"]["FOLDER"]
    assert folder["PATTERN"] == r"\d+_(?P<camera>c\d+)" and folder["PATH"] == "crops"
    assert "DATASETS.FOLDER.PATH" in manifest["digests"] and "DATASETS.FOLDER.PATTERN" not in manifest["digests"]
