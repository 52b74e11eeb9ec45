"""Evaluations by themselves: what they write down, and what tables and cards make of it."""

import json
from pathlib import Path

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import pytest

from fastreid_ice.cli import train, whiten
from fastreid_ice.engine import resuming
from fastreid_ice.engine.checkpoints import load_trained_model
from fastreid_ice.export.card import model_card
from fastreid_ice.report.derived import derived_manifest, evaluated_manifest, is_of_a_training, scored_alike
from fastreid_ice.report.manifest import read_manifest
from fastreid_ice.report.tables import build_table, read_runs
from tests.exported_runs import ONE_CLUSTER_AT_LEAST, SMALL_BACKBONE, trained_run

pytestmark = pytest.mark.usefixtures("tiny_dataset")


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_dataset):
    return trained_run(tmp_path_factory.mktemp("evaluations") / "run", **SMALL_BACKBONE)


@pytest.fixture(scope="module")
def whitened(run):
    weights = str(run / "model_final.pth")
    whiten.main([weights, "--output", str(run.parent / "whitened"), "--opts", *ONE_CLUSTER_AT_LEAST])
    return run.parent / "whitened"


def evaluate(folder: Path, output: Path, *options: object, weights: str = "model_final.pth") -> dict:
    opts = ["MODEL.WEIGHTS", folder / weights, "OUTPUT_DIR", output, *options]
    argv = ["--config-file", str(folder / "config.yaml"), "--eval-only", *map(str, opts)]
    scores = train.run(train.parser().parse_args(argv))
    assert scores is not None
    return scores


def rows(*folders: Path, epoch: str = "last") -> dict[str, float]:
    """mAP by the method's title in a table of the runs."""
    runs = read_runs(folders, unfinished=True)
    try:
        table = build_table(runs, epochs=[epoch])
    except ValueError as error:
        assert "None of the runs has a score of the epochs" in str(error)
        return {}
    return {str(row.labels[0]): row.cells["TinyReID"].scores["mAP"].mean for row in table.rows}


def said(folder: Path) -> str:
    return (folder / "log.txt").read_text()


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


def test_keys_of_the_training_are_not_taken_from_test(run, tmp_path):
    evaluate(run, tmp_path, "TEST.FLIP.ENABLED", "True", "TEST.EVAL_PERIOD", "7", "TEST.PRECISE_BN.ENABLED", "True")
    test, before = (read_manifest(folder)["config"]["TEST"] for folder in (tmp_path, run))
    assert (test["EVAL_PERIOD"], test["PRECISE_BN"]) == (before["EVAL_PERIOD"], before["PRECISE_BN"])


def test_the_best_and_the_last_epoch_are_apart(run, tmp_path):
    """Whatever of the two is evaluated is that row, and no other."""
    flip = ("TEST.FLIP.ENABLED", "True")
    title = "ICE, flipped images averaged in"
    last = evaluate(run, tmp_path / "last", *flip)["mAP"]
    assert list(rows(tmp_path / "last")) == [title]
    assert not rows(tmp_path / "last", epoch="best")
    best = evaluate(run, tmp_path / "best", *flip, weights="model_best.pth")["mAP"]
    assert not rows(tmp_path / "best") and list(rows(tmp_path / "best", epoch="best")) == [title]
    both = tmp_path / "last", tmp_path / "best"
    assert rows(*both) == {title: pytest.approx(last)} and rows(*both, epoch="best") == {title: pytest.approx(best)}


def test_the_same_twice_is_not_written(run, tmp_path):
    evaluate(run, tmp_path)
    assert not (tmp_path / "run.json").exists() and not (tmp_path / "results.json").exists()
    assert "is evaluated on TinyReID in this way itself" in said(tmp_path)


def test_nor_together_with_another_test_set(run, tmp_path):
    evaluate(run, tmp_path / "both", "DATASETS.TESTS", "('TinyReID','TinySource')")
    assert not (tmp_path / "both" / "run.json").exists()
    evaluate(run, tmp_path / "other", "DATASETS.TESTS", "('TinySource',)")
    assert read_manifest(tmp_path / "other")["datasets"]["tests"] == ["TinySource"]
    table = build_table(read_runs([run, tmp_path / "other"]), epochs=["last"])
    assert [(row.labels[0], *row.cells) for row in table.rows] == [
        ("ICE", "TinyReID"),
        ("ICE, trained on TinyReID", "TinySource"),
    ]


def test_a_training_keeps_its_folder(run):
    before = {name: (run / name).read_bytes() for name in ("run.json", "results.json", "config.yaml")}
    evaluate(run, run, "TEST.FLIP.ENABLED", "True")
    assert before == {name: (run / name).read_bytes() for name in before}
    assert "has a run of its own; name another" in said(run)


def test_an_evaluation_may_be_repeated_but_not_replaced(run, tmp_path):
    scores = evaluate(run, tmp_path, "TEST.FLIP.ENABLED", "True")
    (tmp_path / "results.json").write_text('[{"epoch": 1, "mAP": 1.0}]')
    evaluate(run, tmp_path, "TEST.FLIP.ENABLED", "True")
    (row,) = json.loads((tmp_path / "results.json").read_text())
    assert row["mAP"] == pytest.approx(scores["mAP"])
    evaluate(run, tmp_path, "TEST.CAMERA_NORMALIZATION", "True")
    assert json.loads((tmp_path / "results.json").read_text()) == [row]
    assert "has another run; name another folder" in said(tmp_path)


def test_a_training_sets_an_evaluation_aside(run, tmp_path):
    evaluate(run, tmp_path, "TEST.FLIP.ENABLED", "True")
    assert resuming.set_aside_checkpoints(tmp_path) == tmp_path / "earlier_run_1"
    assert (tmp_path / "earlier_run_1" / "results.json").is_file() and not (tmp_path / "run.json").exists()


def test_weights_without_a_run(run, tmp_path):
    (tmp_path / "weights").mkdir()
    for name in ("model_final.pth", "config.yaml"):
        (tmp_path / "weights" / name).write_bytes((run / name).read_bytes())
    evaluate(tmp_path / "weights", tmp_path / "out")
    assert not (tmp_path / "out" / "run.json").exists()
    assert "there is no run.json beside" in said(tmp_path / "out")


def test_what_goes_wrong_costs_no_scores(run, tmp_path):
    (tmp_path / "weights").mkdir()
    for name in ("model_final.pth", "config.yaml"):
        (tmp_path / "weights" / name).write_bytes((run / name).read_bytes())
    (tmp_path / "weights" / "run.json").write_text("{")
    assert evaluate(tmp_path / "weights", tmp_path / "out")["mAP"] > 0
    assert "could not be written down" in said(tmp_path / "out")


class TestWhitened:
    def test_before_it_is_evaluated_a_table_leaves_it_out(self, run, tmp_path, caplog):
        whiten.main([str(run), "--output", str(tmp_path / "new"), "--opts", *ONE_CLUSTER_AT_LEAST])
        assert read_manifest(tmp_path / "new")["status"] == "derived"
        with pytest.raises(ValueError, match="not evaluated: tools/train_net.py --eval-only"):
            rows(tmp_path / "new")

    def test_beside_its_run_in_a_table_and_on_its_card(self, run, whitened):
        scores = evaluate(whitened, whitened)
        found = rows(run, whitened)
        name = "ICE, whitened (EPS 0.9, MIN_SAMPLES 2)"
        assert set(found) == {"ICE", name} and found[name] == pytest.approx(scores["mAP"])
        trained = load_trained_model(whitened)
        card = model_card(trained.cfg, {}, trained.checkpoint, trained.extras)
        assert card["method"] == name and card["selected_by"] == "last epoch"
        assert card["metrics"]["exported"]["TinyReID"]["mAP"] == pytest.approx(scores["mAP"])

    def test_its_folder_has_the_scores_of_its_config_only(self, whitened, tmp_path):
        evaluate(whitened, whitened)
        before = (whitened / "results.json").read_bytes()
        evaluate(whitened, whitened, "TEST.CAMERA_NORMALIZATION", "True")
        assert (whitened / "results.json").read_bytes() == before
        evaluate(whitened, tmp_path, "TEST.CAMERA_NORMALIZATION", "True")
        assert "camera-normalised test features" in "".join(rows(tmp_path))

    def test_another_ones_scores_are_not_put_beside_it(self, run, whitened, tmp_path):
        other = tmp_path / "other"
        whiten.main([str(run), "--output", str(other), "--opts", *ONE_CLUSTER_AT_LEAST])
        before = (other / "run.json").read_bytes()
        evaluate(whitened, other, "TEST.FLIP.ENABLED", "True")
        assert (other / "run.json").read_bytes() == before and not (other / "results.json").exists()

    def test_the_command_that_is_printed_after_options(self, run, tmp_path, capsys):
        options = [*ONE_CLUSTER_AT_LEAST, "MODEL.ICE.EVAL_ENCODER", "online", "TEST.FLIP.ENABLED", "True"]
        whiten.main([str(run / "model_best.pth"), "--output", str(tmp_path / "new"), "--opts", *options])
        evaluate(tmp_path / "new", tmp_path / "new")
        manifest = read_manifest(tmp_path / "new")
        assert manifest["status"] == "finished" and manifest["evaluated"] == "model_best.pth"
        assert manifest["config"]["MODEL"]["ICE"]["EVAL_ENCODER"] == "online"
        trained = load_trained_model(tmp_path / "new")
        card = model_card(trained.cfg, {}, trained.checkpoint, trained.extras)
        assert card["selected_by"] == "best evaluation on the labelled test set"

    def test_given_clusters_are_said(self, run, tmp_path):
        whiten.main([str(run), "--output", str(tmp_path / "new"), "--clusters", str(run / "clusters.csv")])
        assert read_manifest(tmp_path / "new")["name"] == "ICE, whitened (given clusters)"


SOURCE = {
    "name": "ICE",
    "status": "finished",
    "datasets": {"train": ["A"], "tests": ["A"]},
    "epochs": 4,
    "steps_per_epoch": 10,
    "steps_done": 40,
    "hours": 2.5,
    "scores": {"best": None, "last": None},
    "config": {"DATASETS": {"TESTS": ["A"], "FOLDER": {"QUERY": ""}}, "TEST": {"METRIC": "cosine"}, "SEED": 1},
    "digests": {"A.PATH": "0", "DATASETS.FOLDER.QUERY": "1"},
}


def made(status="finished", checkpoint="model_final.pth", epoch=4, query="/there/query"):
    cfg = {"DATASETS": {"TESTS": ["B"], "FOLDER": {"QUERY": query}}, "TEST": {"METRIC": "euclidean"}, "SEED": 3}
    row = {"epoch": epoch, "mAP": 50.0, "Rank-1": 60.0, "best": True}
    source = {**SOURCE, "status": status}
    return evaluated_manifest(source, cfg, SOURCE["config"], checkpoint=checkpoint, epoch=epoch, records=[row])


def test_manifests_by_hand():
    found = made()
    differing = {"DATASETS.TESTS": ["B"], "TEST.METRIC": "euclidean", "DATASETS.FOLDER.QUERY": "query"}
    assert found["differences"] == differing and found["config"]["SEED"] == 1
    assert (found["epochs_done"], found["steps_done"], found["hours"]) == (4, 40, 2.5)
    assert found["scores"]["last"] == {"epoch": 4, "B": {"mAP": 50.0, "Rank-1": 60.0}}
    assert found["datasets"] == {"train": ["A"], "tests": ["B"]}
    assert found["digests"]["A.PATH"] == "0" and found["digests"]["DATASETS.FOLDER.QUERY"] != "1"
    cfg = {"MODEL": {"HEADS": {"EMBEDDING_DIM": 8}}}
    derived = derived_manifest(found, cfg, SOURCE["config"], checkpoint="model_best.pth", how="whitened")
    assert derived["config"]["MODEL"] == cfg["MODEL"] and "MODEL" not in found["config"]
    assert (derived["name"], derived["status"]) == ("ICE, whitened", "derived") and "evaluated" not in derived
    assert derived["derived_from"] == "model_best.pth" and not is_of_a_training(derived)


@pytest.mark.parametrize(
    "status, checkpoint, epoch, expected",
    [
        ("finished", "model_final.pth", 4, "finished"),
        ("finished", "model_best.pth", 2, "finished"),
        ("finished", "model_0001.pth", 2, "interrupted"),
        ("interrupted", "model_best.pth", 2, "interrupted"),
        ("running", "model_0003.pth", 4, "interrupted"),
    ],
)
def test_what_is_not_trained_to_its_end_is_not_finished(status, checkpoint, epoch, expected):
    found = made(status, checkpoint, epoch)
    assert found["status"] == expected and found["epochs_done"] == epoch
    assert (found["steps_done"], found["hours"]) == (40, 2.5)  # what the training has cost


def test_alike_is_by_protocol_and_images():
    assert scored_alike(made(), made("interrupted", "model_best.pth", 2))
    assert not scored_alike(made(), SOURCE)
    assert not scored_alike(made(), made(query="/elsewhere/query"))  # of one name
