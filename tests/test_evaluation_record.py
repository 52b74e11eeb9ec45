"""Evaluations by themselves: what they write down, and what tables and cards make of it."""

import json
from pathlib import Path

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import pytest

from fastreid_ice.cli import train, whiten
from fastreid_ice.engine.checkpoints import load_trained_model
from fastreid_ice.export.card import model_card
from fastreid_ice.report.derived import derived_manifest, evaluated_manifest
from fastreid_ice.report.manifest import read_manifest
from fastreid_ice.report.tables import build_table, read_runs
from tests.exported_runs import trained_run

pytestmark = pytest.mark.usefixtures("tiny_dataset")
SMALL_BACKBONE = {"MODEL.BACKBONE.NAME": "build_two_convolutions", "MODEL.BACKBONE.FEAT_DIM": 32}


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_dataset):
    return trained_run(tmp_path_factory.mktemp("evaluations") / "run", **SMALL_BACKBONE)


@pytest.fixture(scope="module")
def whitened(run):
    options = ["--opts", "CLUSTERING.EPS", "0.9", "CLUSTERING.MIN_SAMPLES", "2"]
    whiten.main([str(run), "--output", str(run.parent / "whitened"), *options])
    return run.parent / "whitened"


def evaluate(folder: Path, output: Path, *options: object) -> dict:
    opts = ["MODEL.WEIGHTS", folder / "model_final.pth", "OUTPUT_DIR", output, *options]
    argv = ["--config-file", str(folder / "config.yaml"), "--eval-only", *map(str, opts)]
    scores = train.run(train.parser().parse_args(argv))
    assert scores is not None
    return scores


def rows(*folders: Path) -> dict[str, float]:
    """mAP of the last epoch, by the method's title in a table of the runs."""
    table = build_table(read_runs(folders), epochs=["last"])
    return {str(row.labels[0]): row.cells["TinyReID"].scores["mAP"].mean for row in table.rows}


def test_another_protocol_is_a_row_of_its_own(run, tmp_path):
    scores = evaluate(run, tmp_path, "TEST.CAMERA_NORMALIZATION", "True")
    manifest = read_manifest(tmp_path)
    before = read_manifest(run)
    assert manifest["evaluated"] == "model_final.pth" and manifest["seed"] == before["seed"]
    assert manifest["hours"] == before["hours"] and manifest["epochs_done"] == before["epochs_done"]
    assert manifest["config"]["TEST"]["CAMERA_NORMALIZATION"] is True
    assert manifest["config"]["MODEL"]["WEIGHTS"] == "" and manifest["digests"] == before["digests"]
    found = rows(run, tmp_path)
    assert len(found) == 2
    title = next(title for title in found if "camera-normalised test features" in title)
    assert found[title] == pytest.approx(scores["mAP"])


def test_the_training_keys_are_those_of_the_training(run, tmp_path):
    evaluate(run, tmp_path, "TEST.FLIP.ENABLED", "True", "CLUSTERING.EPS", "0.123", "SOLVER.BASE_LR", "7.0")
    config = read_manifest(tmp_path)["config"]
    before = read_manifest(run)["config"]
    assert config["CLUSTERING"] == before["CLUSTERING"] and config["SOLVER"] == before["SOLVER"]
    assert config["TEST"]["FLIP"]["ENABLED"] is True


def test_the_same_twice_is_not_written(run, tmp_path):
    evaluate(run, tmp_path)
    assert not (tmp_path / "run.json").exists() and not (tmp_path / "results.json").exists()
    assert "is evaluated in this way itself" in (tmp_path / "log.txt").read_text()


def test_a_training_keeps_its_folder(run):
    before = {name: (run / name).read_bytes() for name in ("run.json", "results.json", "config.yaml")}
    evaluate(run, run, "TEST.FLIP.ENABLED", "True")
    assert before == {name: (run / name).read_bytes() for name in before}
    assert "has a run of its own; name another" in (run / "log.txt").read_text()


def test_an_evaluation_may_be_repeated(run, tmp_path):
    for value in (True, True):
        evaluate(run, tmp_path, "TEST.FLIP.ENABLED", value)
    assert len(json.loads((tmp_path / "results.json").read_text())) == 1


def test_weights_without_a_run(run, tmp_path):
    (tmp_path / "weights").mkdir()
    for name in ("model_final.pth", "config.yaml"):
        (tmp_path / "weights" / name).write_bytes((run / name).read_bytes())
    evaluate(tmp_path / "weights", tmp_path / "out")
    assert not (tmp_path / "out" / "run.json").exists()
    assert "for want of the run of the weights" in (tmp_path / "out" / "log.txt").read_text()


class TestWhitened:
    def test_before_it_is_evaluated_a_table_leaves_it_out(self, run, tmp_path, caplog):
        options = ["--opts", "CLUSTERING.EPS", "0.9", "CLUSTERING.MIN_SAMPLES", "2"]
        whiten.main([str(run), "--output", str(tmp_path / "new"), *options])
        assert read_manifest(tmp_path / "new")["status"] == "derived"
        assert len(rows(run, tmp_path / "new")) == 1
        assert "not evaluated: tools/train_net.py --eval-only" in caplog.text

    def test_beside_its_run_in_a_table_and_on_its_card(self, run, whitened):
        scores = evaluate(whitened, whitened)
        found = rows(run, whitened)
        assert set(found) == {"ICE", "ICE, whitened"} and found["ICE, whitened"] == pytest.approx(scores["mAP"])
        trained = load_trained_model(whitened)
        card = model_card(trained.cfg, {}, trained.checkpoint, trained.extras)
        assert card["method"] == "ICE, whitened"
        assert card["metrics"]["exported"]["TinyReID"]["mAP"] == pytest.approx(scores["mAP"])

    def test_its_folder_has_the_scores_of_its_config_only(self, whitened, tmp_path):
        evaluate(whitened, whitened)
        before = (whitened / "results.json").read_bytes()
        evaluate(whitened, whitened, "TEST.CAMERA_NORMALIZATION", "True")
        assert (whitened / "results.json").read_bytes() == before
        evaluate(whitened, tmp_path, "TEST.CAMERA_NORMALIZATION", "True")
        assert "ICE, whitened, camera-normalised test features" in "".join(rows(tmp_path))


def test_manifests_by_hand():
    source = {
        "name": "ICE",
        "status": "interrupted",
        "datasets": {"train": ["A"], "tests": ["A"]},
        "steps_per_epoch": 10,
        "hours": 2.5,
        "scores": {"best": None, "last": None},
        "config": {"DATASETS": {"TESTS": ["A"]}, "TEST": {"METRIC": "cosine"}, "SEED": 1},
    }
    base = {"DATASETS": {"TESTS": ["A"]}, "TEST": {"METRIC": "cosine"}, "SEED": 1}
    cfg = {"DATASETS": {"TESTS": ["B"]}, "TEST": {"METRIC": "euclidean"}, "SEED": 3}
    row = {"epoch": 4, "mAP": 50.0, "Rank-1": 60.0, "best": True}
    found = evaluated_manifest(source, cfg, base, checkpoint="model_0003.pth", epoch=4, records=[row])
    assert found["differences"] == {"DATASETS.TESTS": ["B"], "TEST.METRIC": "euclidean"}
    assert (found["epochs_done"], found["steps_done"], found["hours"]) == (4, 40, 2.5)
    assert found["scores"]["last"] == {"epoch": 4, "B": {"mAP": 50.0, "Rank-1": 60.0}}
    assert (found["status"], found["datasets"]) == ("finished", {"train": ["A"], "tests": ["B"]})
    derived = derived_manifest(found, {"MODEL.HEADS.EMBEDDING_DIM": 8}, base, how="whitened")
    assert derived["config"]["MODEL"] == {"HEADS": {"EMBEDDING_DIM": 8}} and "MODEL" not in source["config"]
    assert (derived["name"], derived["status"]) == ("ICE, whitened", "derived") and "evaluated" not in derived
