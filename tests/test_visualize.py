"""tools/visualize.py and the report at the end of a run, on a run of a few steps."""

from __future__ import annotations

import csv
import json
import logging
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from fastreid_ice.cli import train, visualize
from fastreid_ice.engine import ICETrainer
from fastreid_ice.engine.reporting import collect, extract_images, write_report
from fastreid_ice.report.contact_sheet import COLUMN, GAP, HEADER, LEFT, ROW
from tests import tiny  # noqa: F401  (registers the dataset and the backbone)
from tests.browser import BROWSER, look
from tests.conftest import ROOT, SMALL, ice_config, small_options
from tests.test_page import Reader, shots

pytestmark = pytest.mark.usefixtures("tiny_dataset")


@pytest.fixture(scope="module")
def trained(tiny_dataset, tmp_path_factory):
    """The folder of a run of two epochs."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = {**SMALL, "SOLVER.MAX_EPOCH": 2, "SOLVER.CHECKPOINT_PERIOD": 0, "OUTPUT_DIR": str(folder)}
    config = str(ROOT / "configs" / "ICE" / "demo.yml")
    train.main(["--config-file", config, *map(str, small_options(options))])
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the run that a test may damage."""
    return shutil.copytree(trained, tmp_path / "run")


def draw(*argv) -> None:
    visualize.main([str(item) for item in argv])


def rows_of(folder) -> list[dict]:
    with open(folder / "clusters.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_report(copied, capsys):
    draw(copied, "report", "--queries", 3, "--top-k", 4)
    text = (copied / "report.html").read_text()
    sections = Reader(text).sections
    assert "pictures of people" in capsys.readouterr().out and "ICE on TinyReID" in sections["header"]
    labels = [int(row["label"]) for row in rows_of(copied)]
    assert f"of {max(labels) + 1} clusters, the largest first" in sections["clusters"]
    outliers = f"{labels.count(-1)} of {len(labels)} images" if -1 in labels else "Every image belongs to a cluster."
    assert outliers in sections["outliers"]
    assert sum(caption.startswith("query") for _, caption in shots(text)) == 3
    assert sum(caption[:3] in ("✓ 0", "✗ 0", "✓ 1", "✗ 1", "✓ -", "✗ -") for _, caption in shots(text)) == 12
    assert f"{len(labels)} of {len(labels)} training images, projected by t-SNE" in sections["embedding-map"]
    best = next(row for row in json.loads((copied / "results.json").read_text()) if row["best"])
    assert f"{best['mAP']:.1f}" in sections["scores"]


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium here")
def test_report_in_a_browser(copied, tmp_path):
    draw(copied, "report", "--output", tmp_path / "page.html", "--most-mixed-first", "--projection", "pca")
    seen = look([(tmp_path / "page.html").read_text()], tmp_path)
    assert seen.console == [] and [frame["width"] for frame in seen.frames] == [400, 1400]
    assert all(frame["needed"] <= frame["width"] and frame["requests"] == [] for frame in seen.frames)


def test_report_without_pictures(copied, tmp_path, capsys):
    draw(copied / "model_best.pth", "report", "--no-pictures", "--output", tmp_path / "deep" / "page.html")
    assert "no pictures of people" in capsys.readouterr().out
    assert "<img" not in (tmp_path / "deep" / "page.html").read_text()


def test_a_report_says_what_is_missing(copied, tmp_path, capsys):
    for checkpoint in copied.glob("*.pth"):
        checkpoint.unlink()
    draw(copied, "report", "--no-pictures")
    sections = Reader((copied / "report.html").read_text()).sections
    assert "holds no checkpoint" in sections["embedding-map"] and "holds no checkpoint" in sections["ranking-lists"]
    assert "Without map and ranking: " in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["clusters", "curves", "ranking", "map", "sizes"])
def test_pictures(kind, trained, tmp_path):
    draw(trained, kind, "--output", tmp_path / f"{kind}.png")
    with Image.open(tmp_path / f"{kind}.png") as picture:
        assert len(picture.convert("RGB").getcolors(2**24)) > 50
    assert [entry.name for entry in tmp_path.iterdir()] == [f"{kind}.png"]


def test_sizes_of_the_pictures(trained, tmp_path):
    outliers = any(row["label"] == "-1" for row in rows_of(trained))
    draw(
        trained,
        "clusters",
        "--max-clusters",
        2,
        "--per-cluster",
        3,
        "--most-mixed-first",
        "--output",
        tmp_path / "a.png",
    )
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.size == (LEFT + 3 * COLUMN + GAP, HEADER + (2 + outliers) * ROW + GAP)
    draw(trained, "map", "--projection", "pca", "--output", tmp_path / "map.svg")
    assert "<svg" in (tmp_path / "map.svg").read_text()


def test_ranking_lists_agree_with_the_evaluation(trained):
    data = collect(trained, embeddings=False, queries=1000, top_k=1)
    precisions = [example.average_precision for example in data.rankings if example.average_precision is not None]
    best = next(row for row in data.records if row["best"])
    assert 100 * np.mean(precisions) == pytest.approx(best["mAP"], abs=1e-3)
    first = [example.marks[0] == "right" for example in data.rankings if example.matches]
    assert 100 * np.mean(first) == pytest.approx(best["Rank-1"], abs=1e-3)


def test_features_are_those_of_the_model(trained):
    data = collect(trained, rankings=False, max_points=7)
    assert data.features.shape == (7, 32) and len(set(data.featured)) == 7
    assert np.linalg.norm(data.features, axis=1) == pytest.approx(np.ones(7), abs=1e-5)
    from fastreid_ice.api import load

    expected = load(trained).embed([data.paths[i] for i in data.featured])
    np.testing.assert_allclose(data.features, expected, atol=1e-5)


def test_the_trainer_writes_its_report(tmp_path, caplog):
    trainer = ICETrainer(ice_config(OUTPUT_DIR=str(tmp_path / "run"), SOLVER__MAX_EPOCH=1))
    trainer.resume_or_load(resume=False)
    trainer.train()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    written = write_report(trainer)
    assert written == tmp_path / "run" / "report.html" and len(shots(written.read_text())) > 20
    after = trainer.model.state_dict()
    assert trainer.model.training and all(torch.equal(before[name], after[name]) for name in before)
    # what fails is told, and fails nothing; the report of before stays
    (tmp_path / "run" / "results.json").write_text("[")
    with caplog.at_level(logging.WARNING, logger="fastreid_ice"):
        assert write_report(trainer) is None
    assert "There is no report" in caplog.text and "results.json" in caplog.text
    assert len(shots(written.read_text())) > 20


def test_missing_images_are_counted(trained):
    data = collect(trained, embeddings=False, rankings=False)
    from fastreid_ice.engine.checkpoints import load_trained_model

    model = load_trained_model(trained)
    with pytest.raises(FileNotFoundError, match="1 of 2 images are not there, the first: nowhere.jpg"):
        extract_images(model.model, model.cfg, [data.paths[0], "nowhere.jpg"])


def fails(capsys, *argv) -> str:
    """Run the command line, which must fail as for a user's mistake; returns the one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        draw(*argv)
    assert end.value.code == 1
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    return line


MISTAKES = [
    (["report", "--output", "page.txt"], ["page.txt", ".html"]),
    (["curves", "--output", "curves.html"], ["curves.html", ".png", ".svg"]),
    (["clusters", "--output", "sheet.svg"], ["sheet.svg", ".png"]),
    (["clusters", "--max-clusters", "0"], ["--max-clusters is 0", "at least 1"]),
    (["ranking", "--top-k", "-3"], ["--top-k is -3"]),
    (["ranking", "--no-pictures"], ["--no-pictures", "nothing but pictures of people"]),
    (["sizes", "--projection", "pca"], ["--projection does not concern sizes", "report, map"]),
    (["map", "--most-mixed-first"], ["--most-mixed-first does not concern map", "report, clusters"]),
    (["map", "--config-file", "nowhere.yml"], ["nowhere.yml"]),
]


@pytest.mark.parametrize("argv, parts", MISTAKES)
def test_wrong_options(argv, parts, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(trained.iterdir())
    line = fails(capsys, trained, *argv)
    assert all(part in line for part in parts), line
    assert list(tmp_path.iterdir()) == [] and sorted(trained.iterdir()) == before


def test_what_is_no_run(tmp_path, capsys):
    assert "nowhere: there is no such folder of a run" in fails(capsys, tmp_path / "nowhere", "report")
    assert "neither results.json nor clusters.csv" in fails(capsys, tmp_path, "report")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written(trained, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.png").mkdir()
    assert "is a file" in fails(capsys, trained, "sizes", "--output", tmp_path / "file" / "sizes.png")
    assert "is a folder" in fails(capsys, trained, "sizes", "--output", tmp_path / "folder.png")
    assert (tmp_path / "file").read_text() == "mine" and list((tmp_path / "folder.png").iterdir()) == []


def test_mixed_without_identities(copied, capsys):
    rows = rows_of(copied)
    with open(copied / "clusters.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label", "camera"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    for kind in ("clusters", "report"):
        assert "identities of these images are not known" in fails(capsys, copied, kind, "--most-mixed-first")
    assert not list(copied.glob("*.png")) and not list(copied.glob("*.html"))


@pytest.mark.parametrize(
    "kind, name", [("curves", "results.json"), ("sizes", "clusters.csv"), ("clusters", "clusters.csv")]
)
def test_a_file_of_the_run_is_missing(kind, name, copied, capsys):
    (copied / name).unlink()
    assert f"{name} is missing" in fails(capsys, copied, kind)


def test_no_checkpoint(copied, capsys):
    for checkpoint in copied.glob("*.pth"):
        checkpoint.unlink()
    capsys.readouterr()
    for kind in ("map", "ranking"):
        with pytest.raises(SystemExit):
            draw(copied, kind)
        assert "holds no checkpoint" in capsys.readouterr().err


def test_a_checkpoint_of_another_model(copied, capsys):
    torch.save({"model": {"conv1.weight": torch.zeros(1)}}, copied / "model_best.pth")
    assert "None of the checkpoint's tensors belongs to this model" in fails(capsys, copied, "map")


def test_a_missing_image(copied, capsys):
    text = (copied / "clusters.csv").read_text()
    first = rows_of(copied)[0]["path"]
    (copied / "clusters.csv").write_text(text.replace(first, "nowhere.jpg"))
    with pytest.raises(SystemExit) as end:
        draw(copied, "report")
    assert end.value.code == 1
    assert "nowhere.jpg: the report needs this image" in capsys.readouterr().err
    assert not (copied / "report.html").exists()


def test_a_run_that_is_not_evaluated(copied, capsys):
    manifest = json.loads((copied / "run.json").read_text())
    manifest["config"]["DATASETS"]["TESTS"] = []
    (copied / "run.json").write_text(json.dumps(manifest))
    assert "DATASETS.TESTS of its config is empty" in fails(capsys, copied, "ranking")
