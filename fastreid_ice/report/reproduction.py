"""Whether runs come up to what was published."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastreid_ice.report.manifest import flatten
from fastreid_ice.report.tables.build import protocol
from fastreid_ice.report.tables.model import METRICS, SHORT, PublishedScores, Run, Statistic, aggregate, dataset_name
from fastreid_ice.report.tables.published import read_published
from fastreid_ice.report.tables.runs import read_run

COMPARED = ("mAP", "Rank-1")


@dataclass(frozen=True)
class Comparison:
    """The best epoch of some seeds beside a published row.

    Attributes:
        method: as both name it, such as "ICE (agnostic)".
        dataset: the test set, as fastreid names it.
        published: its scores and how sure they are.
        measured: per metric, over the seeds; empty without a finished run.
        tolerance: how many points the mean may lie below the published number.
        apart: what else sets the runs apart from what was published, such as "re-ranked" or another backbone.
    """

    method: str
    dataset: str
    published: PublishedScores
    measured: dict[str, Statistic]
    tolerance: float
    apart: str = ""

    @property
    def below(self) -> dict[str, float]:
        """By how many points mAP and Rank-1 lie below the published number, where it is more than the tolerance."""
        missed = {}
        for metric in COMPARED:
            if metric in self.measured and metric in self.published.scores:
                gap = self.published.scores[metric] - self.measured[metric].mean
                if gap > self.tolerance:
                    missed[metric] = gap
        return missed

    @property
    def verdict(self) -> str:
        """ "reproduced", "not run", what is missing to the published numbers, or why it cannot be compared."""
        if not self.measured:
            return "not run"
        if self.apart:
            return f"not comparable: {self.apart}"
        missed = ", ".join(f"{SHORT[metric]} {gap:.1f}" for metric, gap in self.below.items())
        return f"below by {missed}" if missed else "reproduced"


def published_row(method: str, dataset: str, backbone: str = "ResNet-50") -> PublishedScores:
    """The published scores of a method on a test set.

    Raises:
        ValueError: there are none.
    """
    for entry in read_published():
        if (entry.method, entry.backbone) == (method, backbone) and dataset in entry.results:
            return entry.results[dataset]
    raise ValueError(f"No published numbers of {method} with {backbone} on {dataset_name(dataset)}")


def compare(
    method: str, dataset: str, folders: Iterable[str | os.PathLike], tolerance: float, backbone: str = "ResNet-50"
) -> Comparison:
    """Put the best epochs of a setting's finished runs beside what was published.

    Args:
        method: see :class:`Comparison`.
        dataset: likewise.
        folders: of the finished runs, one per seed.
        tolerance: in points of percent, >= 0.
        backbone: of the published row, such as "ResNet-50".

    Raises:
        ValueError: no published numbers, or a folder whose files cannot be read.
    """
    runs = [read_run(folder) for folder in folders]
    best = []
    for run in runs:
        scores = (run.manifest["scores"]["best"] or {}).get(dataset)
        if scores is None:
            raise ValueError(
                f"{run.folder} was never evaluated on {dataset}; see its DATASETS.TESTS and TEST.EVAL_PERIOD"
            )
        best.append(scores)
    measured = {metric: aggregate(row[metric] for row in best) for metric in METRICS} if best else {}
    apart = dict.fromkeys(reason for run in runs for reason in _apart(run, method, backbone))
    published = published_row(method, dataset, backbone)
    return Comparison(method, dataset, published, measured, tolerance, "; ".join(apart))


def _apart(run: Run, method: str, backbone: str) -> list[str]:
    """What sets a run apart from a published row, besides its scores."""
    manifest = run.manifest
    said = [protocol(flatten(manifest["config"]))]
    if manifest["name"] != method:
        said.append(f"trained as {manifest['name']}")
    if manifest["backbone"] != backbone:
        said.append(f"of {manifest['backbone']}")
    if manifest.get("changed"):
        said.append("resumed with other keys")
    return [reason for reason in said if reason]


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """Markdown, a row per comparison; published and measured numbers are never mixed in one cell."""
    lines = [
        "| Method | Test set | Published mAP / R1 | Status | Measured mAP / R1 | Seeds | Verdict |",
        "|:--|:--|--:|:--|--:|--:|:--|",
    ]
    for row in comparisons:
        published = " / ".join(f"{row.published.scores[m]:.1f}" for m in COMPARED if m in row.published.scores)
        measured = " / ".join(_shown(row.measured[m]) for m in COMPARED if m in row.measured) or "–"
        seeds = next(iter(row.measured.values())).count if row.measured else 0
        cells = [
            row.method,
            dataset_name(row.dataset),
            published,
            row.published.status,
            measured,
            str(seeds),
            row.verdict,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _shown(value: Statistic) -> str:
    return f"{value.mean:.1f}" + (f" ± {value.deviation:.1f}" if value.deviation is not None else "")
