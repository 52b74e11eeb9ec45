"""Which rows of a run's ``results.json`` count: the best, the last, the start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SCORES = ("mAP", "Rank-1", "Rank-5", "Rank-10", "mINP")


def best_record(records: Sequence[Mapping[str, Any]], tests: Sequence[str]) -> Mapping[str, Any] | None:
    """The evaluated row that is marked ``best``, else the one whose mean of mAP and Rank-1 over the tests is highest.

    Weights before the training (epoch 0) are best only where nothing else was evaluated. None without any score.
    """
    evaluated = [record for record in records if is_evaluated(record, tests)]
    trained = [record for record in evaluated if record["epoch"] > 0] or evaluated
    marked = [record for record in trained if record.get("best")]
    if marked:
        return marked[-1]

    def metric(record: Mapping[str, Any]) -> float:
        names = [score_key(tests, test, score) for test in tests for score in ("mAP", "Rank-1")]
        return sum(record[name] for name in names if record.get(name) is not None)

    return max(trained, key=metric, default=None)


def last_record(records: Sequence[Mapping[str, Any]], tests: Sequence[str]) -> Mapping[str, Any] | None:
    """The evaluated row of the highest epoch; None without any."""
    evaluated = [record for record in records if is_evaluated(record, tests)]
    return max(evaluated, key=lambda record: record["epoch"], default=None)


def start_record(records: Sequence[Mapping[str, Any]], tests: Sequence[str]) -> Mapping[str, Any] | None:
    """The row of the initial weights (epoch 0); None where they were not evaluated."""
    return next((record for record in records if record["epoch"] == 0 and is_evaluated(record, tests)), None)


def is_evaluated(record: Mapping[str, Any], tests: Sequence[str]) -> bool:
    return bool(tests) and all(record.get(score_key(tests, test, "mAP")) is not None for test in tests)


def score_key(tests: Sequence[str], test: str, score: str) -> str:
    """Name of a score in a row of results.json: fastreid puts the dataset before it where there are several."""
    return score if len(tests) == 1 else f"{test}/{score}"
