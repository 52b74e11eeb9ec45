#!/usr/bin/env python
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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tabulate import tabulate

import fastreid_ice
from fastreid_ice.report.ranking_sheet import ranking_sheet
from fastreid_ice.search import check_output, search_folder

PICTURES = (".jpg", ".jpeg", ".pdf", ".png", ".webp")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a run, or a checkpoint")
    parser.add_argument("--query", required=True, nargs="+", help="image files")
    parser.add_argument("--gallery", required=True, help="folder of images, at any depth")
    parser.add_argument("--index", help="folder for the index (default: GALLERY.search_index, beside the gallery)")
    parser.add_argument("--kind", choices=("auto", "exact", "ivf"), default="auto", help="of a new index")
    parser.add_argument("--top-k", type=int, default=10, help="images to find per query (default: 10)")
    parser.add_argument("--output", help="picture to write")
    parser.add_argument("--csv", help="table to write: query, rank, similarity, path")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out images that cannot be read")
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    if args.output:
        check_output(args.output, PICTURES)
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
    print(tabulate(result.rows(), headers=["query", "rank", "similarity", "path"], floatfmt=".4f", tablefmt="simple"))
    if args.output:
        ranking_sheet(result.queries, result.paths, result.similarities, out_path=args.output)
    if args.csv:
        result.write_csv(args.csv)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main(parse())
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
