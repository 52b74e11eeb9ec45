"""Write down the identities that a trained model discovers in its training images."""

from __future__ import annotations

import logging
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import numpy as np
from fastreid.config import CfgNode
from torch import Tensor

from fastreid_ice.clustering.centroids import centroid_distances
from fastreid_ice.data.datasets import TrainingImages
from fastreid_ice.data.folder import NAME as FOLDER
from fastreid_ice.data.folder_scan import number_names
from fastreid_ice.data.labelled_folder import (
    MarketFolder,
    check_market_cameras,
    check_new_folder,
    check_test_share,
    write_identity_folders,
    write_market_folder,
)
from fastreid_ice.engine.clustering_config import clustering_config
from fastreid_ice.engine.run_features import FEATURES_FILE, RunFeatures, extract_run, run_labels, save_features
from fastreid_ice.errors import told_in_one_line
from fastreid_ice.files import check_folder_for_output, check_outside, write_csv

TABLE, LINKS = "labels.csv", "identities"
COLUMNS = ("path", "identity", "camera", "distance", "margin", "next")


def parser() -> ArgumentParser:
    """The command line."""
    built = ArgumentParser(description=__doc__)
    built.add_argument("run", help="folder of a run, or a checkpoint")
    built.add_argument("--output", type=Path, required=True, help=f"folder for {TABLE} and {FEATURES_FILE}")
    built.add_argument("--clusters", type=Path, help="take the identities from a clusters.csv of a run")
    built.add_argument("--links", action="store_true", help=f"a folder of links for each identity, in OUTPUT/{LINKS}")
    built.add_argument("--copy", action="store_true", help="with --links: copies instead of symbolic links")
    built.add_argument("--market", type=Path, help="folder to write, laid out as Market-1501, for stock fastreid")
    built.add_argument(
        "--test-share",
        type=float,
        help="with --market: share of the identities, seen by several cameras, that become queries and gallery "
        "(default: a quarter, if there are such; 0: all images are to train on)",
    )
    built.add_argument("--seed", type=int, default=0, help="with --market: of the draw of these (default: 0)")
    built.add_argument("--debug", action="store_true", help="show the traceback of an error")
    built.add_argument("--opts", nargs="+", default=[], help="KEY VALUE ... on top of the run's config")
    return built


def run(args: Namespace) -> Tensor:
    """Extract, cluster and write. Returns the (N,) labels."""
    _check(args)
    found = extract_run(args.run, args.opts, check=partial(_check_images, args))
    images = found.images
    labels = run_labels(found, args.clusters)
    numbers = labels.numpy()
    said = [f"{int(labels.max()) + 1} identities, {int((labels < 0).sum())} outliers of {len(labels)} images"]
    if args.market is not None:  # first, since it can be refused
        cameras = _cameras(images)
        written = write_market_folder(
            args.market, images.paths, numbers, cameras, test_share=args.test_share, seed=args.seed
        )
        said.append(_about(written))
    if args.links:
        folder = write_identity_folders(args.output / LINKS, images.paths, numbers, copy=args.copy)
        said.append(f"{folder}: a folder for each identity. It {'holds' if args.copy else 'links to'} their pictures.")
    write_labels(args.output / TABLE, found, labels)
    config = clustering_config(found.cfg, seed=0)
    save_features(args.output / FEATURES_FILE, found.features, images, config, as_extracted=True)
    said.append(f"{args.output / TABLE}: {', '.join(COLUMNS)}")
    sys.stdout.write("\n".join(said) + "\n")
    return labels


def write_labels(path: Path, found: RunFeatures, labels: Tensor) -> None:
    """A row per image, cosine distances; empty where there is nothing to say.

    Columns: path, identity (-1 = outlier), camera (its name; empty where it is not known), distance to the centroid of
    the identity, margin (distance to the next centroid minus that), next (the identity of that centroid).
    """
    distances = centroid_distances(found.features, labels)
    images = found.images
    cameras = images.camera_names or ("",) * len(images)
    numbers = (distances.own.tolist(), distances.margin.tolist())
    found_rows = zip(images.paths, labels.tolist(), cameras, *numbers, distances.next.tolist())
    told = ([*row[:3], *("" if value != value else f"{value:.6f}" for value in row[3:5]), row[5]] for row in found_rows)
    write_csv(path, COLUMNS, told)


def _check(args: Namespace) -> None:
    """What can be refused before the features are extracted."""
    if args.copy and not args.links:
        raise ValueError("--copy goes with --links")
    if args.test_share is not None and args.market is None:
        raise ValueError("--test-share goes with --market")
    check_test_share(args.test_share)
    check_folder_for_output(args.output, "--output")
    if (args.output / TABLE).exists():
        raise FileExistsError(f"{args.output / TABLE} is there already; name another --output, or remove it")
    if args.links:
        check_new_folder(args.output / LINKS)
    if args.market is not None:
        check_new_folder(args.market)
        check_folder_for_output(args.market, "--market")


def _check_images(args: Namespace, cfg: CfgNode, images: TrainingImages) -> None:
    """Likewise, once it is known which images they are."""
    folders = {os.path.dirname(path) for path in images.paths}
    if FOLDER in cfg.DATASETS.NAMES:  # cameras may be folders in it
        folders.add(os.path.expanduser(cfg.DATASETS.FOLDER.PATH))
    if args.links:
        check_outside(args.output, sorted(folders), "--output")
    if args.market is not None:
        check_market_cameras(_cameras(images))
        check_outside(args.market, sorted(folders), "--market")


def _cameras(images: TrainingImages) -> np.ndarray:
    """(N,) int64, also where the training did not use them; all 0 where they are not known."""
    return np.zeros(len(images), dtype=np.int64) if images.camera_names is None else number_names(images.camera_names)


def _about(written: MarketFolder) -> str:
    name = written.folder.name
    where = "" if name == "Market-1501-v15.09.15" else " (fastreid looks for a folder Market-1501-v15.09.15)"
    test = f"{written.query} queries and {written.gallery} gallery images of {written.test_identities} identities"
    if not written.query:
        test = "no queries (no identity was drawn for them: fastreid can train on it, but not evaluate)"
    return (
        f"{written.folder}: {written.train} images to train on, {test}{where}. It holds the pictures: keep and share "
        "it as you may."
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Parse a command line (default: the program's) and run it."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with told_in_one_line(args.debug):
        run(args)
