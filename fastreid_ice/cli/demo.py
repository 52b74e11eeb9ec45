"""Train ICE on the embedded dataset without labels, and beside it with the true ones; print the scores.

Writes the clusters found and the curves as pictures into logs/demo. Takes a few minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from tabulate import tabulate

from fastreid_ice.engine import ICETrainer, setup
from fastreid_ice.errors import told_in_one_line
from fastreid_ice.model_zoo import get_config_file
from fastreid_ice.report.contact_sheet import contact_sheet
from fastreid_ice.report.curves import training_curves

SCORES = ("mAP", "Rank-1", "Rank-5", "Rank-10")


def train(output_dir: Path, *opts: str) -> tuple[ICETrainer, list[dict]]:
    """Run configs/ICE/demo.yml; return the trainer and the rows of its results.json."""
    config = get_config_file("ICE/demo.yml")
    cfg = setup(argparse.Namespace(config_file=config, opts=["OUTPUT_DIR", str(output_dir), *opts], eval_only=False))
    trainer = ICETrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer, json.loads((output_dir / "results.json").read_text())


def row(name: str, record: dict, clusters: str) -> list:
    return [name, *(record[score] for score in SCORES), clusters]


def parser() -> argparse.ArgumentParser:
    built = argparse.ArgumentParser(description=__doc__)
    built.add_argument("--output-dir", type=Path, default=Path("logs") / "demo")
    built.add_argument("--debug", action="store_true", help="show the traceback of an error")
    built.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values, as for train_net.py")
    return built


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    with told_in_one_line(args.debug):
        sys.stdout.write(run(args.output_dir, args.opts))


def run(output_dir: Path, opts: Sequence[str]) -> str:
    """Train twice, draw, and return the table and where the pictures are."""
    trainer, records = train(output_dir / "ice", *opts)
    _, supervised = train(output_dir / "true_labels", "CLUSTERING.METHOD", "ground_truth", *opts)

    images, labels = trainer.data_loader.images, trainer.clustering.labels
    assert labels is not None and images.identities is not None
    identities = len(images.identities.unique())
    last = records[-1]
    found = f"{int(labels.max()) + 1}, {int((labels < 0).sum())} outliers of {len(images)} images"
    best = next(record for record in records if record["best"])
    table = [
        *(row("before training", record, "") for record in records if record["epoch"] == 0),
        row(f"ICE, best epoch ({best['epoch']})", best, ""),
        row(f"ICE, last epoch ({last['epoch']})", last, found),
        row("with the true labels, last epoch", supervised[-1], f"{identities} identities"),
    ]
    sheet, curves = output_dir / "clusters.png", output_dir / "curves.png"
    contact_sheet(images.paths, labels.tolist(), images.identities.tolist(), images.camids.tolist(), out_path=sheet)
    training_curves(records, curves, true_identities=identities, title="ICE on SyntheticReID")
    text = tabulate(table, headers=["", *SCORES, "clusters"], floatfmt=".1f", tablefmt="pipe")
    return f"\n{text}\n\nClusters of the last epoch: {sheet}\nCurves: {curves}\n"
