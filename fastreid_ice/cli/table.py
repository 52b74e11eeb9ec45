"""Make a table from the results of runs: seeds aggregated, methods x test sets.

tools/benchmark_table.py logs/market1501 logs/msmt17
tools/benchmark_table.py logs/market1501 --published --format latex --output table.tex
tools/benchmark_table.py logs/grid --ablation
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from fastreid_ice.errors import told_in_one_line
from fastreid_ice.report.tables import FORMATS, benchmark_table
from fastreid_ice.report.tables.model import ALL_EPOCHS, EPOCHS


def parser() -> argparse.ArgumentParser:
    built = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    built.add_argument("runs", nargs="*", metavar="RUN", help="folder of a run, its run.json, or a folder of folders")
    built.add_argument("--format", default="markdown", choices=list(FORMATS))
    built.add_argument("--output", metavar="FILE", help="write there instead of on the screen")
    built.add_argument("--published", action="store_true", help="show published numbers too, apart; alone without RUN")
    built.add_argument("--ablation", action="store_true", help="what differs between the runs becomes the columns")
    built.add_argument("--epochs", nargs="+", default=list(EPOCHS), choices=ALL_EPOCHS, help="rows to show")
    built.add_argument("--unfinished", action="store_true", help="show runs that are not finished, marked")
    built.add_argument("--name", action="append", default=[], metavar="FOLDER=NAME", help="name of a folder's runs")
    built.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return built


def names_of(arguments: Sequence[str]) -> dict[str, str]:
    """FOLDER=NAME, split at the last sign that a folder's own name may hold too."""
    for argument in arguments:
        if not all(argument.rpartition("=")):
            raise ValueError(f"--name {argument}: needs FOLDER=NAME")
    return {folder: name for folder, _, name in (argument.rpartition("=") for argument in arguments)}


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    with told_in_one_line(args.debug):
        text = benchmark_table(
            args.runs,
            format=args.format,
            output=args.output,
            published=args.published,
            ablation=args.ablation,
            epochs=args.epochs,
            unfinished=args.unfinished,
            names=names_of(args.name),
        )
        sys.stdout.write(f"Wrote {args.output}\n" if args.output else text)
