"""The dataset of somebody's own images, registered with fastreid: a folder, and what is known about its files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import numpy as np
from fastreid.config import CfgNode
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset

from fastreid_ice.data.folder_scan import FolderScan, number_names, scan_folder

logger = logging.getLogger(__name__)

NAME = "UnlabeledFolder"


@DATASET_REGISTRY.register()
class UnlabeledFolder(ImageDataset):
    """Images of any folder, as the keys of ``DATASETS.FOLDER`` describe it.

    Of the training images only the paths need be known; identities, cameras and tracks that are not are None. Queries
    and gallery have integer identities and cameras.

    Attributes:
        tracks: path -> (track, frame or None) of the training images, empty without tracks.
    """

    dataset_name = "unlabeled_folder"

    def __init__(
        self,
        train: FolderScan | None = None,
        query: FolderScan | None = None,
        gallery: FolderScan | None = None,
        root: str = "",
        **options: Any,
    ):
        """
        Args:
            train: images to train on.
            query: images to search for; needs ``gallery``.
            gallery: images to search in.
            root: fastreid's folder of datasets; not used.
            options: those of fastreid's datasets.

        Raises:
            ValueError: no images at all, as where fastreid makes a dataset by its name alone.
        """
        if train is None and query is None:
            raise ValueError(f"{NAME} needs DATASETS.FOLDER.PATH, which only the programs of fastreid_ice read.")
        self.tracks = {} if train is None else _tracks(train)
        both = [] if query is None or gallery is None else _test_items(query, gallery)
        split = 0 if query is None else len(query)
        super().__init__([] if train is None else _training_items(train), both[:split], both[split:], **options)

    def parse_data(self, data: list) -> tuple[int, int]:
        """The numbers of identities and cameras in fastreid's tables; what is not known does not count."""
        identities, cameras = (len({item[place] for item in data} - {None}) for place in (1, 2))
        return identities, cameras

    @classmethod
    def from_config(cls, cfg: CfgNode, key: str, combineall: bool = False, **options: Any) -> UnlabeledFolder:
        """The training images for "DATASETS.NAMES" and "DATASETS.SOURCE", queries and gallery for "DATASETS.TESTS".

        Raises:
            ValueError, FileNotFoundError, NotADirectoryError: a key that is missing or does not fit the files.
        """
        node = cfg.DATASETS.FOLDER
        if key in ("DATASETS.NAMES", "DATASETS.SOURCE"):
            if combineall:
                raise ValueError(f"DATASETS.COMBINEALL: {NAME} trains on all of DATASETS.FOLDER.PATH; set it to False.")
            return cls(train=scan_training_images(node), **options)
        if cfg.TEST.CAMERA_NORMALIZATION and node.TEST_CAMERA_FROM == "none":
            raise ValueError(
                "TEST.CAMERA_NORMALIZATION needs the cameras of the test images, but DATASETS.FOLDER.TEST_CAMERA_FROM "
                "is 'none'; set one of them otherwise."
            )
        query, gallery = (_scan_labelled(node, part) for part in ("QUERY", "GALLERY"))
        return cls(query=query, gallery=gallery, **options)


def scan_training_images(node: CfgNode) -> FolderScan:
    """The images of ``DATASETS.FOLDER.PATH``, those that cannot be read or have a low score left out.

    Args:
        node: DATASETS.FOLDER.

    Raises:
        ValueError, FileNotFoundError, NotADirectoryError: a key that is missing or does not fit the files.
    """
    sources = (node.CAMERA_FROM, node.IDENTITY_FROM, node.TRACK_FROM)
    scan = _scan(node, "PATH", node.PATTERN, node.CSV, *sources, with_scores=node.MIN_SCORE > 0)
    if node.MIN_SCORE <= 0:
        return scan
    if scan.scores is None:
        raise ValueError(
            f"DATASETS.FOLDER.MIN_SCORE is {node.MIN_SCORE}, but the images have no scores: no group score in "
            "DATASETS.FOLDER.PATTERN and no column score in DATASETS.FOLDER.CSV."
        )
    kept = np.flatnonzero(scan.scores >= node.MIN_SCORE)
    logger.info("Left out %d of %d images of a score below %s", len(scan) - len(kept), len(scan), node.MIN_SCORE)
    if not len(kept):
        raise ValueError(
            f"DATASETS.FOLDER.MIN_SCORE is {node.MIN_SCORE}, but no image scores more than {scan.scores.max():g}."
        )
    return take(scan, kept)


def take(scan: FolderScan, images: Sequence[int] | np.ndarray) -> FolderScan:
    """A scan of some of the images."""
    chosen: dict[str, Any] = {}
    for each in fields(scan):
        value = getattr(scan, each.name)
        if each.name in ("folder", "skipped") or value is None:
            continue
        chosen[each.name] = value[images] if isinstance(value, np.ndarray) else tuple(value[i] for i in images)
    return replace(scan, **chosen)


def _scan_labelled(node: CfgNode, part: str) -> FolderScan:
    """Queries or gallery."""
    if not node[part]:
        raise ValueError(
            f"DATASETS.TESTS names {NAME}, but DATASETS.FOLDER.{part} is empty: name folders of labelled images with "
            "DATASETS.FOLDER.QUERY and .GALLERY, or set DATASETS.TESTS ()."
        )
    if node.TEST_IDENTITY_FROM == "none":
        raise ValueError(
            "DATASETS.FOLDER.TEST_IDENTITY_FROM is 'none', but nothing can be scored without identities: choose "
            "folder, pattern or csv, or set DATASETS.TESTS ()."
        )
    for key in ("TEST_IDENTITY_FROM", "TEST_CAMERA_FROM"):
        if node[key] == "pattern" and not node.TEST_PATTERN:
            raise ValueError(
                f"DATASETS.FOLDER.{key} is 'pattern', but DATASETS.FOLDER.TEST_PATTERN is empty: give one (PATTERN is "
                f"that of the training images), or choose another {key}."
            )
    sources = (node.TEST_CAMERA_FROM, node.TEST_IDENTITY_FROM, "none")
    return _scan(node, part, node.TEST_PATTERN, node[f"{part}_CSV"], *sources)


def _scan(
    node: CfgNode,
    part: str,
    pattern: str,
    csv: str,
    camera_from: str,
    identity_from: str,
    track_from: str,
    with_scores: bool = False,
) -> FolderScan:
    path = node[part]
    if not path:
        raise ValueError(f"DATASETS.FOLDER.{part} is empty; it names the folder of your images (configs/ICE/own.yml).")
    try:
        return scan_folder(
            Path(path).expanduser(),
            camera_from=camera_from,
            identity_from=identity_from,
            track_from=track_from,
            pattern=pattern or None,
            csv=Path(csv).expanduser() if csv else None,
            with_scores=with_scores,
            skip_unreadable=node.SKIP_UNREADABLE,
        )
    except (ValueError, OSError) as error:
        raise type(error)(f"DATASETS.FOLDER ({part}): {error}") from error


def _training_items(scan: FolderScan) -> list[tuple[str, str | None, str | None]]:
    unknown = (None,) * len(scan)
    return list(zip(scan.paths, scan.identity_names or unknown, scan.camera_names or unknown))


def _tracks(scan: FolderScan) -> dict[str, tuple[Any, int | None]]:
    if scan.tracks is None:
        return {}
    frames = (None,) * len(scan) if scan.frames is None else scan.frames.tolist()
    return {path: (track, frame) for path, track, frame in zip(scan.paths, scan.tracks.tolist(), frames) if track >= 0}


def _test_items(query: FolderScan, gallery: FolderScan) -> list[tuple[str, int, int]]:
    """Queries, then gallery; an identity and a camera have the same number in both.

    Without cameras queries and gallery count as two, so that no gallery image is left out.
    """
    assert query.identity_names is not None and gallery.identity_names is not None
    identities = number_names(query.identity_names + gallery.identity_names)
    if not set(query.identity_names) & set(gallery.identity_names):
        raise ValueError(
            f"DATASETS.FOLDER: no identity of {query.folder} (such as {query.identity_names[0]}) is in "
            f"{gallery.folder} (such as {gallery.identity_names[0]}): nothing can be found."
        )
    if query.camera_names is not None and gallery.camera_names is not None:
        cameras = number_names(query.camera_names + gallery.camera_names)
    else:
        cameras = np.repeat([0, 1], [len(query), len(gallery)])
    return list(zip(query.paths + gallery.paths, identities.tolist(), cameras.tolist()))
