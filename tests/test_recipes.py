"""Each recipe of configs/ICE/recipes: its config, and a short training that lowers its loss."""

import json
from argparse import Namespace

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import pytest
import torch

from fastreid_ice.cli.train import run
from fastreid_ice.config_files import load_config
from fastreid_ice.engine import ICETrainer
from fastreid_ice.engine.checks import check_config
from fastreid_ice.engine.clustering_config import clustering_config
from fastreid_ice.modeling import HardMeanMemory, build_losses
from fastreid_ice.modeling.memory_bank import build_memory
from tests.conftest import ROOT, SMALL, small_options

FOLDER = ROOT / "configs" / "ICE" / "recipes"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yml"))
LOSSES = {
    "ca_jaccard": ["loss_agnostic"],
    "cap": ["loss_intra_camera", "loss_cross_camera"],
    "cluster_contrast": ["loss_agnostic"],
    "hhcl": ["loss_hard_mean"],
    "o2cap": ["loss_cross_camera", "loss_online_association"],
    "spcl": ["loss_agnostic"],
}
# On 54 images of 8 people at 64 x 32: lists that are shorter than a person, and a rate that shows within 60 steps.
TINY = {
    **SMALL,
    "MODEL.BACKBONE.PRETRAIN": False,
    "MODEL.ICE.BN_CHUNKS": 1,
    "INPUT.SIZE_TRAIN": [64, 32],
    "INPUT.SIZE_TEST": [64, 32],
    "INPUT.PADDING.ENABLED": False,
    "INPUT.REA.ENABLED": False,
    "DATALOADER.NUM_INSTANCE": 2,
    "SOLVER.MAX_EPOCH": 3,
    "SOLVER.ITERS_PER_EPOCH": 20,
    "SOLVER.BASE_LR": 0.003,
    "SOLVER.WARMUP_EPOCHS": 0,
    "SOLVER.STEPS": [],
    "CLUSTERING.K1": 4,
    "CLUSTERING.K2": 2,
    "CLUSTERING.K1_INTRA": 1,
    "CLUSTERING.K1_INTER": 2,
    "CLUSTERING.K2_INTRA": 1,
    "CLUSTERING.K2_INTER": 1,
    "CLUSTERING.PERIOD": 3,  # one clustering: what the loss is falls with the encoder, not with the labels
}


def test_every_recipe_is_here_and_on_the_page():
    page = (ROOT / "docs" / "recipes.md").read_text()
    assert list(LOSSES) == NAMES
    assert all(f"recipes/{name}.yml" in page for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_config_is_whole(name):
    cfg = load_config(FOLDER / f"{name}.yml", ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.PRETRAIN", False])
    check_config(cfg)
    assert cfg.MODEL.ICE.EVAL_ENCODER == "online" and cfg.MODEL.ICE.MOMENTUM_MEMORY.FEATURES == "queries"
    assert isinstance(build_memory(cfg), HardMeanMemory) == (name == "hhcl")
    assert clustering_config(cfg, 0).method == ("ca_jaccard_dbscan" if name == "ca_jaccard" else "jaccard_dbscan")
    assert list(build_losses(cfg)) == LOSSES[name]
    assert cfg.CLUSTERING.OUTLIERS == ("instances" if name == "spcl" else "drop")


@pytest.mark.parametrize("name", NAMES)
def test_a_short_training_lowers_the_loss(name, tmp_path, tiny_dataset):
    options = small_options({**TINY, "OUTPUT_DIR": str(tmp_path)})
    run(Namespace(config_file=str(FOLDER / f"{name}.yml"), opts=options, eval_only=False, resume=False))
    rows = json.loads((tmp_path / "results.json").read_text())
    for loss in LOSSES[name] if len(LOSSES[name]) > 1 else ["total_loss"]:  # a loss alone is the total
        first, *_, last = (row[loss] for row in rows)
        assert last < 0.9 * first, (loss, first, last)
    assert rows[0]["outliers"] > 0


@pytest.mark.parametrize("name", ["cap", "hhcl", "spcl"])
def test_a_resumed_run_ends_with_the_same_weights(name, tmp_path, tiny_dataset):
    """No memory outlives a clustering: with MomentumMemory, HardMeanMemory, and outliers that are instances."""

    def trained(folder, epochs):
        keys = {"SOLVER.MAX_EPOCH": 2, "SOLVER.ITERS_PER_EPOCH": 4, "CLUSTERING.PERIOD": 1, "DATASETS.TESTS": ()}
        options = small_options({**TINY, **keys, "OUTPUT_DIR": str(tmp_path / folder)})
        trainer = ICETrainer(load_config(FOLDER / f"{name}.yml", options))
        trainer.resume_or_load(resume=True)
        trainer.max_epoch = epochs
        trainer.train()
        return trainer.model.state_dict()

    whole = trained("whole", 2)
    trained("resumed", 1)
    resumed = trained("resumed", 2)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
