"""Seconds of each stage of an epoch, from the log of a run; beside those of another run, such as of an older version.

    python benchmarks/epoch.py logs/market1501/ice_osnet_x0_25_cpu
    python benchmarks/epoch.py AFTER --before BEFORE

Reads ``log.txt``, which has whole seconds, and what the clustering and the evaluation log of themselves. Medians
over the epochs; the first clustering, which may compile, is part of the start-up.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections import defaultdict
from datetime import datetime
from pathlib import Path

STAGES = ("features", "clustering", "steps", "inference", "ranking")
_LINE = re.compile(r"\[(\d\d/\d\d \d\d:\d\d:\d\d)\] [\w.]+ \w+: (.*)")
_CLUSTERS = re.compile(r"Epoch (\d+): .* in ([\d.]+) s \(features ([\d.]+)")
_INFERENCE = re.compile(r"Total inference time: (\d+):(\d+):([\d.]+)")


def stages_of(log: str) -> dict[str, list[float]]:
    """Seconds by stage, a value per epoch; "start" is what comes before the first step, evaluations left out."""
    found: dict[str, list[float]] = defaultdict(list)
    first: datetime | None = None
    steps_since: datetime | None = None  # when the steps of the epoch began
    inferred: datetime | None = None  # when an inference was done
    evaluated = 0.0  # before the first step
    for line in log.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        moment, text = datetime.strptime(f"2000/{match[1]}", "%Y/%m/%d %H:%M:%S"), match[2]  # a leap year
        first = first or moment
        if clusters := _CLUSTERS.match(text):
            whole, features = float(clusters[2]), float(clusters[3])
            if steps_since is not None:
                found["steps"].append((moment - steps_since).total_seconds() - whole)
            if "start" in found:
                found["clustering"].append(whole - features)
            else:
                found["start"].append((moment - first).total_seconds() - evaluated - features)
            found["features"].append(features)
            steps_since = moment
        elif text.startswith("Start inference") and steps_since is not None:
            found["steps"].append((moment - steps_since).total_seconds())
            steps_since = None
        elif seconds := _INFERENCE.match(text):
            found["inference"].append(60 * (60 * int(seconds[1]) + int(seconds[2])) + float(seconds[3]))
            inferred = moment
        elif text.startswith("Evaluation results in csv") and inferred is not None:
            found["ranking"].append((moment - inferred).total_seconds())
            if "start" not in found:
                evaluated += found["inference"][-1] + found["ranking"][-1]
            inferred = None
    return dict(found)


def table(after: dict[str, list[float]], before: dict[str, list[float]] | None) -> str:
    """Markdown: each stage with its share of an evaluated epoch, and how many times faster it is."""
    medians = [{stage: statistics.median(run[stage]) for stage in run} for run in (before, after) if run]
    heads = (["before, s", "share"] if before else []) + ["now, s", "share"] + (["ratio"] if before else [])
    lines = ["| stage | " + " | ".join(heads) + " |", "|:--|" + "--:|" * len(heads)]
    sums = [sum(run.get(stage, 0) for stage in STAGES) for run in medians]
    for stage in (*STAGES, "epoch", "start"):
        seconds = sums if stage == "epoch" else [run.get(stage, 0) for run in medians]
        cells = []
        for value, whole in zip(seconds, sums):
            cells += [f"{value:.1f}", "" if stage == "start" else f"{100 * value / whole:.0f} %"]
        if before:
            cells.append(f"{seconds[0] / seconds[1]:.1f}" if seconds[1] else "")
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run, with log.txt")
    parser.add_argument("--before", type=Path, help="folder of the run to compare with")
    args = parser.parse_args()
    runs = [stages_of((folder / "log.txt").read_text()) for folder in (args.run, args.before) if folder is not None]
    for run in runs:
        print("epochs:", ", ".join(f"{stage} {len(values)}" for stage, values in run.items()))
    print(table(runs[0], runs[1] if args.before else None))


if __name__ == "__main__":
    main()
