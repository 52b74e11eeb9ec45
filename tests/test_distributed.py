"""Two processes on gloo equal one process."""

import importlib
import json
import os

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import pytest
import torch
from fastreid.engine import launch
from fastreid.utils import comm

from tests.conftest import ice_config

pytestmark = pytest.mark.usefixtures("tiny_dataset")

SMALL = {
    "MODEL__BACKBONE__NAME": "build_two_convolutions",
    "MODEL__BACKBONE__FEAT_DIM": 32,
    "CLUSTERING__METHOD": "ground_truth",  # a rounding in the last bit may move an image between clusters
    "SOLVER__IMS_PER_BATCH": 16,
    "SOLVER__ITERS_PER_EPOCH": 4,
}


def train(output_dir: str, overrides: dict, root: str) -> None:
    """What each process runs."""
    importlib.import_module("fastreid.data.build")._root = root
    from fastreid_ice.engine import ICETrainer
    from tests import tiny  # noqa: F401

    trainer = ICETrainer(ice_config(OUTPUT_DIR=output_dir, **overrides))
    trainer.resume_or_load(resume=False)
    trainer.train()
    torch.save(trainer.clustering.labels, f"{output_dir}/labels_{comm.get_rank()}.pth")


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_equal_one(accumulation, tmp_path):
    """Same losses, weights, statistics and scores: the batch is shared, the chunks too, and the keys are gathered."""
    root = os.environ["FASTREID_DATASETS"]
    states, losses = [], []
    for processes in (1, 2):
        folder = str(tmp_path / str(processes))
        overrides = {**SMALL, "MODEL__ICE__BN_CHUNKS": 4 // processes, "SOLVER__ACCUMULATION": accumulation}
        launch(train, processes, dist_url="auto", args=(folder, overrides, root))
        checkpoint = torch.load(f"{folder}/model_final.pth", weights_only=True)
        states.append(checkpoint["model"])

        rows = json.loads((tmp_path / str(processes) / "results.json").read_text())
        losses.append([[row[k] for k in sorted(row) if "loss" in k or k in ("mAP", "Rank-1")] for row in rows])
    assert losses[1] == [pytest.approx(row, rel=1e-4) for row in losses[0]]
    for name in states[0]:
        torch.testing.assert_close(states[1][name], states[0][name], atol=1e-5, rtol=1e-4, msg=name)


def test_clustering_on_two_processes(tmp_path):
    """Features are extracted in shares, and both processes train on the same clusters."""
    overrides = {**SMALL, "CLUSTERING__METHOD": "jaccard_dbscan", "SOLVER__MAX_EPOCH": 1, "MODEL__ICE__BN_CHUNKS": 1}
    overrides |= {"SOLVER__IMS_PER_BATCH": 8, "SOLVER__ITERS_PER_EPOCH": 1}

    labels = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        launch(train, processes, dist_url="auto", args=(str(folder), overrides, os.environ["FASTREID_DATASETS"]))
        labels += [torch.load(folder / f"labels_{rank}.pth") for rank in range(processes)]
    assert labels[0].max() >= 1 and all(torch.equal(labels[0], other) for other in labels[1:])
