"""Tables: statistics by hand, what is grouped and what is kept apart, the formats, and errors in one line."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastreid_ice.cli.table import main
from fastreid_ice.report.tables import (
    Table,
    aggregate,
    benchmark_table,
    build_table,
    find_runs,
    read_published,
    read_run,
    read_runs,
)
from fastreid_ice.report.tables.build import differing_keys, group_runs, short_names
from fastreid_ice.report.tables.latex import escape
from tests.conftest import ROOT
from tests.test_manifest import row, write_run

AGNOSTIC: dict[str, Any] = {"DATASETS__USE_CAMERAS": False}
MSMT: dict[str, Any] = {"DATASETS__NAMES": ("MSMT17TrainVal",), "DATASETS__TESTS": ("MSMT17",)}


def table(*folders: Path, **options: Any) -> Table:
    read = {key: options.pop(key) for key in ("names", "unfinished") if key in options}
    return build_table(read_runs(folders, **read), **options)


def titles(made: Table, epoch: str = "last") -> list[str]:
    return [str(row.labels[0]) for row in made.rows if row.epoch == epoch]


def pipe(text: str) -> list[list[str]]:
    """Cells of the first Markdown table."""
    lines = [line for line in text.split("\n\n")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]


# Statistics and grouping.


def test_labels_of_a_source_are_told(tmp_path):
    """Rows of domain adaptation stand apart: by their name, by the labels used, and without a part in the best."""
    write_run(tmp_path / "a", [row(1, 50.0)])
    write_run(tmp_path / "b", [row(1, 70.0)], DATASETS__SOURCE=("MSMT17",))
    write_run(tmp_path / "c", [row(1, 40.0)], MODEL__LOSSES__NAME=("AgnosticLoss",))
    made = table(tmp_path)
    assert {row.setting for row in made.rows if "source MSMT17" in str(row.labels[0])} == {
        "with identity labels of a source"
    }
    text = benchmark_table([tmp_path])
    assert "identities of a source" in text and "**50.0**" in text and "**70.0**" not in text
    assert "those trained with identities apart" in text


def test_mean_and_sample_deviation_by_hand():
    found = aggregate([34.3, 33.9, 33.9, 34.5, 34.1])
    # mean 34.14; squared distances .0256 .0576 .0576 .1296 .0016 sum to .272; / 4 = .068
    assert found.mean == pytest.approx(34.14) and found.deviation == pytest.approx(0.068**0.5) and found.count == 5
    assert aggregate([3.0]).deviation is None


def test_seeds_are_one_row_whatever_does_not_matter(tmp_path):
    for seed, score in ((1, 40.0), (2, 42.0), (3, 47.0)):
        write_run(
            tmp_path / f"seed{seed}",
            [row(1, 50.0 + seed), row(2, score)],
            seed=seed,
            hours=seed,
            REPORT={"ENABLED": seed == 1, "PICTURES": seed == 2},
            DATALOADER__NUM_WORKERS=seed,
            MODEL__DEVICE="cpu" if seed == 1 else "cuda",
        )
    made = table(tmp_path)
    assert titles(made) == ["ICE"] and [r.epoch for r in made.rows] == ["best", "last"]
    best, last = (r.cells["Market1501"] for r in made.rows)
    # best: 51, 52, 53; last: 40, 42, 47 with squared distances 9, 1, 16 from 43, / 2 = 13
    assert (best.scores["mAP"].mean, best.scores["mAP"].deviation, best.epochs) == (52.0, 1.0, (1, 1, 1))
    assert last.scores["mAP"].mean == 43.0 and last.scores["mAP"].deviation == pytest.approx(13**0.5)
    assert last.scores["Rank-5"].mean == 54.0 and last.epochs == (2, 2, 2)
    assert last.hours.mean == 2.0 and last.steps == [800] and last.images == [12936]


def test_every_other_key_makes_another_row(tmp_path):
    write_run(tmp_path / "a", CLUSTERING__EPS=0.5)
    write_run(tmp_path / "b", CLUSTERING__EPS=0.55, seed=2)
    write_run(tmp_path / "c", CLUSTERING__EPS=0.55, MODEL__ICE={"SHUFFLE_BN": False})
    write_run(tmp_path / "d", **AGNOSTIC)
    write_run(tmp_path / "e", CLUSTERING__METHOD="ground_truth", MODEL__LOSSES__NAME=("AgnosticLoss",))
    assert titles(table(tmp_path)) == [
        "ICE (agnostic)",
        "ICE, EPS 0.5, SHUFFLE_BN on",
        "ICE, EPS 0.55, SHUFFLE_BN on",
        "ICE, EPS 0.55, SHUFFLE_BN off",
        "true labels",
    ]


def test_backbones_have_a_column_and_no_other_words(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", MODEL__BACKBONE__WITH_IBN=True)
    assert [r.labels for r in table(tmp_path, epochs=["last"]).rows] == [("ICE", "ResNet-50"), ("ICE", "ResNet-50-IBN")]


def test_test_sets_stand_beside_each_other(tmp_path):
    write_run(tmp_path / "market", [row(1, 60.0)])
    write_run(tmp_path / "msmt", [row(1, 20.0)], images=32621, SOLVER__ITERS_PER_EPOCH=800, **MSMT)
    write_run(tmp_path / "own", DATASETS__NAMES=("Own",), DATASETS__TESTS=("Own",))
    made = table(tmp_path, epochs=["last"])
    # A dataset's own settings (800 steps) do not make another method; Market-1501 comes before MSMT17 before others.
    assert titles(made) == ["ICE"] and made.datasets == ("Market1501", "MSMT17", "Own")
    assert {test: cell.scores["mAP"].mean for test, cell in made.rows[0].cells.items()} == {
        "Market1501": 60.0,
        "MSMT17": 20.0,
        "Own": 40.0,
    }


def test_other_training_data_is_said(tmp_path):
    both = ("Market1501", "MSMT17")
    rows = [{**row(1, 30.0, prefix="Market1501/"), **row(1, 10.0, prefix="MSMT17/")}]
    write_run(tmp_path / "transfer", rows, DATASETS__TESTS=both)
    made = table(tmp_path, epochs=["last"])
    assert titles(made) == ["ICE", "ICE, trained on Market-1501"]
    assert made.rows[1].cells["MSMT17"].scores["mAP"].mean == 10.0 and "MSMT17" not in made.rows[0].cells


def test_configs_that_read_alike_stay_apart(tmp_path):
    write_run(tmp_path / "a", [row(1, 10.0)], MODEL__LOSSES__NAME=("Agnostic",))
    write_run(tmp_path / "b", [row(1, 20.0)], MODEL__LOSSES__NAME=("AgnosticLoss",))
    made = table(tmp_path, epochs=["last"])
    assert titles(made) == ["ICE, losses Agnostic"] * 2
    assert [r.cells["Market1501"].scores["mAP"].mean for r in made.rows] == [10.0, 20.0]


def test_names(tmp_path):
    write_run(tmp_path / "runs" / "a" / "seed1")
    write_run(tmp_path / "runs" / "b")
    write_run(tmp_path / "runs" / "c", name="from the manifest")
    names = {str(tmp_path / "runs"): "outer", str(tmp_path / "runs" / "a"): "inner"}
    assert titles(table(tmp_path, names={str(tmp_path / "runs" / "a"): "mine"})) == ["mine", "ICE", "from the manifest"]
    assert titles(table(tmp_path, names=names)) == ["inner", "outer"]  # b and c are one config, so seeds of one row


def test_unfinished_runs_are_left_out_or_marked_and_never_averaged(tmp_path, caplog):
    write_run(tmp_path / "a", seed=1)
    write_run(tmp_path / "b", [row(1, 12.0)], seed=2, status="running")
    write_run(tmp_path / "c", [], seed=3, status="interrupted")
    (tmp_path / "c" / "results.json").unlink()
    made = table(tmp_path)
    assert titles(made) == ["ICE"] and made.rows[0].cells["Market1501"].scores["mAP"].count == 1
    assert "b is left out: it is not finished (epoch 1 of 2, running); --unfinished shows it" in caplog.text
    made = table(tmp_path, unfinished=True)
    assert titles(made) == ["ICE", "ICE, unfinished, epoch 1 of 2"]
    assert [r.finished for r in made.rows] == [True, True, False, False]
    assert made.rows[3].cells["Market1501"].scores["mAP"].mean == 12.0
    assert "c is left out: it is not finished (epoch 0 of 2) and was not evaluated yet" in caplog.text


def test_a_seed_that_came_twice_is_said(tmp_path, caplog):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    table(tmp_path)
    assert "seed 1 more than once" in caplog.text


def evaluated(folder: Path, checkpoint: str, *rows: Any, **options: Any) -> Path:
    """A run as ``--eval-only`` of one of its checkpoints leaves it."""
    return change(write_run(folder, list(rows), **options), evaluated=f"model_{checkpoint}.pth")


def test_a_seed_that_was_evaluated_by_itself_is_one_of_its_setting(tmp_path, caplog):
    write_run(tmp_path / "a", [row(1, 50.0), row(2, 40.0)])
    write_run(tmp_path / "b", [row(1, 52.0), row(2, 42.0)], seed=2)
    evaluated(tmp_path / "c", "final", row(2, 47.0), seed=3)
    evaluated(tmp_path / "d", "best", row(1, 57.0), seed=3)
    best, last = table(tmp_path).rows
    assert best.cells["Market1501"].scores["mAP"].mean == 53.0 and last.cells["Market1501"].scores["mAP"].mean == 43.0
    assert not caplog.records
    evaluated(tmp_path / "e", "best", row(1, 57.0), seed=2)
    table(tmp_path)
    assert "has seed 2 more than once" in caplog.text


def test_a_run_whose_config_changed_on_the_way_is_no_seed_of_the_others(tmp_path):
    write_run(tmp_path / "a", [row(1, 50.0)])
    write_run(tmp_path / "b", [row(1, 60.0)], seed=2)
    change(tmp_path / "b", changed=[{"until_epoch": 20, "before": {"CLUSTERING.EPS": 0.6}}])
    made = table(tmp_path)
    found = {row.labels[0]: row.cells["Market1501"].scores["mAP"].mean for row in made.rows}
    assert found == {"ICE": 50.0, "ICE, CLUSTERING.EPS 0.6 until epoch 20": 60.0}
    assert all(row.finished for row in made.rows) and not made.marks  # finished, but not ranked beside the others


def test_runs_behind_a_link_are_found(tmp_path):
    write_run(tmp_path / "elsewhere" / "a", [row(1, 50.0)])
    write_run(tmp_path / "logs" / "b", [row(1, 60.0)], seed=2)
    (tmp_path / "logs" / "a").symlink_to(tmp_path / "elsewhere" / "a")
    (tmp_path / "logs" / "b" / "round").symlink_to(tmp_path / "logs")
    assert [made.cells["Market1501"].scores["mAP"].mean for made in table(tmp_path / "logs").rows] == [55.0, 55.0]


def test_no_score_of_the_start(tmp_path):
    write_run(tmp_path / "a", [row(1, 50.0)])
    with pytest.raises(ValueError, match=r"None .* score of the epochs start .*TEST.EVAL_START"):
        table(tmp_path, epochs=("start",))


def test_best_and_last_are_two_rows_whatever_their_folders_are_called(tmp_path):
    for test in ("DukeMTMC", "MSMT17"):
        for folder, checkpoint, score in (("x", "best", 50.0), ("y", "final", 40.0), ("z", "best", 52.0)):
            seed = 1 + (folder == "z")
            evaluated(tmp_path / f"{test}_{folder}", checkpoint, row(2, score), seed=seed, DATASETS__TESTS=(test,))
    found = {made.epoch: made.cells for made in table(tmp_path).rows}
    assert list(found) == ["best", "last"] and all(len(cells) == 2 for cells in found.values())
    assert found["best"]["MSMT17"].scores["mAP"].mean == 51.0 and found["last"]["DukeMTMC"].scores["mAP"].mean == 40.0


def test_the_reason_is_of_the_run_that_is_named(tmp_path):
    change(write_run(tmp_path / "a"), datasets={"train": ["A"], "tests": []})
    change(write_run(tmp_path / "b"), status="running")
    with pytest.raises(ValueError, match="None of the 2 runs can be shown; .*/b: it is not finished"):
        table(tmp_path)


def test_runs_are_found_once(tmp_path):
    a, b = write_run(tmp_path / "x" / "a"), write_run(tmp_path / "x" / "y" / "b")
    assert find_runs([tmp_path, b, a / "run.json"]) == [a, b]


def test_short_names():
    assert short_names(["MODEL.LOSSES.NAME", "A.EPS"]) == {"MODEL.LOSSES.NAME": "LOSSES.NAME", "A.EPS": "EPS"}
    assert short_names(["SCALE", "A.SCALE"]) == {"SCALE": "SCALE", "A.SCALE": "A.SCALE"}


def test_keys_are_compared_within_a_test_set(tmp_path):
    write_run(tmp_path / "a", CLUSTERING__EPS=0.5)
    write_run(tmp_path / "b", CLUSTERING__EPS=0.6, **MSMT)
    assert differing_keys(group_runs(read_runs([tmp_path]))) == []


# Ranks.


def marks(made: Table, metric: str = "mAP") -> list[str]:
    return [made.marks.get((i, "Market1501", metric), "") for i in range(len(made.rows))]


def test_best_and_second_with_ties(tmp_path):
    # What is shown counts: 40.04 and 39.96 are both 40.0.
    for name, score in (("a", 40.04), ("b", 39.96), ("c", 39.0), ("d", 38.0), ("e", 39.04)):
        write_run(tmp_path / name, [row(1, score)], MODEL__LOSSES__NAME=(name,))
    write_run(tmp_path / "f", [row(1, 80.0)], CLUSTERING__METHOD="ground_truth")  # an upper bound takes no part
    write_run(tmp_path / "g", [row(1, 81.0)], status="running", MODEL__LOSSES__NAME=("g",))  # nor what is unfinished
    made = table(tmp_path, epochs=["last"], unfinished=True)
    assert marks(made) == ["best", "best", "second", "", "second", "", ""]


def test_epochs_are_ranked_apart_and_one_row_is_not_ranked(tmp_path):
    write_run(tmp_path / "a", [row(1, 50.0), row(2, 30.0)])
    assert marks(table(tmp_path)) == ["", ""]
    write_run(tmp_path / "b", [row(1, 49.0), row(2, 40.0)], **AGNOSTIC)
    made = table(tmp_path)
    assert [(r.labels[0], r.epoch) for r in made.rows][:2] == [("ICE (agnostic)", "best"), ("ICE (agnostic)", "last")]
    assert marks(made) == ["second", "best", "best", "second"]


# Formats.


@pytest.fixture
def runs(tmp_path):
    """Two seeds of ICE and one agnostic run on Market-1501, the latter on MSMT17 too."""
    folder = tmp_path / "runs"
    write_run(folder / "a1", [row(1, 80.0), row(2, 78.0)], seed=1, hours=10)
    write_run(folder / "a2", [row(1, 82.0), row(2, 80.0)], seed=2, hours=11)
    write_run(folder / "b", [row(1, 79.5), row(2, 79.5)], gpus=("NVIDIA V100",), MODEL__DEVICE="cuda", **AGNOSTIC)
    write_run(folder / "c", [row(1, 20.0), row(2, 30.0)], images=32621, **MSMT, **AGNOSTIC)
    return folder


def test_markdown_of_one_test_set(runs):
    text = benchmark_table([runs / name for name in ("a1", "a2", "b")])
    cells = pipe(text)
    heads = ["Method", "Backbone", "Labels used", "Epoch", "Seeds", "mAP", "R1", "R5", "R10"]
    assert cells[0] == [*heads, "Images", "Steps", "Device", "Hours"]
    assert cells[3][
        :9
    ] == "ICE|ResNet-50|cameras|best|2|**81.0** ± 1.4|**91.0** ± 1.4|**92.0** ± 1.4|**93.0** ± 1.4".split("|")
    assert cells[2][:6] == ["ICE (agnostic)", "ResNet-50", "none", "last", "1", "**79.5**"]
    assert cells[2][9:] == ["12,936", "800", "1 x NVIDIA V100", "1.00"] and cells[3][12] == "10.5"
    assert "Market-1501, percent; mean ± sample standard deviation" in text and text.endswith(".\n")


def test_markdown_of_several_test_sets(runs):
    cells = pipe(benchmark_table([runs], epochs=["last"]))
    assert cells[0][5:7] == ["Market-1501", "MSMT17"]
    assert cells[1][4:] == [
        "1",
        "**79.5** / **89.5** / **90.5** / **91.5**",
        "30.0 / 40.0 / 41.0 / 42.0",
        "12,936 / 32,621",
        "800",
        f"1 x NVIDIA V100 / {cells[2][-2]}",
        "1.00",
    ]
    assert cells[2][6] == "–"


def test_markdown_escapes_its_own_sign(tmp_path):
    write_run(tmp_path / "a", name="a|b")
    assert r"| a\|b   | ResNet-50 |" in benchmark_table([tmp_path])
    name = r"[1] *x* <b> `c` \d $e$ _f_"
    write_run(tmp_path / "a", name=name)
    assert r"| \[1] \*x\* \<b> \`c\` \\d \$e\$ \_f\_ | ResNet-50 |" in benchmark_table([tmp_path])


def latex_rows(text: str) -> list[list[str]]:
    """Cells of each line of the body, with a \\multicolumn counted as often as it is wide."""
    rows = []
    for line in text.splitlines():
        if line.endswith(r"\\"):
            cells = []
            for cell in re.split(r"(?<!\\)&", line[: -len(r"\\")]):
                wide = re.match(r"\s*\\multicolumn\{(\d+)\}", cell)
                cells += [cell.strip()] * (int(wide.group(1)) if wide else 1)
            rows.append(cells)
    return rows


def test_latex(runs):
    text = benchmark_table([runs], format="latex", published=True)
    lines = text.splitlines()
    assert lines[0] == r"% needs \usepackage{booktabs}"
    assert r"\begin{tabular}{l l l l l *{2}{cccc} r r l r}" in lines
    assert r"\cmidrule(lr){6-9} \cmidrule(lr){10-13} \cmidrule(lr){14-17}" in lines
    assert [lines.count(rule) for rule in (r"\toprule", r"\bottomrule", r"\end{tabular}")] == [1, 1, 1]
    rows = latex_rows(text)
    assert {len(cells) for cells in rows} == {17}
    ours = text[: text.index("Published by others")]
    groups = [line for line in ours.splitlines() if r"\emph" in line]
    assert groups == [
        r"\multicolumn{17}{l}{\emph{without camera labels}} \\",
        r"\multicolumn{17}{l}{\emph{with camera labels}} \\",
    ]
    assert r"ICE & ResNet-50 &  & best & 2 & \textbf{81.0}{\scriptsize$\,\pm\,$1.4} & " in ours
    assert r" &  &  & last & 2 & \underline{79.0}{\scriptsize$\,\pm\,$1.4} & " in ours  # the method is named once
    assert "12,936 / 32,621" in ours
    assert "\\midrule\n\\midrule\n\\multicolumn{17}{l}{\\textbf{Published by others, not reproduced here}}" in text
    theirs = text[text.index("Published by others") :]
    assert (
        r"ICE & ResNet-50 & ICCV 2021 & best &  & 82.3 & 93.8 & 97.6 & 98.4 & 38.9 & 70.2 & 80.5 & 84.4 & "
        r"\multicolumn{4}{l}{checked / from memory} \\" in theirs
    )
    assert "textbf{8" not in theirs and "underline" not in theirs  # never ranked with ours
    for opening, closing in (("{", "}"), (r"\begin", r"\end")):
        assert text.count(opening) == text.count(closing)


def test_latex_escapes(tmp_path):
    write_run(tmp_path / "a", name="50% & $x_1 {#~^\\")
    assert r"50\% \& \$x\_1 \{\#\textasciitilde{}\textasciicircum{}\textbackslash{}" in benchmark_table(
        [tmp_path], format="latex"
    )
    assert escape("plain-text 1.0") == "plain-text 1.0"
    write_run(tmp_path / "a", name="[12] a<b>|c")  # a bracket behind a line break would be its argument
    assert "\n{}[12] a\\textless{}b\\textgreater{}\\textbar{}c & " in benchmark_table([tmp_path], format="latex")


def test_csv_has_every_number(runs):
    lines = list(csv.DictReader(io.StringIO(benchmark_table([runs], format="csv", published=True))))
    ours = [line for line in lines if line["kind"] == "measured"]
    assert [(line["label_Method"], line["dataset"], line["epoch"]) for line in ours] == [
        ("ICE (agnostic)", "Market1501", "best"),
        ("ICE (agnostic)", "MSMT17", "best"),
        ("ICE (agnostic)", "Market1501", "last"),
        ("ICE (agnostic)", "MSMT17", "last"),
        ("ICE", "Market1501", "best"),
        ("ICE", "Market1501", "last"),
    ]
    line = ours[4]
    assert float(line["mAP_mean"]) == 81.0 and float(line["mAP_deviation"]) == 2**0.5  # in full precision
    assert (line["seeds"], line["seed"], line["epochs"], line["runs"]) == ("2", "1;2", "1;1", "a1;a2")
    assert (line["images"], line["steps"], float(line["hours_mean"])) == ("12936", "800", 10.5)
    assert ours[0]["mAP_deviation"] == "" and ours[0]["device"] == "1 x NVIDIA V100"
    theirs = {(line["label_Method"], line["dataset"]): line for line in lines if line["kind"] == "published"}
    assert theirs["SpCL", "MSMT17"]["mAP_mean"] == "19.1" and theirs["SpCL", "MSMT17"]["Rank-5_mean"] == ""
    assert theirs["Cluster-Contrast", "MSMT17"]["status"] == "checked, rounded"
    assert ("ICE", "DukeMTMC") not in theirs  # none of our runs was tested on it


def test_metafile(runs, monkeypatch):
    (runs / "a1" / "model_best.pth").touch()
    monkeypatch.chdir(runs.parent)
    content = yaml.safe_load(benchmark_table(["runs"], format="metafile"))
    assert [collection["Name"] for collection in content["Collections"]] == ["ICE (agnostic)", "ICE"]
    assert content["Collections"][0]["Metadata"]["Training Data"] == ["Market-1501", "MSMT17TrainVal"]
    assert content["Collections"][1]["Paper"]["URL"] == "https://arxiv.org/abs/2103.16364"
    models = {model["Name"]: model for model in content["Models"]}
    assert len(models) == len(content["Models"]) == 8  # four runs at best and last: weights are never averaged
    model = models["ICE_ResNet-50_Market1501_seed1_best"]
    assert model["In Collection"] == "ICE" and model["Config"] == "runs/a1/config.yaml"
    assert model["Weights"] == "runs/a1/model_best.pth"
    assert model["Results"] == [
        {
            "Task": "Re-Identification",
            "Dataset": "Market-1501",
            "Metrics": {"mAP": 80.0, "Rank-1": 90.0, "Rank-5": 91.0, "Rank-10": 92.0},
        }
    ]
    assert model["Metadata"]["Epochs"] == 1 and model["Metadata"]["Steps"] == 400 and model["Metadata"]["Seed"] == 1
    assert "Weights" not in models["ICE_ResNet-50_Market1501_seed1_last"]  # there is no such file


def test_metadata_names_no_folder_of_this_machine(runs):
    for kind in ("metafile", "model-index", "csv"):
        assert str(runs.parent) not in benchmark_table([runs], format=kind)


def test_model_index(runs):
    text = benchmark_table([runs / "a1", runs / "a2"], format="model-index", epochs=["best"])
    assert text.startswith("---\n") and text.endswith("\n---\n")
    content = yaml.safe_load(text.strip("-\n"))
    assert [model["name"] for model in content["model-index"]] == [
        "ICE_ResNet-50_Market1501_seed1_best",
        "ICE_ResNet-50_Market1501_seed2_best",
    ]
    result = content["model-index"][1]["results"][0]
    assert result["dataset"] == {"type": "market1501", "name": "Market-1501"} and result["task"]["type"]
    assert result["metrics"][0] == {"type": "mAP", "value": 82.0, "name": "mAP (best epoch, percent)"}
    assert "unsupervised" in content["tags"]


@pytest.mark.parametrize(
    ("options", "tag", "said"),
    [
        ({"CLUSTERING__METHOD": "ground_truth"}, "supervised", "with identity labels"),
        ({"DATASETS__SOURCE": ("MSMT17",)}, "domain-adaptation", "with identity labels of a source"),
    ],
)
def test_labels_are_told_to_hugging_face(tmp_path, options, tag, said):
    write_run(tmp_path / "a", [row(1, 80.0)], **options)
    content = yaml.safe_load(benchmark_table([tmp_path], format="model-index", epochs=["best"]).strip("-\n"))
    assert tag in content["tags"] and "unsupervised" not in content["tags"]
    (metric, *_) = content["model-index"][0]["results"][0]["metrics"]
    assert metric["name"] == f"mAP (best epoch, percent, trained {said})"


def test_two_models_never_share_a_name(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    content = yaml.safe_load(benchmark_table([tmp_path], format="metafile", epochs=["last"]))
    assert len({model["Name"] for model in content["Models"]}) == 2


# Ablations.


def test_ablation(tmp_path):
    every = ("AgnosticLoss", "CrossCameraLoss", "HardInstanceLoss")
    for number, (losses, eps) in enumerate(((every, 0.5), (every[:1], 0.5), (every[:1], 0.6), (every[:1], 0.6))):
        write_run(
            tmp_path / str(number),
            [row(1, 10.0 + number)],
            seed=number,
            MODEL__LOSSES__NAME=losses,
            CLUSTERING__EPS=eps,
        )
    made = table(tmp_path, ablation=True, epochs=["last"])
    assert made.columns == ("Agnostic", "CrossCamera", "HardInstance", "EPS")
    cells = pipe(benchmark_table([tmp_path], ablation=True, epochs=["last"]))
    assert cells[0][:7] == ["Agnostic", "CrossCamera", "HardInstance", "EPS", "Epoch", "Seeds", "mAP"]
    assert [line[:7] for line in cells[1:]] == [
        ["✓", "✓", "✓", "0.5", "last", "1", "10.0"],
        ["✓", "", "", "0.5", "last", "1", "11.0"],
        ["✓", "", "", "0.6", "last", "2", "**12.5** ± 0.7"],
    ]
    text = benchmark_table([tmp_path], ablation=True, format="latex")
    assert r"$\checkmark$ &  &  & 0.6 & best & 2 & " in text and "amssymb" in text.splitlines()[0]
    assert len({len(cells) for cells in latex_rows(text)}) == 1
    lines = list(csv.DictReader(io.StringIO(benchmark_table([tmp_path], ablation=True, format="csv"))))
    assert (lines[0]["label_CrossCamera"], lines[2]["label_CrossCamera"], lines[0]["label_EPS"]) == ("1", "0", "0.5")


def test_ablation_of_switches(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", **AGNOSTIC)
    write_run(tmp_path / "c", [row(1, 5.0)], status="interrupted")
    made = table(tmp_path, ablation=True, epochs=["last"], unfinished=True)
    assert made.columns == ("State", "USE_CAMERAS")
    assert [r.labels for r in made.rows] == [("", False), ("", True), ("unfinished, epoch 1 of 2", True)]


def test_ablation_shows_given_names_that_the_config_does_not_tell(tmp_path):
    write_run(tmp_path / "a", name="one")
    write_run(tmp_path / "b", name="two")
    write_run(tmp_path / "c", name="two", CLUSTERING__EPS=0.1)
    made = table(tmp_path, ablation=True, epochs=["last"])
    assert made.columns == ("Method", "EPS")
    assert [r.labels for r in made.rows] == [("one", "0.55"), ("two", "0.55"), ("two", "0.1")]


# Published numbers.


def test_published_numbers_alone():
    text = benchmark_table(published=True)
    assert text.startswith("**Published by others, not reproduced here** (mAP / R1 / R5 / R10 in percent):\n\n| Method")
    line = next(line for line in text.splitlines() if line.startswith("| ICE  "))
    assert "82.3 / 93.8 / 97.6 / 98.4 | 69.9 / 83.3 / 91.5 / 94.1 | 38.9 / 70.2 / 80.5 / 84.4" in line
    assert "Market-1501 checked; DukeMTMC-reID checked; MSMT17 from memory" in line
    assert "*hearsay*: what others report" in text and "±" not in text


def test_published_file():
    entries = {entry.method: entry for entry in read_published()}
    assert len(entries) == 12
    assert {entry.setting for entry in entries.values()} == {
        "without camera labels",
        "with camera labels",
        "with identity labels",
    }
    assert entries["HHCL"].results["MSMT17"].scores == {"mAP": 31.8, "Rank-1": 58.9}
    assert all(entry.source for entry in entries.values())


def test_published_stays_a_block_of_its_own(runs):
    alone = benchmark_table([runs])
    text = benchmark_table([runs], published=True)
    assert text.startswith(alone.rstrip("\n")) and "**Published by others, not reproduced here**" in text
    assert "DukeMTMC-reID" not in text  # no run of ours


# What goes wrong: one line that names it.


def break_results(folder: Path, content: str) -> Path:
    (folder / "results.json").write_text(content)
    return folder


def change(folder: Path, **values: Any) -> Path:
    manifest = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**manifest, **values}))
    return folder


BAD = [
    (lambda run: run.parent / "none", "none: there is no such folder"),
    (lambda run: run / "results.json", "not a run; give the folder of a run or its run.json"),
    (lambda run: (run / "empty").mkdir() or run / "empty", "empty: holds no run.json"),
    (lambda run: (run / "results.json").unlink() or run, "results.json: there is no such file"),
    (lambda run: (run / "run.json").write_text('{"format"') and run, "run.json: not valid json"),
    (lambda run: change(run, format=9), "format is 9, but this version reads format 1"),
    (lambda run: change(run, seed="one"), "'seed' is 'one'"),
    (lambda run: break_results(run, "[{"), "results.json: not valid json"),
    (lambda run: break_results(run, "{}"), "results.json: holds a dict, but results are a list"),
    (lambda run: break_results(run, '[{"mAP": 1}]'), "results.json: row 1 has no 'epoch'"),
    (lambda run: break_results(run, '[{"epoch": 2, "mAP": NaN}]'), "'mAP' of epoch 2 is nan, which is no percentage"),
    (lambda run: break_results(run, '[{"epoch": 2, "mAP": 140}]'), "'mAP' of epoch 2 is 140"),
    (lambda run: break_results(run, '[{"epoch": 2, "mAP": "x"}]'), "'mAP' of epoch 2 is 'x'"),
    (lambda run: break_results(run, '[{"epoch": 2}]'), "no row has the mAP on Market-1501"),
    (lambda run: break_results(run, json.dumps([row(1, 3.0)])), "ends with epoch 1, but run.json counts 2 epochs"),
    (lambda run: change(run, status="running"), "None of the 1 runs can be shown; .* not finished"),
    (lambda run: change(run, datasets={"train": ["A"], "tests": []}), "it has no test set"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_a_run_that_cannot_be_read_is_one_line(tmp_path, spoil, message):
    run = write_run(tmp_path / "run")
    benchmark_table([run])  # whole before
    out = tmp_path / "table.md"
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        benchmark_table([spoil(run)], output=out)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    assert not out.exists()


def test_options_that_make_no_table(tmp_path):
    run = write_run(tmp_path / "run", DATASETS__NAMES=("Own",), DATASETS__TESTS=("Own",))
    for message, runs, options in (
        ("nothing to show", [], {}),
        ("Nothing is published on Own; there are numbers on Market1501, DukeMTMC, MSMT17", [run], {"published": True}),
        ("An ablation needs runs that differ: these 1", [run], {"ablation": True}),
        ("leave --published away", [run], {"ablation": True, "published": True}),
        ("metafile describes weights", [], {"format": "metafile", "published": True}),
        ("format is 'html'; choose one of markdown, latex, csv", [run], {"format": "html"}),
        ("choose of start, best, last", [run], {"epochs": ["first"]}),
        ("--name .*x=y: none of the runs lies in", [run], {"names": {str(tmp_path / "x"): "y"}}),
        ("no such file", [], {"published": tmp_path / "none.yml"}),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            benchmark_table(runs, **options)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("a: b", "needs a list of methods"),
        ("[", "not valid yaml"),
        ("- {method: X}", r"entry 1 \(X\) has no 'setting'"),
        ("- {method: X, setting: s, backbone: b, source: s, results: {A: {}}}", "setting is 's'; choose one of"),
        (
            "- {method: X, setting: with camera labels, backbone: b, source: s, results: {A: {scores: [1]}}}",
            r"\(X\): A needs a status",
        ),
        (
            "- {method: X, setting: with camera labels, backbone: b, source: s, results: [82.3]}",
            r"\(X\): results must be a mapping",
        ),
        (
            "- {method: X, setting: with camera labels, backbone: b, source: s, "
            "results: {A: {status: checked, scores: [101]}}}",
            "A needs scores, a list of percentages",
        ),
    ],
)
def test_bad_published_files_are_named(tmp_path, entry, message):
    path = tmp_path / "published.yml"
    path.write_text(entry)
    with pytest.raises(ValueError, match=message) as error:
        read_published(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


# The script.


def test_script(runs, tmp_path, capsys):
    out = tmp_path / "tables" / "table.tex"
    main([str(runs), "--format", "latex", "--output", str(out), "--name", f"{runs / 'b'}=mine"])
    assert capsys.readouterr().out == f"Wrote {out}\n"
    assert "mine & ResNet-50" in out.read_text() and [path.name for path in out.parent.iterdir()] == ["table.tex"]
    main([str(runs), "--epochs", "best"])
    assert capsys.readouterr().out == benchmark_table([runs], epochs=["best"])


def test_script_says_errors_in_one_line(tmp_path):
    script = [sys.executable, str(ROOT / "tools" / "benchmark_table.py")]
    (tmp_path / "file").touch()
    write_run(tmp_path / "run")
    for arguments, message in (
        ([str(tmp_path / "none")], "none: there is no such folder"),
        (["--name", "x", str(tmp_path / "run")], "--name x: needs FOLDER=NAME"),
        ([str(tmp_path / "run"), "--output", str(tmp_path / "file" / "t.md")], "File exists|Not a directory"),
    ):
        done = subprocess.run([*script, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 1 and done.stdout == ""
        assert re.fullmatch(rf"error: .*({message}).*\n", done.stderr), done.stderr


def test_no_torch_is_needed():
    code = "import sys, fastreid_ice.report.tables, fastreid_ice.report.grid as grid; "
    code += "assert not {'torch', 'fastreid'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_read_run_keeps_what_it_read(tmp_path):
    run = read_run(write_run(tmp_path / "a"), name="mine")
    assert (run.name, run.tests, run.finished, len(run.records)) == ("mine", ["Market1501"], True, 2)


def test_files_of_one_name_are_different_settings(tmp_path):
    """The manifest has the last component of a path only."""
    for seed, place in ((1, "msmt17"), (2, "duke"), (3, "msmt17")):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / "model_best.pth").write_text(place)
        weights = str(tmp_path / place / "model_best.pth")
        write_run(tmp_path / f"run{seed}", seed=seed, MODEL__WEIGHTS=weights)
    cells = pipe(benchmark_table([tmp_path / f"run{seed}" for seed in (1, 2, 3)], epochs=["last"]))
    seeds = cells[0].index("Seeds")
    assert sorted(line[seeds] for line in cells[1:]) == ["1", "2"]
    assert all("model_best.pth (" in line[0] for line in cells[1:])


def test_a_file_is_known_by_its_content_however_its_path_is_written(tmp_path, monkeypatch):
    for seed, place in ((1, "msmt17"), (2, "duke")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "start.pth").write_text(place)
        monkeypatch.chdir(tmp_path / place)
        write_run(tmp_path / f"run{seed}", seed=seed, MODEL__WEIGHTS="start.pth")
    write_run(tmp_path / "run3", seed=3, MODEL__WEIGHTS=str(tmp_path / "msmt17" / "start.pth"))
    cells = pipe(benchmark_table([tmp_path / f"run{seed}" for seed in (1, 2, 3)], epochs=["last"]))
    seeds = cells[0].index("Seeds")
    assert sorted(line[seeds] for line in cells[1:]) == ["1", "2"]


def test_what_a_new_run_has_moved_aside_does_not_count(tmp_path):
    write_run(tmp_path / "run", [row(1, 80.0)])
    write_run(tmp_path / "run" / "earlier_run_1", [row(1, 40.0)], seed=2)
    assert find_runs([tmp_path]) == [tmp_path / "run"]
    assert find_runs([tmp_path / "run" / "earlier_run_1"]) == [tmp_path / "run" / "earlier_run_1"]  # asked for


def test_the_start_where_it_was_not_evaluated(tmp_path):
    write_run(tmp_path / "a", [row(0, 1.0), row(1, 80.0)])
    write_run(tmp_path / "b", [row(1, 70.0)], CLUSTERING__EPS=0.6)
    cells = pipe(benchmark_table([tmp_path], epochs=["start", "last"]))
    epoch = cells[0].index("Epoch")
    assert [line[epoch] for line in cells[1:]].count("start") == 1 and len(cells) == 4
    content = yaml.safe_load(benchmark_table([tmp_path / "a"], format="model-index", epochs=["start"]).strip("-\n"))
    (metric, *_) = content["model-index"][0]["results"][0]["metrics"]
    assert metric == {"type": "mAP", "value": 1.0, "name": "mAP (start epoch, percent)"}
    write_run(tmp_path / "c", [row(1, 20.0)], **MSMT)  # the same row on another test set, whose start nobody knows
    cells = pipe(benchmark_table([tmp_path / "a", tmp_path / "c"], epochs=["start"]))
    assert [line[cells[0].index("MSMT17")] for line in cells[1:]] == ["–"]
    entry = yaml.safe_load(benchmark_table([tmp_path / "a"], format="metafile", epochs=["start"]))["Models"][0]
    assert entry["Metadata"]["Epochs"] == 0 and "Weights" not in entry


def test_another_protocol_is_said(tmp_path):
    """Also where no namesake differs in it."""
    write_run(tmp_path / "a", TEST={"RERANK": {"ENABLED": True}, "CAMERA_NORMALIZATION": True})
    assert pipe(benchmark_table([tmp_path]))[1][0] == "ICE, re-ranked, camera-normalised test features"
    write_run(tmp_path / "b", TEST={"METRIC": "jaccard"})  # the k-reciprocal distance alone
    assert pipe(benchmark_table([tmp_path / "b"]))[1][0] == "ICE, re-ranked"


def test_protocols_are_ranked_apart(tmp_path):
    for name, eps, score, reranked in (("a", 0.5, 40.0, False), ("b", 0.6, 41.0, False), ("c", 0.5, 60.0, True)):
        write_run(tmp_path / name, [row(1, score)], CLUSTERING__EPS=eps, TEST={"RERANK": {"ENABLED": reranked}})
    assert marks(table(tmp_path, epochs=["last"])) == ["second", "best", ""]
    text = benchmark_table([tmp_path], epochs=["last"])
    assert "best mean of an epoch's rows of one protocol in bold" in text
    ablation = pipe(benchmark_table([tmp_path], ablation=True, epochs=["last"]))
    assert ablation[0][:2] == ["Protocol", "EPS"] and [line[0] for line in ablation[1:]] == ["", "", "re-ranked"]
    every = [tmp_path / "c", tmp_path / "d"]
    write_run(every[1], CLUSTERING__EPS=0.7, TEST={"RERANK": {"ENABLED": True}})  # all alike: said all the same
    assert pipe(benchmark_table(every, ablation=True))[0][:2] == ["Protocol", "EPS"]
