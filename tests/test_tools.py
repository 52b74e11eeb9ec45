"""The command line: train, then evaluate what was trained."""

import json
from argparse import Namespace

import pytest

from fastreid_ice.cli import demo
from fastreid_ice.cli.train import run
from tests import tiny  # noqa: F401  (registers the dataset and the backbone)
from tests.conftest import ROOT, SMALL, small_options

pytestmark = pytest.mark.usefixtures("tiny_dataset")


def arguments(output_dir, eval_only=False, **more) -> Namespace:
    opts = small_options({**SMALL, "OUTPUT_DIR": str(output_dir), **more})
    config = str(ROOT / "configs" / "ICE" / "demo.yml")
    return Namespace(config_file=config, opts=opts, eval_only=eval_only, resume=False)


def test_train_then_evaluate(tmp_path):
    trained = run(arguments(tmp_path))
    weights = str(tmp_path / "model_final.pth")
    evaluated = run(arguments(tmp_path / "again", eval_only=True, **{"MODEL.WEIGHTS": weights}))
    assert evaluated["mAP"] == pytest.approx(trained["mAP"])
    assert json.loads((tmp_path / "results.json").read_text())[-1]["mAP"] == pytest.approx(trained["mAP"])
    log = (tmp_path / "log.txt").read_text()
    assert "Epoch 1: " in log and "Best and last epoch" in log
    assert "Epoch 1: " not in (tmp_path / "again" / "log.txt").read_text()  # each run has its own log
    config = (tmp_path / "config.yaml").read_text()
    run(arguments(tmp_path, eval_only=True, **{"MODEL.WEIGHTS": weights, "TEST.FLIP.ENABLED": True}))
    assert (tmp_path / "config.yaml").read_text() == config  # by which its checkpoints are loaded
    assert (tmp_path / "again" / "config.yaml").is_file()


@pytest.mark.parametrize("pictures", [True, False])
def test_a_run_ends_with_its_report(pictures, tmp_path):
    run(arguments(tmp_path, **{"REPORT.ENABLED": True, "REPORT.PICTURES": pictures}))
    page = (tmp_path / "report.html").read_text()
    assert "SyntheticReID" not in page and "TinyReID" in page and "mAP" in page
    assert ("data:image/jpeg" in page) == pictures


def test_evaluating_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--eval-only needs MODEL.WEIGHTS"):
        run(arguments(tmp_path, eval_only=True))


def test_demo_writes_its_pictures(tmp_path, capsys):
    opts = [str(item) for item in small_options({**SMALL, "MODEL.ICE.IMPORTS": ("tests.tiny",)})]
    demo.main(["--output-dir", str(tmp_path), *opts])
    printed = capsys.readouterr()
    table = [line.split("|") for line in printed.out.splitlines() if line.startswith("|")][2:]
    rows = [[cell.strip() for cell in line[1:6] if cell.strip()] for line in table]
    assert [(row[0], row[3]) for row in rows] == [
        (name, epoch) for name in ("ICE", "true labels") for epoch in ("start", "best", "last")
    ]
    assert "for 8 people" in printed.out
    assert printed.out.rstrip().endswith(f"Clusters: {tmp_path / 'clusters.png'}\nCurves: {tmp_path / 'curves.png'}")
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("clusters.png", "curves.png"))
    assert "ICE epoch 0 of 1, true labels epoch 0 of 1; the first epoch" in printed.err


@pytest.mark.parametrize(
    ("cores", "asked", "threads"), [(2, None, 1), (2, "2", 1), (8, None, 4), (8, "2", 2), (1, "1", 1), (8, "no", 4)]
)
def test_demo_shares_the_cores(monkeypatch, cores, asked, threads):
    """Two trainings at once, whatever OMP_NUM_THREADS says, have no more threads than there are cores."""
    monkeypatch.setattr(demo, "usable_cores", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert demo.threads_each() == threads


def test_a_second_demo_leaves_the_first_alone(tmp_path, capsys, monkeypatch):
    def claimed(folder):
        raise RuntimeError(f"Another training is writing into {folder}")

    monkeypatch.setattr(demo, "claim_folder", claimed)
    folder = tmp_path / "ice"
    folder.mkdir()
    (folder / "config.yaml").write_text("of the first")
    with pytest.raises(SystemExit):
        demo.main(["--output-dir", str(tmp_path)])
    assert "Another training is writing into" in capsys.readouterr().err
    assert (folder / "config.yaml").read_text() == "of the first"


def test_demo_refuses_what_it_sets_itself(tmp_path, capsys):
    with pytest.raises(SystemExit):
        demo.main(["--output-dir", str(tmp_path), "OUTPUT_DIR", "x"])
    assert "OUTPUT_DIR is set by the demo itself" in capsys.readouterr().err


def test_demo_names_what_failed(tmp_path, capsys):
    opts = [
        str(item) for item in small_options({**SMALL, "MODEL.ICE.IMPORTS": ("tests.tiny",), "CLUSTERING.EPS": 0.01})
    ]
    with pytest.raises(SystemExit):
        demo.main(["--output-dir", str(tmp_path), *opts, "CLUSTERING.MIN_SAMPLES", "30"])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: the training ICE failed") and "Clustering found no cluster" in said
