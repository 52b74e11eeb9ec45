"""The sections of a report that show numbers: scores, curves, the map, costs, config, versions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastreid_ice.report import embedding_map
from fastreid_ice.report.manifest import flatten
from fastreid_ice.report.page_charts import curve_figures
from fastreid_ice.report.page_data import ReportData
from fastreid_ice.report.page_html import chart, details, number, paragraph, safe, table
from fastreid_ice.report.records import SCORES, best_record, last_record, score_key
from fastreid_ice.report.wording import count

NO_MANIFEST = "There is no run.json of this run."
EPOCH_COLUMNS = ("mAP", "Rank-1", "clusters", "outliers", "nmi", "ari")


def summary(data: ReportData) -> str:
    """The numbers that one looks for first."""
    best, last = best_record(data.records, data.tests), last_record(data.records, data.tests)
    shown = {"best and last": best} if best is last else {"best": best, "last": last}
    tiles = []
    for test in data.tests:
        where = f" on {test}" if len(data.tests) > 1 else ""
        for which, record in shown.items():
            if record is not None:
                values = [number(record.get(score_key(data.tests, test, score))) for score in ("mAP", "Rank-1")]
                tiles.append((" / ".join(values), f"mAP / Rank-1 in %{where}, {which} (epoch {record['epoch']})"))
    if len(data.paths):
        tiles.append((f"{data.num_clusters:,}", f"clusters of {count(len(data.paths), 'training image')}"))
        tiles.append((f"{data.num_outliers / len(data.paths):.1%}", "outliers"))
    if data.identities is not None:
        tiles.append((f"{len(np.unique(data.identities)):,}", "true identities"))
    if data.manifest is not None:
        tiles.append((f"{data.manifest['hours']:,.2f} h", f"{data.manifest['status']}, on {_device(data.manifest)}"))
    items = "".join(f"<li><b>{safe(value)}</b> <span>{safe(name)}</span></li>" for value, name in tiles)
    return f'<ul class="tiles">{items}</ul>' if items else ""


def scores(data: ReportData) -> str:
    """Scores before training, of the best and of the last evaluated epoch."""
    best, last = best_record(data.records, data.tests), last_record(data.records, data.tests)
    if best is None or last is None:
        return paragraph("The run was not evaluated.")
    start = [("before training", row) for row in data.records if row["epoch"] == 0 and row is not best]
    parts = []
    for test in data.tests:
        rows = []
        for name, record in [*start, ("best", best), ("last", last)]:
            values = [record.get(score_key(data.tests, test, score)) for score in SCORES]
            rows.append([f"{name} (epoch {record['epoch']})", *values])
        parts.append(table(f"{test}, in percent", ["", *SCORES], rows))
    return "".join(parts)


def curves(data: ReportData) -> str:
    """What was recorded in each epoch, drawn, and folded away as numbers."""
    if not data.records:
        return paragraph("Nothing was recorded: the first epoch has not ended, or results.json is missing.")
    known = None if data.identities is None else len(np.unique(data.identities))
    figures = curve_figures(data.records, known)
    charts = [chart(figure, f"curve{i}", f"{name}, by epoch") for i, (name, figure) in enumerate(figures.items())]
    columns = [name for name in EPOCH_COLUMNS if any(name in record for record in data.records)]
    losses = dict.fromkeys(name for record in data.records for name in record if name.startswith("loss_"))
    columns += list(losses)
    rows = [[record["epoch"], *(_finite(record.get(name)) for name in columns)] for record in data.records]
    numbers = details("The numbers of each epoch", table("By epoch", ["epoch", *columns], rows))
    return f'<div class="charts">{"".join(charts)}</div>{numbers}'


def _finite(value: Any) -> Any:
    """Whole numbers as such, others with three digits; nothing for what is not finite."""
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() else f"{value:.3f}"


def map_section(data: ReportData, projection: str) -> str:
    """Embeddings on a plane, coloured by cluster, camera and true identity."""
    if data.features is None:
        return paragraph(data.notes.get("map", "There are no embeddings of this run."))
    points = embedding_map.project(data.features, projection)
    images = data.rows_of_features()
    groups = {"Clusters": data.labels[images]}
    if data.cameras is not None:
        groups["Cameras"] = data.cameras[images]
    if data.identities is not None:
        groups["True identities"] = data.identities[images]
    charts = []
    for i, (name, values) in enumerate(groups.items()):
        figure = embedding_map.map_figure(points, values, name)
        charts.append(chart(figure, f"map{i}", f"Map of the embeddings, coloured by {name.lower()}"))
    text = (
        f"{len(points):,} of {count(len(data.paths), 'training image')}, projected by "
        f"{embedding_map.NAMES[projection]}. What lies close together is similar to the model. Colours and markers "
        "come again after 48 groups."
    )
    return paragraph(text) + f'<div class="charts">{"".join(charts)}</div>'


def cost(data: ReportData) -> str:
    """Images, steps, hours, and the seconds of each stage of the clustering."""
    parts = []
    if data.manifest is not None:
        run = data.manifest
        steps = f"{run['steps_done']:,} of {run['epochs'] * run['steps_per_epoch']:,}"
        rows = [
            ["training images", run["images"]],
            ["steps", steps],
            ["epochs", f"{run['epochs_done']} of {run['epochs']}"],
            ["hours", f"{run['hours']:.2f}"],
            ["device", _device(run)],
            ["processes", run.get("processes")],
        ]
        parts.append(table("The run", ["", ""], rows))
    elif data.config:
        solver = data.config["SOLVER"]
        epochs = max((int(record["epoch"]) for record in data.records), default=0)
        steps = epochs * solver["ITERS_PER_EPOCH"]
        rows = [
            ["training images", len(data.paths) or None],
            ["steps", steps],
            ["epochs", f"{epochs} of {solver['MAX_EPOCH']}"],
        ]
        parts += [
            paragraph(f"{NO_MANIFEST} The hours and the machine are not known."),
            table("The run", ["", ""], rows),
        ]
    stages = _stages(data)
    if stages:
        peaks = {name: _largest(data, f"process_peak_mb_{name}") for name in stages}
        rows = [[name, sum(stages[name]), sum(stages[name]) / len(stages[name]), peaks[name]] for name in stages]
        if data.manifest is not None:
            rest = 3600 * data.manifest["hours"] - sum(sum(seconds) for seconds in stages.values())
            rows.append(["training, evaluation, all else", max(rest, 0.0), None, None])
        header = ["stage", "seconds", "seconds per clustering", "MiB of the process until then, at most"]
        parts.append(table("Time, over all epochs", header, rows))
    return "".join(parts) or paragraph(NO_MANIFEST)


def _stages(data: ReportData) -> dict[str, list[float]]:
    """Seconds of each stage in the epochs that have them."""
    stages: dict[str, list[float]] = {}
    for record in data.records:
        for name, value in record.items():
            if name.startswith("seconds_") and value is not None:
                stages.setdefault(name[len("seconds_") :], []).append(float(value))
    return stages


def _largest(data: ReportData, name: str) -> int | None:
    values = [record[name] for record in data.records if record.get(name) is not None]
    return round(max(values)) if values else None


def config(data: ReportData) -> str:
    """What differs from the base, then everything, folded away."""
    whole: Mapping[str, Any] = (data.manifest or {}).get("config") or data.config
    if not whole:
        return paragraph("The config of this run is not there.")
    parts = []
    if data.manifest is not None:
        rows = [[key, json.dumps(value)] for key, value in sorted(data.manifest["differences"].items())]
        parts.append(table(f"{len(rows)} differences from configs/ICE/Base-ICE.yml", ["key", "value"], rows))
    else:
        parts.append(paragraph(f"{NO_MANIFEST} The differences from the base are not known; here is the whole config."))
    rows = [[key, json.dumps(value)] for key, value in sorted(flatten(whole).items())]
    parts.append(details(f"The whole config ({len(rows)} keys)", table("Config", ["key", "value"], rows)))
    return "".join(parts)


def versions(data: ReportData) -> str:
    """What the run was made with, and on which machine."""
    if data.manifest is None:
        return paragraph(NO_MANIFEST)
    run = data.manifest
    made = [[name, version or "not installed"] for name, version in (run.get("versions") or {}).items()]
    commit = run.get("commit")
    if commit:
        made.append(["commit", commit["hash"][:12] + (" with changes" if commit.get("dirty") else "")])
    machine = run.get("machine") or {}
    rows = [["seed", str(run["seed"])]] + [
        [name, ", ".join(map(str, value)) or "none" if isinstance(value, list) else value]
        for name, value in machine.items()
    ]
    return table("Versions", ["", ""], made) + table("Machine", ["", ""], rows)


def _device(manifest: Mapping[str, Any]) -> str:
    """Name of the accelerators, or of the CPU."""
    machine = manifest.get("machine") or {}
    return ", ".join(machine.get("gpus") or []) or machine.get("cpu") or manifest["device"]
