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


@pytest.mark.parametrize("pictures", [True, False])
def test_a_run_ends_with_its_report(pictures, tmp_path):
    run(arguments(tmp_path, **{"REPORT.ENABLED": True, "REPORT.PICTURES": pictures}))
    page = (tmp_path / "report.html").read_text()
    assert "SyntheticReID" not in page and "TinyReID" in page and "mAP" in page
    assert ("data:image/jpeg" in page) == pictures


def test_evaluating_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--eval-only needs MODEL.WEIGHTS"):
        run(arguments(tmp_path, eval_only=True))


def test_demo_writes_its_pictures(tmp_path, monkeypatch, capsys):
    opts = [str(item) for item in small_options(SMALL)]
    monkeypatch.setattr("sys.argv", ["demo.py", "--output-dir", str(tmp_path), *opts])
    demo.main()
    table = capsys.readouterr().out.split("\n\n")[-2].splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == [
        "before training",
        "ICE, best epoch (1)",
        "ICE, last epoch (1)",
        "with the true labels, last epoch",
    ]
    assert "8 identities" in table[-1]
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("clusters.png", "curves.png"))
