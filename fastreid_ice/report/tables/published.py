"""Numbers that others published, from ``published.yml``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastreid_ice.report.reading import read_yaml
from fastreid_ice.report.tables.model import METRICS, SETTINGS, Published, PublishedScores

PUBLISHED = Path(__file__).parent.parent / "published.yml"
HEADING = "Published by others, not reproduced here"
STATUSES = ("checked", "from memory", "hearsay")
_TEXTS = ("method", "setting", "backbone", "source")


def read_published(path: str | os.PathLike = PUBLISHED) -> list[Published]:
    """Read a list of published methods; the file's head says how it is laid out.

    Raises:
        FileNotFoundError, ValueError: one line that names the file, the entry and what is wrong with it.
    """
    path = Path(path)
    entries = read_yaml(path)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path}: needs a list of methods, each with {', '.join(_TEXTS)} and results")
    return [_entry(entry, f"{path}: entry {position + 1}") for position, entry in enumerate(entries)]


def _entry(entry: Mapping[str, Any], where: str) -> Published:
    missing = [key for key in (*_TEXTS, "results") if not entry.get(key)]
    if missing:
        raise ValueError(f"{where} ({entry.get('method', 'unnamed')}) has no {missing[0]!r}")
    where = f"{where} ({entry['method']})"
    if entry["setting"] not in SETTINGS:
        raise ValueError(f"{where}: setting is {entry['setting']!r}; choose one of {', '.join(SETTINGS)}")
    if not isinstance(entry["results"], dict):
        raise ValueError(f"{where}: results must be a mapping of test sets to scores and their status")
    texts = {key: str(entry.get(key, "")) for key in (*_TEXTS, "venue", "epoch", "note")}
    return Published(
        **texts, results={test: _scores(row, f"{where}: {test}") for test, row in entry["results"].items()}
    )


def _scores(row: Mapping[str, Any], where: str) -> PublishedScores:
    if not isinstance(row, dict) or row.get("status") not in STATUSES:
        raise ValueError(f"{where} needs a status, one of {', '.join(STATUSES)}")
    values = row.get("scores")
    if not isinstance(values, list) or not all(isinstance(v, (int, float)) and 0 <= v <= 100 for v in values):
        raise ValueError(f"{where} needs scores, a list of percentages in the order {', '.join(METRICS)}")
    if not 1 <= len(values) <= len(METRICS):
        raise ValueError(f"{where} has {len(values)} scores; they are {', '.join(METRICS)}")
    return PublishedScores(dict(zip(METRICS, map(float, values))), row["status"], bool(row.get("rounded", False)))


def show_score(entry: PublishedScores, metric: str) -> str:
    """A published score for a reader, or "" if unknown."""
    if metric not in entry.scores:
        return ""
    return f"{entry.scores[metric]:.0f}" if entry.rounded else f"{entry.scores[metric]:.1f}"
