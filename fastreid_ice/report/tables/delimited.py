"""Tables as csv: every number, in full precision."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from fastreid_ice.report.tables.model import METRICS, Cell, Row, Table

KINDS = ("measured", "published")
_COST = ("images", "steps", "device", "hours_mean", "hours_deviation")


def as_delimited(table: Table) -> str:
    """One line per row and test set, comma-separated.

    ``kind`` tells measured from published numbers. Scores in percent; the deviation is the sample standard deviation
    over ``seeds`` and empty for one; ``epochs`` and ``runs`` (names of folders) are in the order of ``seed``.
    """
    heads = ["kind", *(f"label_{column}" for column in table.columns), "setting", "dataset", "epoch", "finished"]
    heads += ["seeds", "seed", "epochs", "runs"]
    heads += [f"{metric}_{part}" for metric in METRICS for part in ("mean", "deviation")]
    heads += [*_COST, "venue", "status", "source", "note"]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, heads, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_measured(table))
    writer.writerows(_published(table))
    return stream.getvalue()


def _measured(table: Table) -> Iterator[dict[str, object]]:
    for row in table.rows:
        for dataset in table.datasets:
            if dataset in row.cells:
                yield {
                    **{f"label_{column}": _label(label) for column, label in zip(table.columns, row.labels)},
                    **_line(row, row.cells[dataset]),
                    "dataset": dataset,
                }


def _label(label: str | bool) -> str:
    return str(int(label)) if isinstance(label, bool) else label


def _line(row: Row, cell: Cell) -> dict[str, object]:
    line: dict[str, object] = {
        "kind": KINDS[0],
        "setting": row.setting,
        "epoch": row.epoch,
        "finished": int(row.finished),
        "seeds": len(cell.runs),
        "seed": ";".join(str(run.manifest["seed"]) for run in cell.runs),
        "epochs": ";".join(map(str, cell.epochs)),
        "runs": ";".join(run.folder.resolve().name for run in cell.runs),
        "images": ";".join(map(str, cell.images)),
        "steps": ";".join(map(str, cell.steps)),
        "device": ";".join(cell.devices),
        "hours_mean": cell.hours.mean,
        "hours_deviation": "" if cell.hours.deviation is None else cell.hours.deviation,
    }
    for metric, score in cell.scores.items():
        line[f"{metric}_mean"] = score.mean
        line[f"{metric}_deviation"] = "" if score.deviation is None else score.deviation
    return line


def _published(table: Table) -> Iterator[dict[str, object]]:
    for entry in table.published:
        for dataset in table.datasets:
            if dataset in entry.results:
                result = entry.results[dataset]
                yield {
                    "kind": KINDS[1],
                    "label_Method": entry.method,
                    "label_Backbone": entry.backbone,
                    "setting": entry.setting,
                    "dataset": dataset,
                    "epoch": entry.epoch,
                    "venue": entry.venue,
                    "status": result.status + ", rounded" * result.rounded,
                    "source": entry.source,
                    "note": entry.note,
                    **{f"{metric}_mean": value for metric, value in result.scores.items()},
                }
