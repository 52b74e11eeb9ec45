"""The training images of a config, and the embedded dataset, registered with fastreid as ``SyntheticReID``."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
from fastreid.data import build as fastreid_build
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset
from fastreid.data.datasets.msmt17 import MSMT17
from fastreid.utils import comm
from torch import Tensor

from fastreid_ice.synthetic import render_synthetic_reid


@dataclass(frozen=True)
class TrainingImages:
    """All images to train on, without their labels.

    Attributes:
        paths: N files, sorted, so that runs on different file systems see the same order.
        camids: (N,) int64 cameras, numbered 0..n-1 over the whole training set.
        identities: (N,) int64 true identities, numbered 0..m-1; for scores and the upper bound only.
    """

    paths: tuple[str, ...]
    camids: Tensor
    identities: Tensor

    def __len__(self) -> int:
        return len(self.paths)


def load_training_images(cfg) -> TrainingImages:
    """The training images of ``DATASETS.NAMES``, through fastreid's dataset registry.

    With ``DATASETS.USE_CAMERAS False`` all images have camera 0.

    Raises:
        FileNotFoundError: a dataset's folder is not there, or holds no training image.
        KeyError: an unknown dataset.
    """
    items = []
    for name in cfg.DATASETS.NAMES:
        items += _training_items(name, cfg.DATASETS.COMBINEALL)
    items.sort(key=lambda item: item[0])
    camids = _numbered([item[2] for item in items])
    if not cfg.DATASETS.USE_CAMERAS:
        camids = torch.zeros_like(camids)
    return TrainingImages(tuple(str(item[0]) for item in items), camids, _numbered([item[1] for item in items]))


def _training_items(name: str, combine_all: bool) -> list[tuple]:
    root = fastreid_build._root
    try:
        dataset = DATASET_REGISTRY.get(name)(root=root, combineall=combine_all)
        items = dataset.train
    except (RuntimeError, AssertionError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"{name} of DATASETS.NAMES: {error}. Datasets are looked for in {os.path.abspath(root)} "
            "(environment variable FASTREID_DATASETS)."
        ) from error
    if not items:
        raise FileNotFoundError(f"{name} of DATASETS.NAMES has no training image under {os.path.abspath(root)}")
    if comm.is_main_process():
        dataset.show_train()
    return items


def _numbered(values: list) -> Tensor:
    """(N,) int64: each value's rank among the distinct ones, numbers within text by size ("cam_10" after "cam_9")."""
    order = sorted(set(values), key=_natural)
    number = {value: i for i, value in enumerate(order)}
    return torch.tensor([number[value] for value in values], dtype=torch.int64)


def _natural(value) -> list:
    parts = re.split(r"(\d+)", value) if isinstance(value, str) else ["", value]
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


@DATASET_REGISTRY.register()
class SyntheticReID(ImageDataset):
    """People-like figures under several cameras, rendered into ``<root>/synthetic_reid`` on first use.

    Laid out as Market-1501: ``bounding_box_train``, ``query``, ``bounding_box_test``; see
    :func:`fastreid_ice.synthetic.render_synthetic_reid`.
    """

    dataset_dir = "synthetic_reid"
    dataset_name = "synthetic_reid"
    _junk_pids = [0]

    def __init__(self, root: str = "datasets", **kwargs):
        folder = self._render(Path(root) / self.dataset_dir)
        super().__init__(
            self._items(folder / "bounding_box_train", named=True),
            self._items(folder / "query"),
            self._items(folder / "bounding_box_test"),
            **kwargs,
        )

    def _render(self, folder: Path) -> Path:
        return render_synthetic_reid(folder)

    def _items(self, folder: Path, named: bool = False) -> list[tuple]:
        """(path, identity, camera) of each file; with ``named`` as text, which does not clash with other datasets."""
        items = []
        for path in sorted(folder.glob("*.jpg")):
            identity, camera = map(int, re.match(r"(\d+)_c(\d+)_", path.name).groups())
            if named:
                items.append((str(path), f"{self.dataset_name}_{identity}", f"{self.dataset_name}_{camera}"))
            else:
                items.append((str(path), identity, camera))
        return items


@DATASET_REGISTRY.register()
class MSMT17TrainVal(MSMT17):
    """MSMT17 with its validation images among the training images, as the reference code and its field train.

    fastreid's own ``MSMT17`` trains on ``list_train.txt`` alone; with ``DATASETS.COMBINEALL`` it adds the validation
    images, but the query and gallery images too.
    """

    def __init__(self, root: str = "datasets", **kwargs):
        super().__init__(root, **kwargs)
        if not self.combineall:
            self._train = [*self.train, *self.process_dir(self.train_dir, self.list_val_path)]
