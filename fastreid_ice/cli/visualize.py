"""Draw what a run has found: its report as one html file, or a picture of its own."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import numpy as np

from fastreid_ice.engine.reporting import collect
from fastreid_ice.errors import told_in_one_line
from fastreid_ice.files import check_output
from fastreid_ice.report.cluster_charts import cluster_sizes
from fastreid_ice.report.contact_sheet import PHOTOS, contact_sheet
from fastreid_ice.report.curves import training_curves
from fastreid_ice.report.embedding_map import PROJECTIONS, embedding_map
from fastreid_ice.report.page import write_page
from fastreid_ice.report.page_data import ReportData
from fastreid_ice.report.ranking_sheet import ranking_sheet
from fastreid_ice.report.run_files import PAGE_FILE

CHARTS = (".jpg", ".jpeg", ".pdf", ".png", ".svg", ".webp")

# What can be made: the name of the file, its possible endings, and the options that concern it.
KINDS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "report": (
        PAGE_FILE,
        (".html", ".htm"),
        (
            *("no_pictures", "most_mixed_first", "max_clusters", "per_cluster"),
            *("projection", "max_points", "queries", "top_k", "config_file", "device"),
        ),
    ),
    "clusters": ("clusters.png", PHOTOS, ("most_mixed_first", "max_clusters", "per_cluster")),
    "curves": ("curves.png", CHARTS, ("no_pictures",)),
    "ranking": ("ranking.png", PHOTOS, ("queries", "top_k", "config_file", "device")),
    "map": ("map.png", CHARTS, ("no_pictures", "projection", "max_points", "config_file", "device")),
    "sizes": ("sizes.png", CHARTS, ("no_pictures",)),
}
COUNTS = ("max_clusters", "per_cluster", "max_points", "queries", "top_k")


def parser() -> argparse.ArgumentParser:
    built = argparse.ArgumentParser(description=__doc__)
    built.add_argument("run", metavar="RUN", help="folder of a run, or a checkpoint in it")
    built.add_argument("kind", choices=KINDS, help="what to make")
    built.add_argument("--output", metavar="FILE", help="default: report.html, clusters.png ... in the run's folder")
    built.add_argument("--no-pictures", action="store_true", help="report: without pictures of people")
    built.add_argument("--most-mixed-first", action="store_true", help="report, clusters: needs true identities")
    built.add_argument("--max-clusters", type=int, help="report (40), clusters (12): how many to show")
    built.add_argument("--per-cluster", type=int, help="report, clusters: images of each (8)")
    built.add_argument("--projection", choices=PROJECTIONS, help="report, map: default tsne")
    built.add_argument("--max-points", type=int, help="report, map: training images on it (1000)")
    built.add_argument("--queries", type=int, help="report, ranking: queries of each test set (8)")
    built.add_argument("--top-k", type=int, help="report, ranking: images found for each (10)")
    built.add_argument("--config-file", metavar="FILE", help="of the model (config.yaml beside the checkpoint)")
    built.add_argument("--device", help="cpu, cuda ... (that of the config)")
    built.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return built


def main(argv: Sequence[str] | None = None) -> None:
    """Parse a command line (default: the program's) and draw."""
    args = parser().parse_args(argv)
    with told_in_one_line(args.debug), _log_on_screen():
        run(args)


def run(args: argparse.Namespace) -> Path:
    """Draw what the command line asks for.

    Returns:
        The file.

    Raises:
        FileNotFoundError, ValueError, OSError: a user's mistake, each with one message.
    """
    name, endings, options = KINDS[args.kind]
    _check_options(args, options)
    run_path = Path(args.run).expanduser()
    folder = run_path.parent if run_path.is_file() else run_path
    output = Path(args.output).expanduser() if args.output else folder / name
    if args.output or folder.is_dir():  # a missing run has a message of its own
        check_output(output, endings)
    data = collect(
        run_path,
        embeddings=args.kind in ("report", "map"),
        rankings=args.kind in ("report", "ranking"),
        **_given(args, "max_points", "queries", "top_k", "config_file", "device"),
    )
    return DRAWN[args.kind](data, output, args)


def _check_options(args: argparse.Namespace, options: Sequence[str]) -> None:
    """Refuse options that this picture does not have, and counts below 1."""
    every = {option for _, _, others in KINDS.values() for option in others}
    for option in sorted(every - set(options)):
        if getattr(args, option) not in (None, False):
            flag = "--" + option.replace("_", "-")
            if option == "no_pictures":
                raise ValueError(
                    f"{flag}: {args.kind} shows nothing but pictures of people; leave it out or make another"
                )
            having = [kind for kind, (_, _, others) in KINDS.items() if option in others]
            raise ValueError(f"{flag} does not concern {args.kind}; it is for {', '.join(having)}")
    for option in COUNTS:
        value = getattr(args, option)
        if value is not None and value < 1:
            raise ValueError(f"--{option.replace('_', '-')} is {value}; it must be at least 1")


def _given(args: argparse.Namespace, *names: str) -> dict:
    """The options that were given; the functions that they are for have the defaults."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _draw_report(data: ReportData, output: Path, args: argparse.Namespace) -> Path:
    options = _given(args, "max_clusters", "per_cluster", "projection")
    return write_page(data, output, not args.no_pictures, order=_order(args), **options)


def _draw_clusters(data: ReportData, output: Path, args: argparse.Namespace) -> Path:
    _need_clusters(data)
    options = _given(args, "max_clusters", "per_cluster")
    return contact_sheet(
        data.paths,
        data.labels.tolist(),
        None if data.identities is None else data.identities.tolist(),
        None if data.cameras is None else data.cameras.tolist(),
        out_path=output,
        order=_order(args),
        **options,
    )


def _draw_curves(data: ReportData, output: Path, args: argparse.Namespace) -> Path:
    if not data.records:
        raise ValueError("The run has no curves: results.json is missing or holds no epoch")
    known = None if data.identities is None else len(np.unique(data.identities))
    return training_curves(data.records, output, true_identities=known, title=data.title)


def _draw_ranking(data: ReportData, output: Path, args: argparse.Namespace) -> Path:
    if not data.rankings:
        raise ValueError(data.notes.get("ranking", "The run has no test set: DATASETS.TESTS of its config is empty"))
    examples = data.rankings
    return ranking_sheet(
        [example.query for example in examples],
        [example.found for example in examples],
        [example.similarities for example in examples],
        marks=[example.marks for example in examples],
        out_path=output,
    )


def _draw_map(data: ReportData, output: Path, args: argparse.Namespace) -> Path:
    _need_clusters(data)
    if data.features is None:
        raise ValueError(data.notes["map"])
    images = data.rows_of_features()
    return embedding_map(
        data.features,
        output,
        labels=data.labels[images],
        cameras=None if data.cameras is None else data.cameras[images],
        identities=None if data.identities is None else data.identities[images],
        **_given(args, "projection"),
    )


def _draw_sizes(data: ReportData, output: Path, args: argparse.Namespace) -> Path:
    _need_clusters(data)
    return cluster_sizes(data.labels, output, cameras=data.cameras, identities=data.identities)


DRAWN = {
    "report": _draw_report,
    "clusters": _draw_clusters,
    "curves": _draw_curves,
    "ranking": _draw_ranking,
    "map": _draw_map,
    "sizes": _draw_sizes,
}


def _order(args: argparse.Namespace) -> str:
    return "mixed" if args.most_mixed_first else "largest"


def _need_clusters(data: ReportData) -> None:
    if len(data.paths) == 0:
        raise ValueError("The run has no clusters: clusters.csv is missing or holds no image")


@contextmanager
def _log_on_screen() -> Iterator[None]:
    """What the package logs, on the screen, until the block ends."""
    log, handler = logging.getLogger("fastreid_ice"), logging.StreamHandler(sys.stdout)
    before = log.level
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
