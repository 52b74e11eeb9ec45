#!/usr/bin/env python
"""Train ICE on the embedded dataset without labels, and beside it with the true ones; print the scores.

Writes the clusters found and the curves as pictures into logs/demo. Takes a few minutes on two cores.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from tabulate import tabulate

from fastreid_ice.engine import ICETrainer, setup
from fastreid_ice.report import contact_sheet, training_curves

SCORES = ("mAP", "Rank-1", "Rank-5", "Rank-10")


def train(output_dir: Path, *opts: str):
    """Run configs/ICE/demo.yml; return the trainer and the rows of its results.json."""
    config = str(ROOT / "configs" / "ICE" / "demo.yml")
    cfg = setup(argparse.Namespace(config_file=config, opts=["OUTPUT_DIR", str(output_dir), *opts], eval_only=False))
    trainer = ICETrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer, json.loads((output_dir / "results.json").read_text())


def row(name: str, record: dict, clusters: str) -> list:
    return [name, *(record[score] for score in SCORES), clusters]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=ROOT / "logs" / "demo")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values, as for train_net.py")
    args = parser.parse_args()

    trainer, records = train(args.output_dir / "ice", *args.opts)
    _, supervised = train(args.output_dir / "true_labels", "CLUSTERING.METHOD", "ground_truth", *args.opts)

    images, labels = trainer.data_loader.images, trainer.clustering.labels
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
    sheet, curves = args.output_dir / "clusters.png", args.output_dir / "curves.png"
    contact_sheet(images.paths, labels, images.identities, images.camids, out_path=sheet)
    training_curves(records, curves, true_identities=identities, title="ICE on SyntheticReID")
    print()
    print(tabulate(table, headers=["", *SCORES, "clusters"], floatfmt=".1f", tablefmt="pipe"))
    print(f"\nClusters of the last epoch: {sheet}\nCurves: {curves}")


if __name__ == "__main__":
    main()
