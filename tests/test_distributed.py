"""Two processes on gloo equal one process."""

import importlib
import json
import os
from pathlib import Path

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import pytest
import torch
from fastreid.engine import launch
from fastreid.utils import comm
from torch.nn.parallel import DistributedDataParallel

from tests import test_trajectories
from tests.conftest import ice_config, load_numbers

pytestmark = pytest.mark.usefixtures("tiny_dataset")

SMALL = {
    "MODEL__BACKBONE__NAME": "build_two_convolutions",
    "MODEL__BACKBONE__FEAT_DIM": 32,
    "SOLVER__IMS_PER_BATCH": 16,
    "SOLVER__ITERS_PER_EPOCH": 4,
}
CLUSTERED = {"CLUSTERING__METHOD": "jaccard_dbscan", "SOLVER__IMS_PER_BATCH": 8, "SOLVER__ITERS_PER_EPOCH": 3}
# Runs of two epochs: what differs, the chunks of the whole batch, and how near two processes come to one.
RUNS = {
    "true labels": ({"CLUSTERING__METHOD": "ground_truth"}, 4, {"atol": 1e-5, "rtol": 1e-4}),
    "accumulation": (
        {"CLUSTERING__METHOD": "ground_truth", "SOLVER__ACCUMULATION": 2},
        4,
        {"atol": 1e-5, "rtol": 1e-4},
    ),
    "queries move the memory": (
        {
            "CLUSTERING__METHOD": "ground_truth",
            "MODEL__LOSSES__NAME": ("HardMeanLoss", "IntraCameraLoss", "OnlineAssociationLoss"),
            "MODEL__ICE__MEMORY": "HardMeanMemory",
            "MODEL__ICE__MOMENTUM_MEMORY__FEATURES": "queries",
        },
        4,
        {"atol": 1e-5, "rtol": 1e-4},
    ),
    "clusters": (CLUSTERED, 2, {"atol": 1e-5, "rtol": 1e-4}),
    "a source": (
        {**CLUSTERED, "DATASETS__SOURCE": ("TinySource",), "DATASETS__SOURCE_IMS_PER_BATCH": 16},
        2,
        {"atol": 1e-5, "rtol": 1e-4},
    ),
    "a source, kept in a momentum memory": (
        {**CLUSTERED, "DATASETS__SOURCE": ("TinySource",), "MODEL__ICE__MEMORY": "MomentumMemory"},
        2,
        {"atol": 1e-5, "rtol": 1e-4},
    ),
    "clusters, bfloat16": (
        {**CLUSTERED, "SOLVER__AMP__ENABLED": True, "SOLVER__AMP__DTYPE": "bfloat16"},
        2,
        {"atol": 5e-3, "rtol": 2e-2},
    ),
}


def train(folder: str, name: str) -> None:
    from fastreid_ice.engine import ICETrainer

    overrides, chunks, _ = RUNS[name]
    chunks //= comm.get_world_size()
    trainer = ICETrainer(ice_config(OUTPUT_DIR=folder, **{**SMALL, **overrides, "MODEL__ICE__BN_CHUNKS": chunks}))
    trainer.resume_or_load(resume=False)
    trainer.train()
    torch.save(trainer.clustering.labels, f"{folder}/labels_{comm.get_rank()}.pth")
    if trainer.clustering.source is not None:
        torch.save(trainer.clustering.source.state_dict(), f"{folder}/source_{comm.get_rank()}.pth")


def train_golden(folder: str) -> None:
    """A process's half of each batch of the reference's twelve steps, in two of the four chunks."""
    name = "trajectory_4_chunk"
    numbers = load_numbers(name, *(f"{name}_{view}" for view in test_trajectories.VIEWS))
    model, optimizer = test_trajectories.build(chunks=2, unused_passes=True)
    model.load_state_dict(test_trajectories.our_state(numbers, "init"))
    wrapped = DistributedDataParallel(model, broadcast_buffers=False).train()
    half = numbers["targets"].shape[1] // 2
    share = slice(comm.get_rank() * half, (comm.get_rank() + 1) * half)
    losses = test_trajectories.train(model, optimizer, numbers, share, wrapped)
    torch.save({"losses": losses, "model": model.state_dict()}, f"{folder}/golden_{comm.get_rank()}.pth")


def resume_apart(folder: str) -> None:
    """With an OUTPUT_DIR for each process, as on machines without a common disk: only the first has the checkpoint."""
    from fastreid_ice.engine import ICETrainer

    own = "true labels" if comm.is_main_process() else "elsewhere"
    overrides, chunks, _ = RUNS["true labels"]
    keys = {**SMALL, **overrides, "MODEL__ICE__BN_CHUNKS": chunks // comm.get_world_size()}
    trainer = ICETrainer(ice_config(OUTPUT_DIR=f"{folder}/{own}", **keys))
    try:
        trainer.resume_or_load(resume=True)
    except FileNotFoundError as error:
        Path(f"{folder}/refused_{comm.get_rank()}").write_text(str(error))


def list_apart(folder: str) -> None:
    """Training images, and test images, of which the second process lacks one; then those that differ by folder."""
    from fastreid_ice.data.datasets import check_same_everywhere

    own = [(f"/disk{comm.get_rank()}/{name}.jpg", 0) for name in "abc"]
    check_same_everywhere("DATASETS.NAMES", own)
    for key, images in (("shorter", own[comm.get_rank() :]), ("camera", [(own[0][0], comm.get_rank())])):
        try:
            check_same_everywhere(key, images)
        except ValueError as error:
            Path(f"{folder}/{key}_{comm.get_rank()}").write_text(str(error))


def everything(folder: str, root: str) -> None:
    """What each process runs: all in one start of the processes, which takes longer than the trainings."""
    importlib.import_module("fastreid.data.build")._root = root
    from tests import tiny  # noqa: F401

    for name in RUNS:
        train(f"{folder}/{name}", name)
    if comm.get_world_size() > 1:
        train_golden(folder)
        resume_apart(folder)
        list_apart(folder)


@pytest.fixture(scope="module")
def folders(tiny_dataset, tmp_path_factory):
    """Of the runs by one process, and by two."""
    found = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    for processes, folder in enumerate(found, start=1):
        launch(everything, processes, dist_url="auto", args=(str(folder), os.environ["FASTREID_DATASETS"]))
    return found


def losses(folder) -> list[list[float]]:
    rows = json.loads((folder / "results.json").read_text())
    return [[row[k] for k in sorted(row) if "loss" in k or k in ("mAP", "Rank-1")] for row in rows]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_equal_one(name, folders):
    """Same losses, weights, statistics, scores: batch and chunks are shared, keys and features gathered."""
    one, two = (folder / name for folder in folders)
    tolerance = RUNS[name][2]
    found, expected = losses(two), losses(one)
    assert len(found) == len(expected) == 3
    assert found == [pytest.approx(row, rel=tolerance["rtol"]) for row in expected]
    states = [torch.load(folder / "model_final.pth", weights_only=True)["model"] for folder in (one, two)]
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, msg=key, **tolerance)


@pytest.mark.parametrize("name", RUNS)
def test_all_processes_train_on_the_same_clusters(name, folders):
    one, two = (folder / name for folder in folders)
    labels = torch.load(one / "labels_0.pth", weights_only=True)
    assert labels.max() >= 1
    for rank in range(2):
        assert torch.equal(labels, torch.load(two / f"labels_{rank}.pth", weights_only=True))


@pytest.mark.parametrize("name", [name for name in RUNS if "source" in name])
def test_statistics_and_rows_of_the_source(name, folders):
    """Each process has its share of both domains; what is known of the source is the same on all."""
    one, two = (folder / name for folder in folders)
    expected = torch.load(one / "source_0.pth", weights_only=True)
    assert expected["statistics"] and bool(expected["memory"]) == ("kept" in name)
    for rank in range(2):
        found = torch.load(two / f"source_{rank}.pth", weights_only=True)
        for part in ("statistics", "memory"):
            for key, value in expected[part].items():
                torch.testing.assert_close(found[part][key], value, atol=1e-5, rtol=1e-4, msg=key)


def test_two_processes_equal_the_reference(folders):
    """Losses of twelve steps and the final weights are those of the reference's single process with four chunks."""
    first, second = (torch.load(folders[1] / f"golden_{rank}.pth", weights_only=True) for rank in range(2))
    numbers = load_numbers("trajectory_4_chunk")
    assert len(first["losses"]) == 4
    for key in first["losses"]:
        mean = (first["losses"][key] + second["losses"][key]) / 2
        torch.testing.assert_close(mean.double(), numbers[key], atol=1e-4, rtol=0, msg=key)
    expected = test_trajectories.our_state(numbers, "final")
    for state in (first["model"], second["model"]):
        for key in [name for name in expected if name.endswith(("weight", "bias"))]:
            torch.testing.assert_close(state[key], expected[key].to(state[key].dtype), atol=1e-5, rtol=0, msg=key)


def test_processes_with_other_checkpoints_are_refused_together(folders):
    """One that began anew, while the other goes on, would wait for it for ever."""
    for rank in range(2):
        told = (folders[1] / f"refused_{rank}").read_text()
        assert "epochs done: process 0: 2, process 1: none" in told


def test_processes_with_other_images_are_refused_together(folders):
    """Each numbers its own, and shares are taken by number. Folders may differ."""
    for rank in range(2):
        told = (folders[1] / f"shorter_{rank}").read_text()
        assert "find different images in shorter (process 0: 3, process 1: 2;" in told
        assert "(process 0: 1, process 1: 1;" in (folders[1] / f"camera_{rank}").read_text()
