"""Try values of eps and min_samples on the features of a run, before or after training."""

from __future__ import annotations

import logging
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from torch import Tensor

from fastreid_ice.clustering import Clusterer, ClusteringConfig, Tracks
from fastreid_ice.clustering.clusterer import without_cameras
from fastreid_ice.clustering.eps_sweep import SweepRow, check_method, check_values, suggest, sweep
from fastreid_ice.clustering.tracks import NONE
from fastreid_ice.clustering.within_class import within_class_normalized
from fastreid_ice.engine.clustering_config import clustering_config
from fastreid_ice.engine.run_features import FEATURES_FILE, extract_run, read_features, save_features
from fastreid_ice.errors import told_in_one_line
from fastreid_ice.files import check_folder_for_output, write_text
from fastreid_ice.report.eps_sweep import markdown_table, plot, write_sweep

EPS, MIN_SAMPLES = "0.3:0.7:0.05", "2,4,8"
STEM = "eps_sweep"
DEFAULT_METHOD = ClusteringConfig.method
ENDING = 1e-9  # the last value of a range counts though the steps do not add up to it exactly


def parser() -> ArgumentParser:
    """The command line."""
    built = ArgumentParser(description=__doc__)
    built.add_argument("run", nargs="?", help="folder of a run, or a checkpoint; not with --features")
    built.add_argument("--features", type=Path, help="npy (images x dimensions) or npz file of an earlier call instead")
    built.add_argument("--eps", default=EPS, help=f"values: a,b,c or first:last:step (default: {EPS})")
    built.add_argument("--min-samples", default=MIN_SAMPLES, help=f"likewise (default: {MIN_SAMPLES})")
    built.add_argument("--k1", type=int, help="CLUSTERING.K1 (default: the run's; 30 of an npy file)")
    built.add_argument("--k2", type=int, help="CLUSTERING.K2 (default: the run's; 6 of an npy file)")
    built.add_argument(
        "--parts", type=int, default=3, help="random parts of the images for their stability (default: 3)"
    )
    built.add_argument("--fraction", type=float, default=0.8, help="of the images in a part (default: 0.8)")
    built.add_argument("--seed", type=int, default=0, help="of the parts (default: 0)")
    built.add_argument("--output", type=Path, help=f"folder to write to (default: RUN/{STEM})")
    built.add_argument("--debug", action="store_true", help="show the traceback of an error")
    built.add_argument("--opts", nargs="+", default=[], help="KEY VALUE ... on top of the run's config")
    return built


def run(args: Namespace) -> list[SweepRow]:
    """Extract or read the features, try the values, print the table and write table, csv and picture."""
    eps, min_samples = _numbers(args.eps, "--eps"), _numbers(args.min_samples, "--min-samples")
    whole = [int(value) for value in min_samples if value.is_integer()]
    if whole != min_samples:
        raise ValueError(f"--min-samples is {args.min_samples}; it counts images, in whole numbers")
    check_values(eps, whole, args.parts, args.fraction)
    output = _output(args)
    features, identities, tracks, config = _load(args, output)
    rows = sweep(
        features,
        eps,
        whole,
        config,
        identities=identities,
        tracks=tracks,
        subsamples=args.parts,
        fraction=args.fraction,
        seed=args.seed,
    )
    records = [asdict(row) for row in rows]
    text = markdown_table(records) + "\n" + _advice(suggest(rows)) + "\n"
    write_sweep(records, output / f"{STEM}.csv")
    plot(records, output / f"{STEM}.png", f"{len(features):,} images, k1 {config.k1}, k2 {config.k2}")
    write_text(output / f"{STEM}.md", text)
    sys.stdout.write(f"{text}\nWrote {STEM}.md, {STEM}.csv and {STEM}.png into {output}\n")
    return rows


def _load(args: Namespace, output: Path) -> tuple[Tensor, Tensor | None, Tracks | None, ClusteringConfig]:
    given = {key: value for key, value in (("k1", args.k1), ("k2", args.k2)) if value is not None}
    if args.features is not None:
        stored = read_features(args.features)
        if stored.clustered_by:
            raise ValueError(
                f"{args.features} holds features as they were extracted, but its run clusters them otherwise "
                f"({', '.join(stored.clustered_by)}), and so its eps is of other distances: give the run instead."
            )
        return stored.features, stored.identities, stored.tracks, ClusteringConfig(**{**stored.clustering, **given})
    overrides = [text for key, value in given.items() for text in (f"CLUSTERING.{key.upper()}", str(value))]
    found = extract_run(args.run, [*args.opts, *overrides], check_config=_check_config)
    config = clustering_config(found.cfg, seed=args.seed)
    if config.method != DEFAULT_METHOD:
        sys.stdout.write(f"CLUSTERING.METHOD is {config.method}; the eps tried here is of {DEFAULT_METHOD}.\n\n")
    if config.camera_normalization:
        cameras = found.images.camids if found.cfg.DATASETS.USE_CAMERAS else None
        found = replace(found, features=without_cameras(found.features, cameras))
    if config.wccn_rounds:
        found = replace(found, features=_whitened(found.features, config))
    save_features(output / FEATURES_FILE, found.features, found.images, config)
    sys.stdout.write(f"Features of {found.checkpoint} kept in {output / FEATURES_FILE} (for --features)\n\n")
    return found.features, found.images.identities, found.images.tracks, config


def _check_config(config: ClusteringConfig) -> None:
    """Refuse what cannot be swept before the features are extracted."""
    check_method(config)
    if config.wccn_rounds and config.tracks != NONE:
        raise ValueError(
            f"CLUSTERING.WCCN_ROUNDS is {config.wccn_rounds} and CLUSTERING.TRACKS {config.tracks!r}, of which the "
            "sweep can follow one: set CLUSTERING.WCCN_ROUNDS 0 or CLUSTERING.TRACKS none behind --opts."
        )


def _whitened(features: Tensor, config: ClusteringConfig) -> Tensor:
    """The features that the run clusters last, whitened by the clusters of its own eps and min_samples."""
    before = replace(config, method=DEFAULT_METHOD, camera_normalization=False, wccn_rounds=config.wccn_rounds - 1)
    return within_class_normalized(features, Clusterer(before)(features).labels, config.wccn_shrinkage)


def _output(args: Namespace) -> Path:
    if (args.run is None) == (args.features is None):
        raise ValueError("Name either a run (folder or checkpoint) or --features, not both")
    if args.features is not None and args.opts:
        raise ValueError(f"{args.opts[0]}: config keys need a run; with --features there are --k1 and --k2")
    if args.output is not None:
        output: Path = args.output
    elif args.run is not None:
        output = (Path(args.run) if Path(args.run).is_dir() else Path(args.run).parent) / STEM
    else:
        output = args.features.parent / STEM
    check_folder_for_output(output, "--output")
    return output


def _numbers(text: str, option: str) -> list[float]:
    """ "a,b,c" or "first:last:step" as numbers."""
    try:
        parts = [float(part) for part in text.replace(":", ",").split(",")]
    except ValueError:
        raise ValueError(f"{option} is {text!r}; it must be numbers a,b,c or first:last:step") from None
    if ":" not in text:
        return parts
    if text.count(":") != 2 or "," in text or parts[2] <= 0 or parts[1] < parts[0]:
        raise ValueError(f"{option} is {text!r}; a range is first:last:step, such as {EPS}")
    first, last, step = parts
    return [round(first + i * step, 10) for i in range(int((last - first) / step + ENDING) + 1)]


def _advice(best: SweepRow | None) -> str:
    if best is None:
        return (
            "No pair of values gives useful clusters: everywhere there are fewer than two, most images are outliers "
            "or in one cluster, or clusters lie within each other (silhouette of 0 or less). Try other values, another "
            "k1, or a model that knows such images better."
        )
    return (
        f"Most stable: CLUSTERING.EPS {best.eps:g} CLUSTERING.MIN_SAMPLES {best.min_samples}, with {best.clusters} "
        "clusters (to train with this eps throughout: CLUSTERING.EPS_END 0). Compare the number of clusters with what "
        "you know of your images before you trust it."
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Parse a command line (default: the program's) and run it."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with told_in_one_line(args.debug):
        run(args)
