"""A grid of overrides x seeds: what is run, what a crash and a second start mean, and its table."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from fastreid_ice.cli.grid import main as program
from fastreid_ice.config_files import load_config
from fastreid_ice.model_zoo import config_files, grid_files
from fastreid_ice.report.grid import GridRun, claim, expand, expand_rows, run_grid, state_of, subprocess_runner
from fastreid_ice.report.grid_file import parse_axes, read_grid, split_values
from tests.conftest import ROOT
from tests.test_manifest import row, write_run

CONFIG = str(ROOT / "configs" / "ICE" / "demo.yml")


class FakeTraining:
    """A runner that writes what a training leaves; ``plans`` says for a run's name how it ends."""

    def __init__(self, **plans: str):
        self.plans = plans
        self.calls: list[tuple[str, bool]] = []

    def __call__(self, run: GridRun, resume: bool) -> str:
        self.calls.append((run.name, resume))
        plan = self.plans.get(run.name.replace("-", "_").replace(".", "_"), "finished")
        eps = float(run.overrides.get("CLUSTERING.EPS", 0.55))
        rows = [row(1, 20.0 + run.seed + 10 * eps), row(2, 30.0 + run.seed + 10 * eps)]
        if "nothing" not in plan:
            kept = rows if plan == "finished" else rows[:1]
            write_run(run.folder, kept, seed=run.seed, status=plan.split()[0], CLUSTERING__EPS=eps)
        return "exit code 1, CUDA out of memory" if "crash" in plan else ""


def test_values_are_split_outside_of_brackets_and_quotes():
    assert split_values("1") == ["1"]
    assert split_values("('A',),('A', 'B')") == ["('A',)", "('A', 'B')"]
    assert split_values("[1,2];[3]") == ["[1,2]", "[3]"]
    assert split_values("'a,b','c;)'") == ["'a,b'", "'c;)'"]
    with pytest.raises(ValueError, match=r"\(1,2: a \) is missing"):
        split_values("(1,2")


def test_every_combination_and_the_seeds_of_one_setting_in_a_row(tmp_path):
    axes = parse_axes(
        ["CLUSTERING.EPS=0.5,0.55", "MODEL.LOSSES.NAME=('AgnosticLoss',);('AgnosticLoss','HardInstanceLoss')"]
    )
    runs = expand(axes, [1, 2], tmp_path, CONFIG)
    assert [run.name for run in runs][:4] == [
        "EPS-0.5_LOSSES.NAME-AgnosticLoss_SEED-1",
        "EPS-0.5_LOSSES.NAME-AgnosticLoss_SEED-2",
        "EPS-0.5_LOSSES.NAME-AgnosticLoss+HardInstanceLoss_SEED-1",
        "EPS-0.5_LOSSES.NAME-AgnosticLoss+HardInstanceLoss_SEED-2",
    ]
    assert len(runs) == 8 and len({run.name for run in runs}) == 8
    assert runs[3].opts == [
        "CLUSTERING.EPS",
        "0.5",
        "MODEL.LOSSES.NAME",
        "('AgnosticLoss','HardInstanceLoss')",
        "SEED",
        "2",
        "OUTPUT_DIR",
        str(tmp_path / "EPS-0.5_LOSSES.NAME-AgnosticLoss+HardInstanceLoss_SEED-2"),
    ]
    assert [run.name for run in expand({}, [7], tmp_path, CONFIG)] == ["SEED-7"]


def test_names_in_any_script_stay_apart(tmp_path):
    runs = expand_rows({"基线": {}, "无相机": {}, "a_b": {}}, [1], tmp_path, CONFIG)
    assert [run.name for run in runs] == ["基线_SEED-1", "无相机_SEED-1", "a+b_SEED-1"]


def test_long_names_are_cut_and_stay_apart(tmp_path):
    runs = expand({"A.B": ["x" * 300 + "1", "x" * 300 + "2"]}, [1], tmp_path, CONFIG)
    assert len({run.name for run in runs}) == 2 and all(len(run.name) < 200 for run in runs)


def test_a_yaml_file_says_the_same(tmp_path):
    path = tmp_path / "grid.yml"
    path.write_text("grid:\n  CLUSTERING.EPS: [0.5, 0.55]\n  MODEL.LOSSES.NAME: [[A], [A, B]]\nseeds: [1, 2]\n")
    file = read_grid(path)
    assert file.axes == {"CLUSTERING.EPS": ["0.5", "0.55"], "MODEL.LOSSES.NAME": ["('A',)", "('A', 'B')"]}
    assert file.seeds == [1, 2] and not file.rows and not file.options


ROWS = """
options: {SOLVER.MAX_EPOCH: 2}
rows:
  ICE: {}
  larger eps: {CLUSTERING.EPS: 0.6}
  another recipe: {config: ICE/recipes/cap.yml, INPUT.SIZE_TEST: [128, 64]}
seeds: [1, 2]
"""


def test_rows_have_names_keys_and_configs_of_their_own(tmp_path):
    path = tmp_path / "rows.yml"
    path.write_text(ROWS)
    file = read_grid(path)
    runs = expand_rows(file.rows, file.seeds, tmp_path, CONFIG)
    assert file.options == {"SOLVER.MAX_EPOCH": "2"}
    assert [run.name for run in runs][1:4] == ["ICE_SEED-2", "larger-eps_SEED-1", "larger-eps_SEED-2"]
    assert [run.row for run in runs] == ["ICE"] * 2 + ["larger eps"] * 2 + ["another recipe"] * 2
    assert runs[0].overrides == {} and runs[3].overrides == {"CLUSTERING.EPS": "0.6"}
    assert runs[3].config_file == CONFIG and runs[4].config_file == "ICE/recipes/cap.yml"
    assert runs[4].overrides == {"INPUT.SIZE_TEST": "(128, 64)"}
    with pytest.raises(ValueError, match="share the folder a.b_SEED-1"):
        expand_rows({"a.b": {}, "(a.b)": {}}, [1], tmp_path, CONFIG)


def test_a_grid_of_the_package_by_its_name(tmp_path, capsys):
    market_half = str(ROOT / "configs" / "ICE" / "market_half.yml")
    options = ("--config-file", market_half, "--output", tmp_path, "--status", "--grid-file", "ICE/grids/losses.yml")
    main(*options)
    assert "agnostic-proxies_SEED-1  not started" in capsys.readouterr().out
    assert "ICE/grids/losses.yml" in grid_files() and not set(grid_files()) & set(config_files())


def test_the_table_of_rows_has_their_names(tmp_path, capsys):
    path = tmp_path / "rows.yml"
    path.write_text(ROWS)
    training = FakeTraining()
    main("--config-file", CONFIG, "--output", tmp_path / "grid", "--grid-file", path, training=training)
    assert len(training.calls) == 6
    table = capsys.readouterr().out.split("\n\n")[1]
    assert [line.split("|")[1].strip() for line in table.splitlines()[2::2]] == ["ICE", "larger eps", "another recipe"]
    noted = json.loads((tmp_path / "grid" / "grid.json").read_text())
    assert noted["options"] == ["SOLVER.MAX_EPOCH", "2"] and noted["rows"]["larger eps"] == {"CLUSTERING.EPS": "0.6"}


def test_a_row_whose_config_is_missing(tmp_path, capsys):
    path = tmp_path / "rows.yml"
    path.write_text("rows: {ICE: {}, other: {config: none.yml}}")
    with pytest.raises(SystemExit):
        main("--config-file", CONFIG, "--output", tmp_path / "grid", "--grid-file", path)
    assert f"{path}: config none.yml: there is no such file" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "ICE" / "grids").iterdir()), ids=lambda path: path.stem)
def test_the_grids_of_the_package_can_be_trained(path):
    """Every key of every row is one, and every config file is there."""
    file = read_grid(path)
    for run in expand_rows(file.rows, [1], "logs", str(ROOT / "configs" / "ICE" / "market_half.yml")):
        opts = [*(text for pair in file.options.items() for text in pair), *run.opts]
        cfg = load_config(run.config_file, opts)
        assert cfg.DATASETS.NAMES == ("Market1501Half",) and cfg.SOLVER.MAX_EPOCH == 5


def test_runs_one_after_another_and_is_resumable(tmp_path):
    runs = expand({"CLUSTERING.EPS": ["0.5", "0.6"]}, [1, 2], tmp_path, CONFIG)
    lines: list[str] = []
    first = FakeTraining(EPS_0_5_SEED_2="running crash", EPS_0_6_SEED_1="interrupted")
    states = run_grid(runs, first, lines.append)
    assert [state.state for state in states] == ["finished", "failed", "failed", "finished"]
    assert first.calls == [(run.name, False) for run in runs]  # a failed one does not stop the others
    assert lines[:4] == [
        "EPS-0.5_SEED-1  starts",
        "EPS-0.5_SEED-1  epoch 2/2  finished  mAP 36.0  1.00 h",
        "EPS-0.5_SEED-2  starts",
        "EPS-0.5_SEED-2  epoch 1/2  failed  mAP 27.0  1.00 h: exit code 1, CUDA out of memory",
    ]
    assert states[2].detail == "the training ended before its last epoch"
    assert [state_of(run).state for run in runs] == ["finished", "interrupted", "interrupted", "finished"]
    again = FakeTraining()
    states = run_grid(runs, again, lines.append)
    assert again.calls == [(runs[1].name, True), (runs[2].name, True)]  # finished ones are left, the others go on
    assert [state.state for state in states] == ["finished"] * 4


def test_a_training_that_leaves_nothing_failed(tmp_path):
    states = run_grid(expand({}, [1], tmp_path, CONFIG), FakeTraining(SEED_1="nothing"), print)
    assert (states[0].state, states[0].detail) == ("failed", "the training left no run.json")


def test_a_broken_manifest_is_not_trained_over(tmp_path):
    runs = expand({}, [1, 2], tmp_path, CONFIG)
    runs[0].folder.mkdir()
    (runs[0].folder / "run.json").write_text("{")
    training = FakeTraining()
    states = run_grid(runs, training, print)
    assert training.calls == [("SEED-2", False)] and [state.state for state in states] == ["failed", "finished"]
    assert "not valid json" in states[0].detail and "remove the folder to start anew" in states[0].detail


def test_weights_made_from_another_run_are_not_trained_over(tmp_path):
    runs = expand({}, [1, 2], tmp_path, CONFIG)
    write_run(runs[0].folder, [row(1, 20.0)], status="derived")
    training = FakeTraining()
    states = run_grid(runs, training, print)
    assert training.calls == [("SEED-2", False)] and [state.state for state in states] == ["failed", "finished"]
    assert "holds weights made from another run" in states[0].detail


SCRIPT = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("OUTPUT_DIR") + 1])
(folder / "called.json").write_text(json.dumps(sys.argv[1:]))
print("said on the screen")
sys.exit("ValueError: CLUSTERING.EPS is 7" if "7" in sys.argv else 0)
"""


def test_subprocesses(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    train = subprocess_runner([sys.executable, str(script)], ["SOLVER.MAX_EPOCH", "3"])
    good, bad = expand({"CLUSTERING.EPS": ["0.5", "7"]}, [1], tmp_path / "grid", "x.yml")
    assert train(good, True) == ""
    called = json.loads((good.folder / "called.json").read_text())
    assert called == ["--config-file", "x.yml", "--resume", "SOLVER.MAX_EPOCH", "3", *good.opts]
    assert "said on the screen" in (good.folder / "console.txt").read_text()
    problem = train(bad, False)
    assert problem == f"exit code 1, ValueError: CLUSTERING.EPS is 7 ({bad.folder / 'console.txt'})"
    assert "--resume" not in json.loads((bad.folder / "called.json").read_text())


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_a_grid_that_is_killed_ends_its_training(tmp_path):
    """Else the same command again would train beside it, into the same folder."""
    (tmp_path / "child.py").write_text(
        "import os, time\n"
        f"open({str(tmp_path / 'pid.new')!r}, 'w').write(str(os.getpid()))\n"
        f"os.rename({str(tmp_path / 'pid.new')!r}, {str(tmp_path / 'pid')!r})\n"
        "time.sleep(300)\n"
    )
    (tmp_path / "grid.py").write_text(
        "import sys\n"
        "from fastreid_ice.cli import grid\n"
        "from fastreid_ice.report.grid import subprocess_runner\n"
        f"runner = subprocess_runner([sys.executable, {str(tmp_path / 'child.py')!r}])\n"
        f"grid.main(['--config-file', 'ICE/demo.yml', '--output', {str(tmp_path / 'grid')!r}], runner=runner)\n"
    )
    killed = subprocess.Popen([sys.executable, str(tmp_path / "grid.py")], env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        pid = _wait_for(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text())
        killed.terminate()
        assert killed.wait(60) == 128 + signal.SIGTERM
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)
    finally:
        killed.kill()


def _wait_for(said, seconds=60):
    end = time.monotonic() + seconds
    while not (found := said()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def test_a_folder_belongs_to_one_config(tmp_path):
    settings = {"config file": "a.yml", "options": ["X", "1"]}
    runs = expand({}, [1], tmp_path, "a.yml")
    claim(tmp_path, settings, runs)
    claim(tmp_path, settings, runs)
    with pytest.raises(ValueError, match="runs have config file a.yml, options X 1, not config file b.yml, options"):
        claim(tmp_path, {"config file": "b.yml", "options": []}, runs)


def test_keys_that_end_alike_do_not_share_runs(tmp_path, capsys):
    """A folder's name has the ends of the keys only: other keys of the same end would pass for finished."""
    options = ("--config-file", CONFIG, "--output", tmp_path / "grid")
    main(*options, "--grid", "MODEL.LOSSES.HARD_INSTANCE.TEMPERATURE=0.1,0.2")
    main(*options, "--grid", "MODEL.LOSSES.HARD_INSTANCE.TEMPERATURE=0.1,0.3")  # axes may grow
    said = "TEMPERATURE-0.1_SEED-1 has MODEL.LOSSES.HARD_INSTANCE.TEMPERATURE 0.1, not MODEL.LOSSES.SOFT_INSTANCE"
    for status in ([], ["--status"]):
        with pytest.raises(SystemExit):
            main(*options, "--grid", "MODEL.LOSSES.SOFT_INSTANCE.TEMPERATURE=0.1", *status)
        assert said in capsys.readouterr().err
    main(*options, "--grid", "MODEL.LOSSES.HARD_INSTANCE.TEMPERATURE=0.2,0.3", "--status")
    assert capsys.readouterr().out.count("finished") == 2


def test_a_row_keeps_its_keys_as_long_as_its_name(tmp_path):
    """A row's folder has only its name: with other keys the finished runs would pass for the new ones."""
    settings = {"config file": "a.yml", "options": []}
    claim(tmp_path, settings, [], {"ICE": {}, "larger eps": {"CLUSTERING.EPS": "0.6"}})
    claim(tmp_path, settings, [], {"ICE": {}, "a third": {"CLUSTERING.EPS": "0.7"}})
    for rows, said in (
        ({"larger eps": {"CLUSTERING.EPS": "0.65"}}, "'larger eps' have CLUSTERING.EPS 0.6, not CLUSTERING.EPS 0.65;"),
        ({"ICE": {"config": "b.yml"}}, "'ICE' have no keys, not config b.yml; give it another name"),
        ({"a third": {}}, "'a third' have CLUSTERING.EPS 0.7, not no keys"),
    ):
        with pytest.raises(ValueError, match=said):
            claim(tmp_path, settings, [], rows)
    assert set(json.loads((tmp_path / "grid.json").read_text())["rows"]) == {"ICE", "larger eps", "a third"}


def main(*arguments: object, training: FakeTraining | None = None) -> None:
    program([*map(str, arguments)], training or FakeTraining())


def test_script_trains_and_prints_the_table(tmp_path, capsys):
    out = tmp_path / "grid"
    options = ("--config-file", CONFIG, "--output", out, "--seeds", 1, 2, "--grid", "CLUSTERING.EPS=0.5,0.6")
    main(*options, "--", "SOLVER.MAX_EPOCH", 2)
    printed = capsys.readouterr().out
    state, table = printed.split("\n\n", 1)
    assert len(state.splitlines()) == 8 and "EPS-0.6_SEED-2  epoch 2/2  finished  mAP 38.0  1.00 h" in state
    assert table.startswith("| EPS") and "| 0.6 | best  |     2 | **37.5** ± 0.7 |" in table
    assert sorted(path.name for path in out.iterdir()) == [
        "EPS-0.5_SEED-1",
        "EPS-0.5_SEED-2",
        "EPS-0.6_SEED-1",
        "EPS-0.6_SEED-2",
        "grid.json",
    ]
    main(*options, "--status", "--", "SOLVER.MAX_EPOCH", 2)
    assert capsys.readouterr().out.count("finished") == 4
    with pytest.raises(SystemExit):
        main(*options, "--", "SOLVER.MAX_EPOCH", 3)
    assert re.match("error: .*use another --output", capsys.readouterr().err)


def test_script_with_one_setting_prints_methods(tmp_path, capsys):
    main("--config-file", CONFIG, "--output", tmp_path, "--seeds", 1, 2)
    assert "| ICE    | ResNet-50 | best  |     2 |" in capsys.readouterr().out


def test_script_reports_failures_at_the_end(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(
            "--config-file",
            CONFIG,
            "--output",
            tmp_path,
            "--seeds",
            1,
            2,
            training=FakeTraining(SEED_1="nothing crash"),
        )
    assert str(exit_.value).split("\n")[1:] == [
        "1 of 2 runs failed:",
        "SEED-1  failed: exit code 1, CUDA out of memory",
    ]
    assert "| ICE " in capsys.readouterr().out  # the table of what came to its end


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid", "CLUSTERING.EPS"], "--grid CLUSTERING.EPS: needs KEY=VALUE"),
        (["--grid", "A=1", "--grid", "A=2"], "--grid has A twice"),
        (["--grid", "A=1,1"], "A has the value 1 twice"),
        (["--grid", "A=1,"], "A has an empty value"),
        (["--grid", "A=(1"], r"\(1: a \) is missing"),
        (["--grid", "SEED=1,2"], "SEED cannot be an axis of the grid: --seeds sets it"),
        (["--grid", "A=1.0,'1.0'"], "would share the folder A-1.0_SEED-1"),
        (["--seeds", "1", "1"], r"--seeds are \[1, 1\]"),
        (["--grid-file", "none.yml"], "none.yml: there is no such file"),
        (["--", "A"], "must be KEY VALUE pairs"),
        (["--", "OUTPUT_DIR", "x"], "OUTPUT_DIR cannot be among the options"),
        (["--grid", "A=1", "--", "A", "2"], "A is a key of the grid and among the options"),
        (["--config-file", "none.yml"], "--config-file none.yml: there is no such file"),
    ],
)
def test_arguments_that_make_no_grid(tmp_path, arguments, message, capsys):
    with pytest.raises(SystemExit):
        main("--config-file", CONFIG, "--output", tmp_path / "grid", *arguments)
    assert re.fullmatch(f"error: .*{message}.*\n", capsys.readouterr().err) and not (tmp_path / "grid").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "needs 'grid'"),
        ("grid: {A: [1]}\nseed: 1", "nothing else"),
        ("grid: {A: 1}", "needs a list of values"),
        ("seeds: [one]", "must be a list of whole numbers"),
        ("grid: {OUTPUT_DIR: [a]}", "OUTPUT_DIR cannot be an axis"),
        ("grid: [", "not valid yaml"),
        ("grid: {A: [1]}\nrows: {a: {}}", "has both 'grid' and 'rows'"),
        ("rows: [a]", "'rows' needs NAME"),
        ("rows: {a: 1}", "'rows' needs NAME"),
        ("rows: {a: {SEED: 1}}", "SEED cannot be a key of it: --seeds sets it"),
        ("options: [A, 1]", "'options' needs KEY: VALUE"),
    ],
)
def test_grid_files_that_make_no_grid(tmp_path, content, message):
    path = tmp_path / "grid.yml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        read_grid(path)
    assert "\n" not in str(error.value)
