"""The files of a run's folder beside its manifest and checkpoints: their names, and what they hold."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastreid_ice.report.manifest import plain_config
from fastreid_ice.report.reading import read_json, read_yaml

RECORDS_FILE = "results.json"
CLUSTERS_FILE = "clusters.csv"
CONFIG_FILE = "config.yaml"
PAGE_FILE = "report.html"


def read_records(path: Path) -> list[dict[str, Any]]:
    """The rows of ``results.json``.

    Raises:
        ValueError: it holds something else.
    """
    records = read_json(path)
    if not isinstance(records, list):
        raise ValueError(f"{path}: holds a {type(records).__name__}, but results are a list with one row per epoch")
    for position, record in enumerate(records):
        if not isinstance(record, dict) or not isinstance(record.get("epoch"), int):
            raise ValueError(f"{path}: row {position + 1} has no 'epoch', a whole number")
    return records


def read_config(path: Path) -> dict[str, Any]:
    """A run's ``config.yaml`` as nested plain values, without the paths in it; empty where there is none.

    Raises:
        ValueError: it is no mapping of keys to values.
    """
    if not path.is_file():
        return {}
    config = read_yaml(path)
    if not isinstance(config, Mapping):
        raise ValueError(f"{path}: holds a {type(config).__name__}, but a config is a mapping of keys to values")
    return plain_config(config)


def read_clusters(path: Path) -> dict[str, Any]:
    """A run's ``clusters.csv``.

    Returns:
        ``paths`` (a tuple of N), ``labels`` (N,) int64, ``cameras`` (N,) int64 or None where all images have the same
        or the column is missing, ``identities`` (N,) int64 or None where the column is missing.

    Raises:
        ValueError: a column or a value is missing, or is no number; names the line.
    """
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:  # as Excel saves it, too
        reader = csv.DictReader(file)
        names = reader.fieldnames or ()
        rows = list(reader)
    missing = [name for name in ("path", "label") if name not in names]
    if missing:
        raise ValueError(f"{path}: has no column {missing[0]!r}; it has {', '.join(map(str, names)) or 'none'}")
    columns: dict[str, np.ndarray] = {}
    for name in ("label", "camera", "identity"):
        if name in names:
            columns[name] = np.array(
                [_whole(row[name], path, line, name) for line, row in enumerate(rows, 2)], np.int64
            )
    cameras = columns.get("camera")
    return {
        "paths": tuple(row["path"] for row in rows),
        "labels": columns["label"],
        "cameras": cameras if cameras is not None and len(np.unique(cameras)) > 1 else None,
        "identities": columns.get("identity"),
    }


def _whole(text: str | None, path: Path, line: int, name: str) -> int:
    try:
        return int(text or "")
    except ValueError:
        raise ValueError(f"{path}, line {line}: {name} is {text!r}, but must be a whole number") from None
