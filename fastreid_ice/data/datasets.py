"""The training images of a config, and datasets of ours, registered with fastreid."""

from __future__ import annotations

import hashlib
import logging
import operator
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
from fastreid.config import CfgNode
from fastreid.data import build as fastreid_build
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset
from fastreid.data.datasets.msmt17 import MSMT17
from fastreid.utils import comm
from torch import Tensor

import fastreid_ice.data.folder  # noqa: F401  (registers UnlabeledFolder)
import fastreid_ice.data.market_parts  # noqa: F401  (registers Market1501Validation and Market1501Half)
from fastreid_ice.clustering import Tracks, check_tracks
from fastreid_ice.data.numbering import number_names
from fastreid_ice.errors import look_up
from fastreid_ice.image_files import first_of_twins
from fastreid_ice.synthetic import SceneDifficulty, render_synthetic_reid

logger = logging.getLogger(__name__)

# (path, identity, camera) as fastreid's datasets list them; None for what is not known.
Item = tuple[str, Union[str, int, None], Union[str, int, None]]


@dataclass(frozen=True)
class TrainingImages:
    """All images to train on, without their labels.

    Attributes:
        paths: N files, sorted, so that runs on different file systems see the same order.
        camids: (N,) int64 cameras, numbered 0..n-1 over the whole training set; all 0 where cameras are not used.
        identities: (N,) int64 true identities, numbered 0..m-1, or None where they are not known; for scores and the
            upper bound only.
        tracks: of the N images, or None where no dataset has any. Their cameras are known though
            ``DATASETS.USE_CAMERAS`` is False.
        camera_names: N cameras as the datasets call them, whether they are used or not; None where one is not known.
    """

    paths: tuple[str, ...]
    camids: Tensor
    identities: Tensor | None = None
    tracks: Tracks | None = None
    camera_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.paths)


def load_training_images(cfg: CfgNode) -> TrainingImages:
    """The training images of ``DATASETS.NAMES``, through fastreid's dataset registry.

    A dataset may list None for identities that it does not know; then there are none. With ``DATASETS.USE_CAMERAS
    False`` all images have camera 0. A dataset may have an attribute ``tracks``: path -> (track, frame or None), the
    track unique within the dataset.

    Raises:
        FileNotFoundError: a dataset's folder is not there, or holds no training image.
        ValueError: an unknown dataset, or one without camera ids while they are used, or without what
            ``CLUSTERING.TRACKS`` needs; an image that is in two of them.
    """
    items: list[Item] = []
    tracks: dict[str, tuple[Any, int | None]] = {}
    for name in cfg.DATASETS.NAMES:
        found = load_training_set(cfg, name, "DATASETS.NAMES")
        items += found.train if len(cfg.DATASETS.NAMES) == 1 else _apart(name, found.train)
        tracks.update({path: ((name, track), frame) for path, (track, frame) in getattr(found, "tracks", {}).items()})
    items.sort(key=lambda item: item[0])
    check_once(items, "DATASETS.NAMES")
    cameras = [item[2] for item in items] if cfg.DATASETS.USE_CAMERAS else [0] * len(items)
    images = TrainingImages(
        tuple(str(item[0]) for item in items),
        _numbered(cameras),
        _identities(items),
        _tracks(items, tracks),
        None if any(item[2] is None for item in items) else tuple(str(item[2]) for item in items),
    )
    check_tracks(cfg.CLUSTERING.TRACKS, images.tracks)
    return images


def check_once(items: Sequence[Item], key: str) -> None:
    """Raise ValueError where an image is there twice: its twin would be its nearest neighbour in every clustering."""
    twice = first_of_twins([str(item[0]) for item in items])
    if twice is not None:
        raise ValueError(
            f"{key} has {twice} twice: two of the datasets share images, as Market1501 and Market1501Half do, "
            "or a link is beside what it links to. Name one of the datasets, or take the link away."
        )


def check_same_everywhere(key: str, images: Iterable[tuple[str, Any]]) -> None:
    """Compare what the processes of a run have listed: each takes its share of the images by their numbers.

    Args:
        key: the config key that names the datasets, for messages.
        images: (file, camera) in order. Files are compared by their names: a folder may lie elsewhere on each machine.

    Raises:
        ValueError: in all processes, where they differ.

    Note:
        A collective.
    """
    if comm.get_world_size() == 1:
        return
    listed = [f"{os.path.basename(path)}\t{camera}" for path, camera in images]
    digest = hashlib.sha256("\n".join(listed).encode(errors="surrogateescape")).hexdigest()
    found = comm.all_gather((len(listed), digest))
    if len(set(found)) > 1:
        told = ", ".join(f"process {rank}: {count}" for rank, (count, _) in enumerate(found))
        raise ValueError(
            f"The processes find different images in {key} ({told}; names and cameras are compared). All machines of "
            "a run need the same files."
        )


def load_training_set(cfg: CfgNode, name: str, key: str) -> ImageDataset:
    """A dataset with training images, and with their cameras where ``DATASETS.USE_CAMERAS`` needs them.

    Args:
        cfg: the config.
        name: under which it is registered.
        key: the config key that names it, for messages.

    Raises:
        FileNotFoundError: its folder is not there, or holds no training image.
        ValueError: no such dataset, or one without camera ids while they are used.
    """
    dataset = load_dataset(cfg, name, key, combineall=cfg.DATASETS.COMBINEALL)
    if not dataset.train:
        raise FileNotFoundError(f"{name} of {key} has no training image under {_root()}")
    if cfg.DATASETS.USE_CAMERAS and any(item[2] is None for item in dataset.train):
        raise ValueError(
            f"{name} of {key} has images without camera ids. Train camera-agnostic: DATASETS.USE_CAMERAS "
            "False, and no loss on camera proxies in MODEL.LOSSES.NAME (as configs/ICE/own.yml)."
        )
    if comm.is_main_process():
        dataset.show_train()
    return dataset


def load_dataset(cfg: CfgNode, name: str, key: str, **options: Any) -> ImageDataset:
    """A dataset of fastreid's registry, with its lists ``train``, ``query`` and ``gallery``.

    A dataset that needs the config has a class method ``from_config(cfg, key, **options)``, which is called instead of
    the class; its messages are complete.

    Args:
        cfg: the config.
        name: under which it is registered.
        key: the config key that names it, for messages.
        options: handed to the dataset.

    Raises:
        FileNotFoundError: its folder is not there or not complete.
        ValueError: no such dataset.
    """
    kind = look_up(DATASET_REGISTRY, name, key, "One of your own is registered in a module of MODEL.ICE.IMPORTS.")
    if hasattr(kind, "from_config"):
        return kind.from_config(cfg, key, **options)
    try:
        dataset = kind(root=fastreid_build._root, **options)
        dataset.train, dataset.query, dataset.gallery  # noqa: B018  (datasets may list their files only now)
        return dataset
    except (RuntimeError, AssertionError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"{name} of {key}: {error}. Datasets are looked for in {_root()} (environment variable FASTREID_DATASETS)."
        ) from error


def load_test_images(cfg: CfgNode, name: str) -> ImageDataset:
    """A dataset of ``DATASETS.TESTS`` that has queries and a gallery.

    Raises:
        FileNotFoundError: it is not there, or one of the two is empty.
        ValueError: no such dataset, or an identity or a camera that is not known.
    """
    dataset = load_dataset(cfg, name, "DATASETS.TESTS")
    if not dataset.query or not dataset.gallery:
        raise FileNotFoundError(
            f"{name} of DATASETS.TESTS has {len(dataset.query)} queries and {len(dataset.gallery)} gallery images "
            f"under {_root()}; an evaluation needs both. Without them, train with DATASETS.TESTS ()."
        )
    items = [*dataset.query, *dataset.gallery]
    columns = [_test_numbers(name, items, column) for column in (1, 2)]
    numbered = [(item[0], *numbers) for item, *numbers in zip(items, *columns)]
    dataset._query, dataset._gallery = numbered[: len(dataset.query)], numbered[len(dataset.query) :]
    return dataset


def _test_numbers(name: str, items: Sequence[Item], column: int) -> list[int]:
    """The identities (1) or cameras (2) of queries and gallery as fastreid wants them; names are numbered together."""
    values = [item[column] for item in items]
    if all(isinstance(value, str) for value in values):
        return number_names(values).tolist()
    numbers = []
    for item, value in zip(items, values):
        try:
            numbers.append(operator.index(value))  # type: ignore[arg-type]
        except TypeError:
            what = "identity" if column == 1 else "camera"
            raise ValueError(
                f"{name} of DATASETS.TESTS: the {what} of {item[0]} is {value!r}. Queries and gallery need those of "
                "all images, as whole numbers or all as text."
            ) from None
    return numbers


def _root() -> str:
    return os.path.abspath(fastreid_build._root)


def _apart(name: str, items: Iterable[Item]) -> list[Item]:
    """Items whose identities and cameras are those of a dataset, not of others that call theirs the same."""
    return [
        (path, *(None if value is None else f"{name} {value}" for value in (identity, camera)))  # type: ignore[misc]
        for path, identity, camera in items
    ]


def _identities(items: Sequence[Item]) -> Tensor | None:
    unknown = sum(item[1] is None for item in items)
    if unknown == 0:
        return _numbered([item[1] for item in items])
    if unknown < len(items):
        logger.info("%d of %d images have no identity: none is used", unknown, len(items))
    return None


def _tracks(items: Sequence[Item], tracks: Mapping[str, tuple[Any, int | None]]) -> Tracks | None:
    """The tracks of the items, with cameras and frames where those of all tracks are known."""
    if not tracks:
        return None
    known = [tracks.get(str(item[0])) for item in items]
    number: dict[Any, int] = {}
    ids = [-1 if entry is None else number.setdefault(entry[0], len(number)) for entry in known]
    cameras = [None if entry is None else item[2] for item, entry in zip(items, known)]
    without_cameras = any(entry is not None and camera is None for camera, entry in zip(cameras, known))
    without_frames = any(entry is not None and entry[1] is None for entry in known)
    return Tracks(
        torch.tensor(ids),
        None if without_cameras else _numbered([str(camera) for camera in cameras]),
        None if without_frames else torch.tensor([0 if entry is None else entry[1] for entry in known]),
    )


def _numbered(values: Sequence[Any]) -> Tensor:
    """(N,) int64, see :func:`fastreid_ice.data.numbering.number_names`."""
    return torch.from_numpy(number_names(values))


@DATASET_REGISTRY.register()
class SyntheticReID(ImageDataset):
    """People-like figures under several cameras, rendered into ``<root>/synthetic_reid`` on first use.

    Laid out as Market-1501: ``bounding_box_train``, ``query``, ``bounding_box_test``; see
    :func:`fastreid_ice.synthetic.render_synthetic_reid`.
    """

    dataset_dir = "synthetic_reid"
    dataset_name = "synthetic_reid"
    _junk_pids = [0]

    def __init__(self, root: str = "datasets", **kwargs: Any):
        folder = self._render(Path(root) / self.dataset_dir)
        super().__init__(
            self._items(folder / "bounding_box_train", named=True),
            self._items(folder / "query"),
            self._items(folder / "bounding_box_test"),
            **kwargs,
        )

    def _render(self, folder: Path) -> Path:
        return render_synthetic_reid(folder)

    def _items(self, folder: Path, named: bool = False) -> list[Item]:
        """(path, identity, camera) of each file; with ``named`` as text, which does not clash with other datasets."""
        items: list[Item] = []
        for path in sorted(folder.glob("*.jpg")):
            identity, camera = map(int, re.findall(r"^(\d+)_c(\d+)_", path.name)[0])
            if named:
                items.append((str(path), f"{self.dataset_name}_{identity}", f"{self.dataset_name}_{camera}"))
            else:
                items.append((str(path), identity, camera))
        return items


@DATASET_REGISTRY.register()
class SyntheticReIDLarge(SyntheticReID):
    """As :class:`SyntheticReID`, but all six cameras that can be rendered and three times as many people."""

    dataset_dir = "synthetic_reid_large"
    dataset_name = "synthetic_reid_large"

    def _render(self, folder: Path) -> Path:
        return render_synthetic_reid(folder, train_identities=96, test_identities=72, cameras=6)


@DATASET_REGISTRY.register()
class SyntheticReIDSource(SyntheticReID):
    """Other people than in :class:`SyntheticReID`, under six cameras that are further apart: a source for it."""

    dataset_dir = "synthetic_reid_source"
    dataset_name = "synthetic_reid_source"

    def _render(self, folder: Path) -> Path:
        difficulty = SceneDifficulty(cast=0.3, background=0.4)
        return render_synthetic_reid(
            folder, seed=1, train_identities=48, test_identities=24, cameras=6, difficulty=difficulty
        )


@DATASET_REGISTRY.register()
class MSMT17TrainVal(MSMT17):
    """MSMT17 with its validation images among the training images, as the reference code and its field train.

    fastreid's own ``MSMT17`` trains on ``list_train.txt`` alone; with ``DATASETS.COMBINEALL`` it adds the validation
    images, but the query and gallery images too.
    """

    def __init__(self, root: str = "datasets", **kwargs: Any):
        super().__init__(root, **kwargs)
        if not self.combineall:
            self._train = [*self.train, *self.process_dir(self.train_dir, self.list_val_path)]
