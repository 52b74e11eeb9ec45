"""Find the images of a folder that are most similar to a query image.

tools/search.py --model logs/market --query somebody.jpg --gallery crops
tools/search.py --model model_best.pth --query a.jpg b.jpg --gallery crops --top-k 20 --output found.png --csv found.csv

The first call extracts the features of the whole folder and keeps them in an index beside it (--index); later calls
read only images that are new or have changed.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from tabulate import tabulate

import fastreid_ice
from fastreid_ice.errors import told_in_one_line
from fastreid_ice.files import check_output, check_outside
from fastreid_ice.report.contact_sheet import PHOTOS
from fastreid_ice.report.ranking_sheet import ranking_sheet
from fastreid_ice.search import search_folder
from fastreid_ice.search.results import COLUMNS


def parser() -> argparse.ArgumentParser:
    built = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    built.add_argument("--model", required=True, help="folder of a run, or a checkpoint")
    built.add_argument("--query", required=True, nargs="+", help="image files")
    built.add_argument("--gallery", required=True, help="folder of images, at any depth")
    built.add_argument("--index", help="folder for the index (default: GALLERY.search_index, beside the gallery)")
    built.add_argument("--kind", choices=("auto", "exact", "ivf"), default="auto", help="of a new index")
    built.add_argument("--top-k", type=int, default=10, help="images to find per query (default: 10)")
    built.add_argument("--output", help="picture to write")
    built.add_argument("--csv", help="table to write: query, rank, similarity, path")
    built.add_argument("--skip-unreadable", action="store_true", help="leave out images that cannot be read")
    built.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return built


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with told_in_one_line(args.debug):
        run(args)


def run(args: argparse.Namespace) -> None:
    if args.output:
        check_output(args.output, PHOTOS)
        check_outside(args.output, [args.gallery], "--output")
    if args.csv:
        check_output(args.csv)
    model = fastreid_ice.load(args.model)
    result = search_folder(
        model,
        args.query,
        args.gallery,
        args.index,
        k=args.top_k,
        kind=args.kind,
        skip_unreadable=args.skip_unreadable,
    )
    if args.csv:
        result.write_csv(args.csv)
    text = tabulate(result.rows(), headers=COLUMNS, floatfmt=".4f", tablefmt="simple") + "\n"
    sys.stdout.write(text.encode("utf-8", "replace").decode("utf-8"))  # a name of a file may be anything
    if args.output:  # last, since many queries can make it too large for its format
        ranking_sheet(result.queries, result.paths, result.similarities, out_path=args.output)
