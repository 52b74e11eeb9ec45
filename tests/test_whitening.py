"""A trained model whose embedding is whitened: the map in its weights, and what others make of it."""

from __future__ import annotations

import shutil

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastreid_ice.cli import train, whiten
from fastreid_ice.clustering import Clusterer
from fastreid_ice.clustering.within_class import whitening, within_class_covariance
from fastreid_ice.config_files import load_config
from fastreid_ice.engine.checkpoints import load_trained_model
from fastreid_ice.engine.clustering_config import clustering_config
from fastreid_ice.engine.run_features import extract_run
from fastreid_ice.engine.whitening import _mapped_neck, whiten_model
from fastreid_ice.export import export_model
from fastreid_ice.report.run_files import read_clusters
from tests.exported_runs import ONE_CLUSTER_AT_LEAST, SMALL_BACKBONE, people, trained_run, untrained_run

pytestmark = pytest.mark.usefixtures("tiny_dataset")


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_dataset):
    return trained_run(tmp_path_factory.mktemp("whitening") / "run", **SMALL_BACKBONE)


@pytest.fixture(scope="module")
def whitened(run):
    whiten.main([str(run), "--output", str(run.parent / "whitened"), "--opts", *ONE_CLUSTER_AT_LEAST])
    return run.parent / "whitened"


def test_the_new_weights_are_the_old_ones_behind_the_map(run, whitened):
    found = extract_run(run, ONE_CLUSTER_AT_LEAST)
    labels = Clusterer(clustering_config(found.cfg, seed=found.cfg.SEED))(found.features, found.images.camids).labels
    assert int(labels.max()) >= 0
    matrix = whitening(within_class_covariance(found.features, labels), found.cfg.CLUSTERING.WCCN_SHRINKAGE)
    assert not torch.allclose(matrix, torch.eye(len(matrix), dtype=matrix.dtype), atol=0.1)
    old, new = load_trained_model(run), load_trained_model(whitened)
    images = people(4)
    with torch.no_grad():
        torch.testing.assert_close(
            new.model(images).double(), old.model(images).double() @ matrix, rtol=1e-4, atol=1e-4
        )
    assert new.cfg.MODEL.HEADS.EMBEDDING_DIM == len(matrix) and new.cfg.OUTPUT_DIR == str(whitened)


def test_it_evaluates_as_any_other(whitened, tmp_path):
    options = ["MODEL.WEIGHTS", str(whitened / "model_final.pth"), "OUTPUT_DIR", str(tmp_path / "scores")]
    argv = ["--config-file", str(whitened / "config.yaml"), "--eval-only", *options]
    scores = train.run(train.parser().parse_args(argv))
    assert scores is not None and 0 < scores["mAP"] <= 100


def test_it_is_exported_as_any_other(tmp_path):
    run = untrained_run(tmp_path / "run", "osnet", "x0_25", 128)
    whiten.main([str(run), "--output", str(tmp_path / "out"), "--opts", *ONE_CLUSTER_AT_LEAST])
    export_model(tmp_path / "out", output=tmp_path / "zoo")  # compares with the model itself
    assert list((tmp_path / "zoo").glob("*.pth"))


def test_its_export_is_not_called_the_runs(whitened, tmp_path):
    for name, words in ((None, "ice_whitened"), ("mine", "mine")):
        result = export_model(whitened, format="torchscript", output=tmp_path / "out", name=name)
        assert words in result.files[0].name and ("whitened" in result.files[0].name) == (name is None)


def test_clusters_of_a_file_are_taken(run, tmp_path):
    assert bool((read_clusters(run / "clusters.csv")["labels"] >= 0).any())
    arguments = [str(run), "--output", str(tmp_path / "out"), "--clusters", str(run / "clusters.csv")]
    whiten.main(arguments)
    assert (tmp_path / "out" / "model_final.pth").is_file()
    with pytest.raises(SystemExit):
        whiten.main([str(run), "--output", str(tmp_path / "b"), "--clusters", str(tmp_path / "none.csv")])


def test_what_is_refused(run, whitened, tmp_path, capsys):
    for argv, said in (
        ([str(run), "--output", str(whitened)], "is there already"),
        ([str(run), "--output", str(tmp_path / "a"), "--opts", "CLUSTERING.MIN_SAMPLES", "50"], "are outliers"),
        ([str(tmp_path / "no"), "--output", str(tmp_path / "a")], "There is no run"),
    ):
        with pytest.raises(SystemExit):
            whiten.main(argv)
        assert said in capsys.readouterr().err
        assert not (tmp_path / "a").exists()


def test_the_config_stays_the_runs(run, whitened):
    """Start weights and device too, of which a card tells, whatever it was built with."""
    before, after = (load_config(folder / "config.yaml") for folder in (run, whitened))
    after.MODEL.HEADS.EMBEDDING_DIM, after.OUTPUT_DIR = 0, before.OUTPUT_DIR
    after.merge_from_list(
        ["CLUSTERING.EPS", before.CLUSTERING.EPS, "CLUSTERING.MIN_SAMPLES", before.CLUSTERING.MIN_SAMPLES]
    )
    assert after == before
    assert load_trained_model(whitened).extras["epoch"] == load_trained_model(run).extras["epoch"]


def test_options_choose_the_encoder_for_features_and_weights(run, tmp_path):
    options = [
        *ONE_CLUSTER_AT_LEAST,
        "MODEL.ICE.EVAL_ENCODER",
        "online",
        "TEST.AMP",
        "True",
        "SOLVER.AMP.DTYPE",
        "bfloat16",
    ]
    whiten.main([str(run), "--output", str(tmp_path / "out"), "--opts", *options])
    assert load_config(tmp_path / "out" / "config.yaml").MODEL.ICE.EVAL_ENCODER == "online"


def test_an_eps_of_its_own_stays(run, tmp_path):
    """Whatever clusters the new weights next does so with the eps by which they were whitened, not with EPS_END."""
    falling = tmp_path / "falling"
    shutil.copytree(run, falling)
    cfg = load_config(run / "config.yaml", ["CLUSTERING.EPS_END", 0.3])
    (falling / "config.yaml").write_text(cfg.dump())
    whiten.main([str(falling), "--output", str(tmp_path / "out"), "--opts", *ONE_CLUSTER_AT_LEAST])
    written = load_config(tmp_path / "out" / "config.yaml").CLUSTERING
    assert written.EPS_END == 0 and written.EPS == float(dict(zip(*[iter(ONE_CLUSTER_AT_LEAST)] * 2))["CLUSTERING.EPS"])


def test_clusters_of_one_image_are_refused(run):
    found = extract_run(run)
    with pytest.raises(ValueError, match="nothing to whiten by"):
        whiten_model(found, torch.arange(len(found.features)))


@pytest.mark.parametrize("heads", [{"EMBEDDING_DIM": 16}, {"WITH_BNNECK": False}], ids=["convolution", "no neck"])
def test_other_necks(heads, tmp_path):
    more = {f"MODEL.HEADS.{key}": value for key, value in heads.items()}
    run = untrained_run(tmp_path / "run", "osnet", "x0_25", 32, **SMALL_BACKBONE, **more)
    whiten.main([str(run), "--output", str(tmp_path / "out"), "--opts", *ONE_CLUSTER_AT_LEAST])  # compares
    old, new = (load_trained_model(folder).model for folder in (run, tmp_path / "out"))
    images = people(4)
    with torch.no_grad():
        before, after = (F.normalize(model(images)) for model in (old, new))
    assert before.shape == after.shape and not torch.allclose(before, after, atol=1e-3)


def test_a_normalisation_without_statistics_is_refused():
    with pytest.raises(ValueError, match="MODEL.HEADS.NORM"):
        _mapped_neck(nn.Sequential(nn.GroupNorm(2, 8)), torch.eye(8, dtype=torch.float64))
