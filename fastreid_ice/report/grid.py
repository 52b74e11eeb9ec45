"""A grid of config overrides (every combination, or named rows) x seeds, run one after another and resumable."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastreid_ice.files import write_json
from fastreid_ice.report.grid_file import CONFIG, OWN_KEYS
from fastreid_ice.report.manifest import FILE_NAME, read_manifest
from fastreid_ice.report.reading import read_json
from fastreid_ice.report.tables.build import short_names

CONSOLE = "console.txt"
GRID_FILE = "grid.json"
_LONGEST_NAME = 160


@dataclass(frozen=True)
class GridRun:
    """One run of a grid.

    Attributes:
        folder: its OUTPUT_DIR, named after its overrides and seed.
        overrides: config keys and values, as on a command line.
        seed: its SEED.
        config_file: what it trains.
        row: name of its row, if the grid has rows.
    """

    folder: Path
    overrides: Mapping[str, str]
    seed: int
    config_file: str
    row: str = ""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def opts(self) -> list[str]:
        """KEY VALUE ... for the training's command line."""
        pairs = {**self.overrides, "SEED": str(self.seed), "OUTPUT_DIR": str(self.folder)}
        return [text for pair in pairs.items() for text in pair]


@dataclass(frozen=True)
class State:
    """How a run stands.

    Attributes:
        state: "finished", "interrupted", "not started" or "failed".
        detail: what went wrong with a failed run, in one line.
        manifest: of the run, if it has one.
    """

    run: GridRun
    state: str
    detail: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """Name, epoch, state, last mAP and hours of the run."""
        parts = [self.run.name]
        if self.manifest:
            parts.append(f"epoch {self.manifest['epochs_done']}/{self.manifest['epochs']}")
        parts.append(self.state)
        scores = (self.manifest.get("scores") or {}).get("last") or {}
        parts += [f"mAP {row['mAP']:.1f}" for row in scores.values() if isinstance(row, dict) and "mAP" in row]
        if self.manifest:
            parts.append(f"{self.manifest['hours']:.2f} h")
        return "  ".join(parts) + (f": {self.detail}" if self.detail else "")


# Trains a run, going on with it if the flag says so; returns "" or what went wrong in one line.
Runner = Callable[[GridRun, bool], str]


def expand(
    axes: Mapping[str, Sequence[str]], seeds: Sequence[int], output: str | os.PathLike, config_file: str
) -> list[GridRun]:
    """Every combination of the axes' values with every seed; the seeds of one setting follow each other.

    Raises:
        ValueError: no seed, a seed twice, or two runs whose folders would have one name.
    """
    short = short_names(axes)
    runs = []
    for values in itertools.product(*axes.values()):
        overrides = dict(zip(axes, values))
        texts = [f"{short[key]}-{value}" for key, value in overrides.items()]
        for seed in seeds:
            runs.append(
                GridRun(Path(output) / _folder_name([*texts, f"SEED-{seed}"]), overrides, seed, str(config_file))
            )
    return _checked(runs, seeds)


def expand_rows(
    rows: Mapping[str, Mapping[str, str]], seeds: Sequence[int], output: str | os.PathLike, config_file: str
) -> list[GridRun]:
    """Every named row with every seed, see :class:`GridFile`; the seeds of one row follow each other.

    Raises:
        ValueError: no seed, a seed twice, or two runs whose folders would have one name.
    """
    runs = []
    for name, keys in rows.items():
        overrides = {key: value for key, value in keys.items() if key != CONFIG}
        for seed in seeds:
            folder = Path(output) / _folder_name(["-".join(re.findall(r"[\w.]+", name)), f"SEED-{seed}"])
            runs.append(GridRun(folder, overrides, seed, keys.get(CONFIG, str(config_file)), name))
    return _checked(runs, seeds)


def _checked(runs: list[GridRun], seeds: Sequence[int]) -> list[GridRun]:
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds are {list(seeds)}: give at least one, each once")
    names = [run.name for run in runs]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise ValueError(f"Two runs of the grid would share the folder {repeated[0]}: write their values otherwise")
    return runs


def _folder_name(texts: Sequence[str]) -> str:
    cleaned = [re.sub(r"(?:[^\w.+-]|_)+", "+", re.sub(r"[()\[\]{}'\" ]|,(?=\))", "", text)) for text in texts]
    name = "_".join(text.strip("+") for text in cleaned)
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:_LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}_{cleaned[-1]}"


def state_of(run: GridRun) -> State:
    """How a run stands, by its manifest. A run that was killed counts as interrupted."""
    if not (run.folder / FILE_NAME).is_file():
        return State(run, "not started")
    try:
        manifest = read_manifest(run.folder)
    except ValueError as error:
        return State(run, "failed", f"{error}; remove the folder to start anew")
    if manifest["status"] == "derived":
        return State(run, "failed", f"{run.folder} holds weights made from another run; move them elsewhere", manifest)
    return State(run, "finished" if manifest["status"] == "finished" else "interrupted", "", manifest)


def run_grid(runs: Sequence[GridRun], runner: Runner, report: Callable[[str], None]) -> list[State]:
    """Train every run that is not finished, one after another; a failed one does not stop the others.

    Args:
        runs: see :func:`expand`.
        runner: trains one run; see :func:`subprocess_runner`.
        report: takes one line per run and state.

    Returns:
        The state of each run at the end, in the order of ``runs``.
    """
    states = []
    for run in runs:
        state = state_of(run)
        if state.state in ("not started", "interrupted"):
            resume = run.folder.is_dir()
            report(f"{run.name}  {'goes on' if resume else 'starts'}")
            state = _after(run, runner(run, resume))
        report(state.line())
        states.append(state)
    return states


def _after(run: GridRun, problem: str) -> State:
    state = state_of(run)
    if problem:
        return State(run, "failed", problem, state.manifest)
    if state.state == "finished" or state.state == "failed":
        return state
    found = "left no run.json" if state.state == "not started" else "ended before its last epoch"
    return State(run, "failed", f"the training {found}", state.manifest)


def subprocess_runner(command: Sequence[str], opts: Sequence[str] = ()) -> Runner:
    """A runner that starts ``command --config-file FILE [--resume] opts... KEY VALUE...`` for each run.

    Its output is appended to ``console.txt`` of the run's folder.

    Args:
        command: of the training.
        opts: KEY VALUE ... for all runs.
    """

    def train(run: GridRun, resume: bool) -> str:
        run.folder.mkdir(parents=True, exist_ok=True)
        console = run.folder / CONSOLE
        with console.open("ab") as stream:
            whole = [*command, "--config-file", run.config_file, *["--resume"] * resume, *opts, *run.opts]
            code = subprocess.run(whole, stdout=stream, stderr=subprocess.STDOUT, check=False).returncode
        if code == 0:
            return ""
        lines = console.read_text(encoding="utf-8", errors="replace").split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        return f"exit code {code}, {said} ({console})"

    return train


def check_options(opts: Sequence[str]) -> None:
    """Raise ValueError unless these are KEY VALUE pairs without the keys that each run has of its own."""
    if len(opts) % 2:
        raise ValueError(f"The options behind -- are {' '.join(opts)}: they must be KEY VALUE pairs")
    if taken := set(OWN_KEYS) & set(opts[::2]):
        raise ValueError(f"{min(taken)} cannot be among the options: --seeds and --output set it")


def claim(
    output: str | os.PathLike,
    settings: Mapping[str, Any],
    runs: Sequence[GridRun],
    rows: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Note in ``grid.json`` what the runs of a folder are of, so that no later grid takes them for its own.

    Args:
        output: folder of the grid.
        settings: config file and options of all runs; axes and seeds may grow and are none of them.
        runs: of the grid. Others may come later; the name of a folder has only the ends of its keys.
        rows: named rows and their keys, see :class:`GridFile`, if the grid has such.

    Raises:
        ValueError: see :func:`check_claim`.
    """
    noted = check_claim(output, settings, runs, rows)
    write_json(Path(output) / GRID_FILE, {**settings, **noted})


def check_claim(
    output: str | os.PathLike,
    settings: Mapping[str, Any],
    runs: Sequence[GridRun],
    rows: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, dict[str, Any]]:
    """What ``grid.json`` is to note of the rows and of the folders without one, those of earlier grids included.

    Args: see :func:`claim`.

    Raises:
        ValueError: the folder belongs to a grid with other settings, or has a row of this name or a run in a folder of
            this name with other keys.
    """
    path = Path(output) / GRID_FILE
    asked: dict[str, Mapping[str, Any]] = {
        "rows": rows or {},
        "runs": {} if rows else {run.name: dict(run.overrides) for run in runs},
    }
    noted: dict[str, dict[str, Any]] = {kind: {} for kind in asked}
    if path.is_file():
        earlier = read_json(path)
        if isinstance(earlier, dict):
            noted = {kind: earlier.pop(kind, {}) for kind in asked}
        plain = json.loads(json.dumps(settings))
        if earlier != plain:
            raise ValueError(
                f"{path}: this folder's runs have {_show(earlier)}, not {_show(plain)}; use another --output"
            )
    for kind, entries in asked.items():
        for name, keys in entries.items():
            before = noted[kind].get(name, keys)
            if before != keys:
                whose = f"the runs of the row {name!r} have" if kind == "rows" else f"the run in {name} has"
                advice = "give it another name, or use another" if kind == "rows" else "use another"
                raise ValueError(
                    f"{path}: {whose} {_show(before) or 'no keys'}, not {_show(dict(keys)) or 'no keys'}; "
                    f"{advice} --output"
                )
    every = {kind: {**noted[kind], **entries} for kind, entries in asked.items()}
    return {kind: entries for kind, entries in every.items() if entries}


def _show(settings: Any) -> str:
    if not isinstance(settings, dict):
        return repr(settings)
    return ", ".join(f"{key} {' '.join(v) if isinstance(v, list) else v}" for key, v in settings.items())
