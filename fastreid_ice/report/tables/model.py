"""What a benchmark table consists of: statistics over seeds, cells, rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

METRICS = ("mAP", "Rank-1", "Rank-5", "Rank-10")
SHORT = {"mAP": "mAP", "Rank-1": "R1", "Rank-5": "R5", "Rank-10": "R10"}
EPOCHS = ("best", "last")
ALL_EPOCHS = ("start", *EPOCHS)  # "start": the initial weights, where TEST.EVAL_START has evaluated them
WITH_IDENTITIES = "with identity labels"
WITH_SOURCE = "with identity labels of a source"
SETTINGS = ("without camera labels", "with camera labels", WITH_SOURCE, WITH_IDENTITIES)
WITH_LABELS = (WITH_SOURCE, WITH_IDENTITIES)
# fastreid's names of test sets, in the order of the tables, and how papers write them.
DATASETS = {
    "Market1501": "Market-1501",
    "DukeMTMC": "DukeMTMC-reID",
    "MSMT17": "MSMT17",
    "CUHK03": "CUHK03",
    "VeRi": "VeRi-776",
    "VehicleID": "VehicleID",
    "VeRiWild": "VERI-Wild",
}


@dataclass(frozen=True)
class Run:
    """A run as read from its folder.

    Attributes:
        folder: that holds ``run.json`` and ``results.json``.
        manifest: see :mod:`fastreid_ice.report.manifest`.
        records: the rows of ``results.json``.
        name: of the method.
    """

    folder: Path
    manifest: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    name: str

    @property
    def tests(self) -> list[str]:
        return self.manifest["datasets"]["tests"]

    @property
    def finished(self) -> bool:
        return self.manifest["status"] == "finished"


@dataclass(frozen=True)
class Statistic:
    """Mean, sample standard deviation (None for one value) and number of values."""

    mean: float
    deviation: float | None
    count: int


def aggregate(values: Iterable[float]) -> Statistic:
    """Mean and sample standard deviation (divided by n - 1).

    Example:
        >>> aggregate([1.0, 2.0, 3.0])
        Statistic(mean=2.0, deviation=1.0, count=3)
    """
    values = [float(value) for value in values]
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Statistic(statistics.fmean(values), deviation, len(values))


@dataclass(frozen=True)
class Cell:
    """One method on one test set at its start, best or last epoch.

    Attributes:
        scores: per metric, in percent, over the seeds.
        epochs: per run, the epoch that the scores are of.
        runs: one per seed.
    """

    scores: Mapping[str, Statistic]
    epochs: tuple[int, ...]
    runs: tuple[Run, ...]

    @property
    def images(self) -> list[int]:
        """Numbers of training images; more than one only if the runs saw different data."""
        return sorted({run.manifest["images"] for run in self.runs})

    @property
    def steps(self) -> list[int]:
        return sorted({run.manifest["steps_done"] for run in self.runs})

    @property
    def hours(self) -> Statistic:
        return aggregate(run.manifest["hours"] for run in self.runs)

    @property
    def devices(self) -> list[str]:
        return sorted({device(run.manifest) for run in self.runs})


def device(manifest: Mapping[str, Any]) -> str:
    """What a run trained on, such as "CPU (2 threads)" or "4 x NVIDIA V100"."""
    machine = manifest.get("machine") or {}
    if manifest["device"].startswith("cpu"):
        threads = machine.get("threads")
        return f"CPU ({threads} thread{'s' * (threads > 1)})" if threads else "CPU"
    gpus = machine.get("gpus") or []
    names = sorted(set(gpus)) or ["GPU"]
    return f"{max(len(gpus), manifest.get('processes', 1))} x {', '.join(names)}"


@dataclass(frozen=True)
class Row:
    """A method (or a setting of an ablation) at one of ``ALL_EPOCHS``.

    Attributes:
        labels: one text per column of the table; a bool stands for on and off.
        setting: one of ``SETTINGS``.
        epoch: "start", "best" or "last".
        cells: per test set; a set that is missing was not tested.
        finished: False for runs that have not come to their end.
        name: for machine-readable formats, unique among the rows of an epoch.
        protocol: what sets its scores apart from those that papers compare, such as "re-ranked".
        changed: a run of it was resumed with other keys.
    """

    labels: tuple[str | bool, ...]
    setting: str
    epoch: str
    cells: Mapping[str, Cell]
    finished: bool
    name: str
    protocol: str = ""
    changed: bool = False


@dataclass(frozen=True)
class Published:
    """A method as others published it. ``results`` holds per test set the scores, their status and whether rounded."""

    method: str
    setting: str
    backbone: str
    source: str
    results: Mapping[str, PublishedScores]
    venue: str = ""
    epoch: str = ""
    note: str = ""


@dataclass(frozen=True)
class PublishedScores:
    """Scores in percent per metric, how sure they are (see ``published.yml``), and whether others rounded them."""

    scores: Mapping[str, float]
    status: str
    rounded: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of our own and, apart from them, published ones.

    Attributes:
        columns: headings of the labels.
        datasets: test sets, in the order of the columns.
        grouped: whether the rows are grouped by their setting.
    """

    columns: tuple[str, ...]
    datasets: tuple[str, ...]
    rows: tuple[Row, ...]
    published: tuple[Published, ...] = ()
    grouped: bool = True
    marks: Mapping[tuple[int, str, str], str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "marks", _rank(self.rows, self.datasets))


def _rank(rows: Sequence[Row], datasets: Sequence[str]) -> dict[tuple[int, str, str], str]:
    """ "best" and "second" per (row, test set, metric), among finished rows of the same epoch and protocol.

    Ranked is what a reader sees, one decimal: equal numbers are marked alike. Rows that train with identity labels,
    of the training set (an upper bound) or of a source, and runs resumed with other keys take no part, and where only
    one row has a number there is nothing to mark.
    """
    marks = {}
    ranked = [i for i, row in enumerate(rows) if row.finished and not row.changed and row.setting not in WITH_LABELS]
    for kind in dict.fromkeys((rows[i].epoch, rows[i].protocol) for i in ranked):
        alike = [i for i in ranked if (rows[i].epoch, rows[i].protocol) == kind]
        for dataset in datasets:
            for metric in METRICS:
                shown = {
                    i: round(rows[i].cells[dataset].scores[metric].mean, 1)
                    for i in alike
                    if dataset in rows[i].cells and metric in rows[i].cells[dataset].scores
                }
                if len(shown) < 2:
                    continue
                for value, mark in zip(sorted(set(shown.values()), reverse=True), ("best", "second")):
                    marks.update({(i, dataset, metric): mark for i, number in shown.items() if number == value})
    return marks


def dataset_name(dataset: str) -> str:
    return DATASETS.get(dataset, dataset)


def sorted_datasets(datasets: Iterable[str]) -> tuple[str, ...]:
    """In the order of ``DATASETS``, unknown ones behind by name."""
    order = list(DATASETS)
    return tuple(sorted(set(datasets), key=lambda name: (order.index(name) if name in order else len(order), name)))


def number(value: float) -> str:
    """A count with thousands separated, or hours and percent with as many digits as help."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2f}" if math.fabs(value) < 10 else f"{value:.1f}"


def joined(texts: Iterable[str]) -> str:
    """One text where all are equal, else all of them, in the order of the test sets."""
    texts = list(texts)
    return texts[0] if len(set(texts)) == 1 else " / ".join(texts)


def cost_columns(cells: Sequence[Cell]) -> list[str]:
    """Images, steps, device and mean hours; where the test sets differ, in the order of their columns."""
    return [
        joined("/".join(number(images) for images in cell.images) for cell in cells),
        joined("/".join(number(steps) for steps in cell.steps) for cell in cells),
        joined(", ".join(cell.devices) for cell in cells),
        joined(number(cell.hours.mean) for cell in cells),
    ]
