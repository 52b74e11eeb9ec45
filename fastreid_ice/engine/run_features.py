"""The features of a run's training images, extracted once and kept for what is done with them afterwards."""

from __future__ import annotations

import csv
import json
import logging
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import numpy as np
import torch
from fastreid.config import CfgNode
from torch import Tensor

from fastreid_ice.clustering import Clusterer, ClusteringConfig, Tracks
from fastreid_ice.clustering.clusterer import checked_labels
from fastreid_ice.data.datasets import TrainingImages, load_training_images
from fastreid_ice.data.inference_loaders import build_feature_loader
from fastreid_ice.engine.checkpoints import load_trained_model
from fastreid_ice.engine.clustering_config import clustering_config
from fastreid_ice.engine.extraction import FeatureExtractor
from fastreid_ice.files import replacing
from fastreid_ice.report.run_files import read_clusters

logger = logging.getLogger(__name__)

FEATURES_FILE = "features.npz"
_SETTINGS = ("k1", "k2", "tracks")  # of the clustering, beside eps and min_samples


@dataclass(frozen=True)
class RunFeatures:
    """A run's training images as its model sees them.

    Attributes:
        features: (N, D) float32, L2-normalised, on the CPU.
        images: of which they are.
        cfg: of the run.
        checkpoint: whose weights made them.
    """

    features: Tensor
    images: TrainingImages
    cfg: CfgNode
    checkpoint: Path


def extract_run(
    run: str | Path,
    opts: Sequence[Any] = (),
    check: Callable[[CfgNode, TrainingImages], None] | None = None,
    check_config: Callable[[ClusteringConfig], None] | None = None,
) -> RunFeatures:
    """The features of the training images of a run by its best model (:func:`load_trained_model`).

    Args:
        run: folder of a run, or a checkpoint with ``config.yaml`` beside it.
        opts: KEY, VALUE, ... on top of the run's config. A CLUSTERING.EPS among them is the one that counts, whatever
            CLUSTERING.EPS_END the run had.
        check: is shown config and images before the features are extracted, to refuse them.
        check_config: likewise the clustering's settings.

    Raises:
        FileNotFoundError: no run, or its images are gone.
        ValueError: a checkpoint or key that does not fit.
    """
    trained = load_trained_model(run, opts=with_own_eps(opts))
    config = clustering_config(trained.cfg, seed=0)
    if check_config is not None:
        check_config(config)
    images = load_training_images(trained.cfg)
    if check is not None:
        check(trained.cfg, images)
    logger.info("Extracting the features of %d images with %s", len(images), trained.checkpoint)
    features = FeatureExtractor(len(images))(trained.model, build_feature_loader(trained.cfg, images))
    return RunFeatures(features.cpu(), images, trained.cfg, trained.checkpoint)


def with_own_eps(opts: Sequence[Any]) -> list[Any]:
    """KEY, VALUE, ..., with CLUSTERING.EPS_END off where they name a CLUSTERING.EPS: a run's would be in force."""
    named = [str(key) for key in opts[::2]]
    own = "CLUSTERING.EPS" in named and "CLUSTERING.EPS_END" not in named
    return [*opts, *["CLUSTERING.EPS_END", 0.0] * own]


def run_labels(found: RunFeatures, clusters: Path | None = None) -> Tensor:
    """(N,) int64 labels of a run's images, -1 = outlier, as its config clusters them at the end of its training.

    Args:
        found: the images and their features.
        clusters: a ``clusters.csv`` to take them from instead (``--clusters``).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none, or lacks one of the images; or all images are outliers.
    """
    cfg, images = found.cfg, found.images
    if clusters is not None:
        labels = _read_clusters(clusters, images.paths)
    else:
        clusterer = Clusterer(clustering_config(cfg, seed=max(0, cfg.SEED)))
        cameras = images.camids if cfg.DATASETS.USE_CAMERAS else None
        labels = clusterer(found.features, cameras, images.paths, images.identities, images.tracks).labels
    if not bool((labels >= 0).any()):
        raise ValueError(
            f"All {len(labels)} images are outliers. Raise CLUSTERING.EPS or lower CLUSTERING.MIN_SAMPLES behind "
            "--opts; tools/sweep_eps.py shows what they do."
        )
    return labels


def _read_clusters(path: Path, paths: Sequence[str]) -> Tensor:
    """(N,) int64 labels of the images, from a run's clusters.csv.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none, or lacks one of the images.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--clusters: there is no file {path}")
    try:
        found = read_clusters(path)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"--clusters: {path} is no clusters.csv: {error}") from error
    labels = dict(zip(found["paths"], found["labels"].tolist()))
    missing = [image for image in paths if image not in labels]
    if missing:
        raise ValueError(
            f"--clusters: {path} has no row for {len(missing)} of {len(paths)} images, such as {missing[0]}. Was it "
            "written by a run on other images?"
        )
    return checked_labels(torch.tensor([max(-1, labels[image]) for image in paths]), len(paths), "--clusters")


class StoredFeatures(NamedTuple):
    """What a file of features holds.

    Attributes:
        features: (N, D) float.
        identities: (N,) int64, or None.
        tracks: of the images, or None.
        clustering: k1, k2 and tracks of the run that they are of; empty if unknown.
        clustered_by: keys with which the run makes other features of these before it clusters them.
    """

    features: Tensor
    identities: Tensor | None = None
    tracks: Tracks | None = None
    clustering: dict[str, Any] = {}
    clustered_by: tuple[str, ...] = ()


def save_features(
    path: str | Path, features: Tensor, images: TrainingImages, config: ClusteringConfig, as_extracted: bool = False
) -> None:
    """Write features, paths and the run's k1, k2 and tracks as an npz file; identities and tracks where known.

    Args:
        path: file to write.
        features: (N, D) float32, those that the run clusters last or, with ``as_extracted``, the encoder's.
        images: of which they are.
        config: the run's.
        as_extracted: see ``features``.
    """
    settings = json.dumps({name: getattr(config, name) for name in _SETTINGS})
    arrays: dict[str, Any] = {
        "features": features.numpy(),
        "paths": np.array(images.paths),
        "clustering": np.array(settings),
    }
    if as_extracted:
        used = [name for name in ("camera_normalization", "wccn_rounds") if getattr(config, name)]
        arrays["clustered_by"] = np.array(json.dumps([f"CLUSTERING.{name.upper()}" for name in used]))
    if images.identities is not None:
        arrays["identities"] = images.identities.numpy()
    if images.tracks is not None:
        for name in ("ids", "cameras", "frames"):
            values = getattr(images.tracks, name)
            if values is not None:
                arrays[f"track_{name}"] = values.numpy()
    with replacing(path) as temporary:
        np.savez(temporary, **arrays)


def read_features(path: str | Path) -> StoredFeatures:
    """Features of :func:`save_features`, or of a plain npy file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of features {path}")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            arrays = {"features": loaded}
        else:
            with loaded:
                arrays = {name: loaded[name] for name in loaded.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no npy or npz file, or is damaged: {error}") from error
    if "features" not in arrays or arrays["features"].ndim != 2 or arrays["features"].dtype.kind != "f":
        held = ", ".join(f"{name} {value.dtype} {value.shape}" for name, value in arrays.items()) or "nothing"
        raise ValueError(f"{path} holds {held}; it must hold features: a matrix of floats, a row for each image")
    settings = json.loads(str(arrays.pop("clustering", "{}")))
    clustered_by = tuple(json.loads(str(arrays.pop("clustered_by", "[]"))))
    tensors = {name: torch.from_numpy(value) for name, value in arrays.items() if name != "paths"}
    short = [name for name, value in tensors.items() if len(value) != len(tensors["features"])]
    if short:
        raise ValueError(f"{path} holds {len(tensors['features'])} features, but {len(tensors[short[0]])} {short[0]}")
    tracks = None
    if "track_ids" in tensors:
        tracks = Tracks(tensors["track_ids"], tensors.get("track_cameras"), tensors.get("track_frames"))
    return StoredFeatures(tensors["features"], tensors.get("identities"), tracks, settings, clustered_by)
