"""A grid of config overrides (every combination, or named rows) x seeds, run one after another and resumable."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastreid_ice.files import replacing
from fastreid_ice.report.manifest import FILE_NAME, read_manifest
from fastreid_ice.report.reading import read_json, read_yaml
from fastreid_ice.report.tables.build import short_names

logger = logging.getLogger(__name__)

CONSOLE = "console.txt"
GRID_FILE = "grid.json"
CONFIG = "config"
_OWN_KEYS = {"SEED": "--seeds", "OUTPUT_DIR": "--output"}
_LONGEST_NAME = 160
_PAIRS = {"(": ")", "[": "]", "{": "}"}


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
class GridFile:
    """What a grid file says; see :func:`read_grid`.

    Attributes:
        axes: config keys and their values, every combination of which is a setting; none if there are rows.
        rows: settings by name, each its config keys and values, and under ``CONFIG`` its config file if it has its own.
        options: config keys and values of all runs.
        seeds: of each setting; none if the file leaves that open.
    """

    axes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    rows: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    seeds: Sequence[int] = ()


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


def split_values(text: str) -> list[str]:
    """The values of an axis: separated by commas or semicolons outside of brackets and quotes.

    Example:
        >>> split_values("0.5,0.55")
        ['0.5', '0.55']
        >>> split_values("('A',);('A','B')")
        ["('A',)", "('A','B')"]
    """
    values, closing, start = [], "", 0
    for position, character in enumerate(text):
        if closing and character == closing[-1]:
            closing = closing[:-1]
        elif closing and closing[-1] in "'\"":
            continue
        elif character in "'\"":
            closing += character
        elif character in _PAIRS:
            closing += _PAIRS[character]
        elif character in ",;" and not closing:
            values.append(text[start:position].strip())
            start = position + 1
    if closing:
        raise ValueError(f"{text}: a {closing[-1]} is missing")
    return [*values, text[start:].strip()]


def parse_axes(arguments: Iterable[str]) -> dict[str, list[str]]:
    """Axes of a grid from KEY=VALUE,VALUE... arguments.

    Raises:
        ValueError: no such form, a key twice, a key that the grid sets itself, or a value twice.
    """
    axes: dict[str, list[str]] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"--grid {argument}: needs KEY=VALUE,VALUE,...")
        if key.strip() in axes:
            raise ValueError(f"--grid has {key.strip()} twice; give all its values in one")
        axes[key.strip()] = split_values(text)
    _check_axes(axes)
    return axes


def read_grid(path: str | os.PathLike) -> GridFile:
    """Read a yaml file with ``grid`` or ``rows`` and, if wanted, ``options`` and ``seeds``.

    ``grid`` is KEY: list of values, ``rows`` is NAME: {KEY: VALUE, ...} where the key ``config`` names another config
    file, ``options`` is KEY: VALUE, ``seeds`` a list.

    Raises:
        FileNotFoundError, ValueError: one line that names the file and what is wrong.
    """
    path = Path(path)
    content = read_yaml(path)
    if not isinstance(content, dict) or set(content) - {"grid", "rows", "options", "seeds"}:
        raise ValueError(
            f"{path}: needs 'grid' (KEY: [VALUE, ...]) or 'rows' (NAME: {{KEY: VALUE, ...}}) and may have 'options' "
            "(KEY: VALUE) and 'seeds', nothing else"
        )
    grid, rows, options, seeds = (content.get(key) or {} for key in ("grid", "rows", "options", "seeds"))
    if grid and rows:
        raise ValueError(f"{path}: has both 'grid' and 'rows'; choose one")
    if not isinstance(grid, dict) or not all(isinstance(values, list) for values in grid.values()):
        raise ValueError(f"{path}: 'grid' needs a list of values for each key")
    if not isinstance(rows, dict) or not all(isinstance(row or {}, dict) for row in rows.values()):
        raise ValueError(f"{path}: 'rows' needs NAME: {{KEY: VALUE, ...}} for each row")
    if not isinstance(options, dict):
        raise ValueError(f"{path}: 'options' needs KEY: VALUE")
    if seeds and (not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds)):
        raise ValueError(f"{path}: 'seeds' is {seeds!r}, but must be a list of whole numbers")
    axes = {str(key): [_written(value) for value in grid[key]] for key in grid}
    _check_axes(axes)
    named = {str(name): {str(key): _written(value) for key, value in (rows[name] or {}).items()} for name in rows}
    for keys in (*named.values(), options):
        if own := set(_OWN_KEYS) & set(keys):
            raise ValueError(f"{path}: {min(own)} cannot be a key of it: {_OWN_KEYS[min(own)]} sets it")
    return GridFile(axes, named, {str(key): _written(value) for key, value in options.items()}, list(seeds))


def _written(value: Any) -> str:
    """A value of a yaml file as a command line has it."""
    return str(tuple(value) if isinstance(value, list) else value)


def _check_axes(axes: Mapping[str, Sequence[str]]) -> None:
    for key, values in axes.items():
        if key in _OWN_KEYS:
            raise ValueError(f"{key} cannot be an axis of the grid: {_OWN_KEYS[key]} sets it")
        if not values or "" in values:
            raise ValueError(f"{key} has an empty value in the grid")
        repeated = [value for value in values if values.count(value) > 1]
        if repeated:
            raise ValueError(f"{key} has the value {repeated[0]} twice in the grid")


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
    cleaned = [re.sub(r"[^A-Za-z0-9.+-]+", "+", re.sub(r"[()\[\]{}'\" ]|,(?=\))", "", text)) for text in texts]
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
    return State(run, "finished" if manifest["status"] == "finished" else "interrupted", "", manifest)


def run_grid(runs: Sequence[GridRun], runner: Runner, report: Callable[[str], None] = logger.info) -> list[State]:
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
    if taken := set(_OWN_KEYS) & set(opts[::2]):
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
    path = Path(output) / GRID_FILE
    noted = check_claim(output, settings, runs, rows)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({**settings, **noted}, indent=1) + "\n", encoding="utf-8")


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
    folders = {} if rows else {run.name: dict(run.overrides) for run in runs}
    noted: dict[str, dict[str, Any]] = {"rows": {}, "runs": {}}
    if path.is_file():
        earlier = read_json(path)
        if isinstance(earlier, dict):
            noted = {kind: earlier.pop(kind, {}) for kind in noted}
        plain = json.loads(json.dumps(settings))
        if earlier != plain:
            raise ValueError(
                f"{path}: this folder's runs have {_show(earlier)}, not {_show(plain)}; use another --output"
            )
    for name, keys in (rows or {}).items():
        if noted["rows"].get(name, keys) != keys:
            raise ValueError(
                f"{path}: the runs of the row {name!r} have {_show(noted['rows'][name]) or 'no keys'}, not "
                f"{_show(dict(keys)) or 'no keys'}; give it another name, or use another --output"
            )
    for name, keys in folders.items():
        if noted["runs"].get(name, keys) != keys:
            raise ValueError(
                f"{path}: the run in {name} has {_show(noted['runs'][name]) or 'no keys'}, not "
                f"{_show(keys) or 'no keys'}; use another --output"
            )
    every = {"rows": {**noted["rows"], **(rows or {})}, "runs": {**noted["runs"], **folders}}
    return {kind: entries for kind, entries in every.items() if entries}


def _show(settings: Any) -> str:
    if not isinstance(settings, dict):
        return repr(settings)
    return ", ".join(f"{key} {' '.join(v) if isinstance(v, list) else v}" for key, v in settings.items())
