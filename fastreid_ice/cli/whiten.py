"""Whiten a trained model's embedding by the covariance within the clusters of its training images."""

from __future__ import annotations

import logging
import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from fastreid_ice.data.labelled_folder import check_new_folder
from fastreid_ice.engine.run_features import extract_run, run_labels
from fastreid_ice.engine.whitening import save_whitened, whiten_model
from fastreid_ice.errors import told_in_one_line
from fastreid_ice.files import check_folder_for_output
from fastreid_ice.report.run_files import CONFIG_FILE


def parser() -> ArgumentParser:
    """The command line."""
    built = ArgumentParser(description=__doc__)
    built.add_argument("run", help="folder of a run, or a checkpoint")
    built.add_argument("--output", type=Path, required=True, help="folder for the new checkpoint and its config")
    built.add_argument("--clusters", type=Path, help="take the clusters from a clusters.csv of a run")
    built.add_argument("--debug", action="store_true", help="show the traceback of an error")
    built.add_argument("--opts", nargs="+", default=[], help="KEY VALUE ... on top of the run's config")
    return built


def run(args: Namespace) -> Path:
    """Extract, cluster, whiten and write. Returns the checkpoint."""
    check_folder_for_output(args.output, "--output")
    check_new_folder(args.output)
    found = extract_run(args.run, args.opts)
    labels = run_labels(found, args.clusters)
    checkpoint = save_whitened(
        whiten_model(found, labels, args.opts, given_clusters=args.clusters is not None), args.output
    )
    sys.stdout.write(
        f"{checkpoint}: {found.checkpoint}, whitened by {int(labels.max()) + 1} clusters of "
        f"{int((labels >= 0).sum())} images\n"
    )
    if found.cfg.DATASETS.TESTS:
        command = ["tools/train_net.py", "--config-file", args.output / CONFIG_FILE, "--eval-only", "MODEL.WEIGHTS"]
        sys.stdout.write(f"To evaluate it:\n  {shlex.join(map(str, [*command, checkpoint]))}\n")
    return checkpoint


def main(argv: Sequence[str] | None = None) -> None:
    """Parse a command line (default: the program's) and run it."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with told_in_one_line(args.debug):
        run(args)
