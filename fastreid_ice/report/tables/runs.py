"""Finding and reading the folders of runs."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastreid_ice.files import walk_folders
from fastreid_ice.report.manifest import FILE_NAME, SET_ASIDE, read_manifest
from fastreid_ice.report.records import is_evaluated, last_record
from fastreid_ice.report.run_files import RECORDS_FILE, read_records
from fastreid_ice.report.tables.model import METRICS, Run, dataset_name

logger = logging.getLogger(__name__)


def find_runs(paths: Iterable[str | os.PathLike]) -> list[Path]:
    """Folders of runs, each once.

    Args:
        paths: folders of runs, their ``run.json``, or folders that are searched for such, in all depths and
            through links, but for what a new run has moved aside (``earlier_run_1``).

    Raises:
        FileNotFoundError: a path does not exist, or holds no run.
    """
    found: dict[Path, Path] = {}
    for given in paths:
        path = Path(given)
        if path.is_file():
            if path.name != FILE_NAME:
                raise FileNotFoundError(f"{path}: not a run; give the folder of a run or its {FILE_NAME}")
            folders = [path.parent]
        elif path.is_dir():
            below = (below for below, files in walk_folders(path) if FILE_NAME in files)
            folders = sorted(folder for folder in below if not _is_set_aside(folder.relative_to(path)))
        else:
            raise FileNotFoundError(f"{path}: there is no such folder")
        if not folders:
            raise FileNotFoundError(
                f"{path}: holds no {FILE_NAME}, so no run was trained into it or into a folder below"
            )
        for folder in folders:
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _is_set_aside(folder: Path) -> bool:
    return any(re.fullmatch(rf"{SET_ASIDE}_\d+", part) for part in folder.parts)


def read_runs(
    paths: Iterable[str | os.PathLike], *, names: Mapping[str, str] | None = None, unfinished: bool = False
) -> list[Run]:
    """Read runs for a table. Unfinished runs and those without a test set are left out with a log line.

    Args:
        paths: see :func:`find_runs`.
        names: name of the method per folder; it holds for the runs in and below the folder.
        unfinished: keep unfinished runs that have scores already.

    Raises:
        FileNotFoundError, ValueError: one line that names the file and what is wrong with it.
    """
    folders = find_runs(paths)
    given = _names_of(folders, names or {})
    runs = []
    for folder in folders:
        run = read_run(folder, name=given.get(folder))
        reason = _why_not(run, unfinished)
        if reason:
            logger.warning("%s is left out: %s", folder, reason)
        else:
            runs.append(run)
    if folders and not runs:
        raise ValueError(f"None of the {len(folders)} runs can be shown; {folder}: {reason}")
    return runs


def _why_not(run: Run, unfinished: bool) -> str:
    done, planned = run.manifest["epochs_done"], run.manifest["epochs"]
    if not run.tests:
        return "it has no test set (DATASETS.TESTS is empty)"
    if run.manifest["status"] == "derived":
        return "its weights were made from those of another run, and are not evaluated: tools/train_net.py --eval-only"
    if not run.finished and not unfinished:
        return f"it is not finished (epoch {done} of {planned}, {run.manifest['status']}); --unfinished shows it"
    if not run.finished and last_record(run.records, run.tests) is None:
        return f"it is not finished (epoch {done} of {planned}) and was not evaluated yet"
    return ""


def _names_of(folders: Sequence[Path], names: Mapping[str, str]) -> dict[Path, str]:
    """The given name of each folder; of nested ones the innermost counts."""
    found: dict[Path, str] = {}
    for given, name in sorted(names.items(), key=lambda item: len(Path(item[0]).resolve().parts)):
        root = Path(given).resolve()
        inside = [folder for folder in folders if root in (folder.resolve(), *folder.resolve().parents)]
        if not inside:
            raise ValueError(f"--name {given}={name}: none of the runs lies in {given}")
        found.update(dict.fromkeys(inside, name))
    return found


def read_run(folder: str | os.PathLike, *, name: str | None = None) -> Run:
    """Read and check the manifest and the results of one run.

    Raises:
        FileNotFoundError, ValueError: one line that names the file and what is wrong with it.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    path = folder / RECORDS_FILE
    unstarted = manifest["status"] != "finished" and not path.is_file()
    run = Run(folder, manifest, [] if unstarted else _checked_records(path), name or manifest["name"])
    if run.finished and run.tests:
        _check_complete(run, path)
    return run


def _checked_records(path: Path) -> list[dict[str, Any]]:
    records = read_records(path)
    for record in records:
        for key, value in record.items():
            if key.rsplit("/", 1)[-1] in METRICS and value is not None and not _is_percentage(value):
                raise ValueError(f"{path}: {key!r} of epoch {record['epoch']} is {value!r}, which is no percentage")
    return records


def _is_percentage(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and 0 <= value <= 100.001  # float32 may round up


def _check_complete(run: Run, path: Path) -> None:
    last = max((record["epoch"] for record in run.records), default=0)
    if last < run.manifest["epochs_done"]:
        raise ValueError(f"{path}: ends with epoch {last}, but {FILE_NAME} counts {run.manifest['epochs_done']} epochs")
    if not any(is_evaluated(record, run.tests) for record in run.records):
        tests = ", ".join(dataset_name(test) for test in run.tests)
        raise ValueError(f"{path}: no row has the mAP on {tests}")
