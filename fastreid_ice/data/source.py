"""The labelled images of another domain, the source, that are trained on beside the target's (``DATASETS.SOURCE``)."""

from __future__ import annotations

import os
from collections.abc import Sequence

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
from fastreid.config import CfgNode
from torch import Tensor

from fastreid_ice.config import source_ims_per_batch
from fastreid_ice.data.datasets import Item, TrainingImages, check_once, load_training_set
from fastreid_ice.data.numbering import number_names


def load_source_images(cfg: CfgNode, target: TrainingImages) -> TrainingImages | None:
    """The training images of ``DATASETS.SOURCE`` with their true identities; None where it names no dataset.

    Identities and cameras of two datasets are never the same. Cameras are numbered behind those of the target, so that
    an image's camera tells its domain; with ``DATASETS.USE_CAMERAS False`` all are one camera behind them.

    Args:
        cfg: the config.
        target: the images of ``DATASETS.NAMES``.

    Raises:
        FileNotFoundError: a dataset's folder is not there, or holds no training image.
        ValueError: an image without identity, twice, or one of the target; fewer classes than a batch needs; what
            :func:`load_training_set` says.
    """
    if not cfg.DATASETS.SOURCE:
        return None
    items: list[Item] = []
    for name in cfg.DATASETS.SOURCE:
        found = load_training_set(cfg, name, "DATASETS.SOURCE").train
        _check_labelled(name, found)
        items += [(str(path), f"{name} {identity}", f"{name} {camera}") for path, identity, camera in found]
    items.sort(key=lambda item: item[0])
    check_once(items, "DATASETS.SOURCE")
    _check_apart(items, target)
    cameras = [item[2] for item in items] if cfg.DATASETS.USE_CAMERAS else [""] * len(items)
    images = TrainingImages(
        tuple(str(item[0]) for item in items),
        torch.from_numpy(number_names(cameras)) + int(target.camids.max()) + 1,
        torch.from_numpy(number_names([item[1] for item in items])),
    )
    _check_classes(cfg, images)
    return images


def sample_by_class_and_camera(images: TrainingImages, count: int, seed: int) -> Tensor:
    """Draw images of each class under each camera (``DATASETS.SOURCE_SAMPLE``).

    Args:
        images: N of known identity.
        count: how many of a class and a camera; all where there are fewer.
        seed: of the draw.

    Returns:
        (n,) int64, rising: the numbers of the images.
    """
    assert images.identities is not None
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    groups = (images.identities * (int(images.camids.max()) + 1) + images.camids)[order]
    by_group = groups.argsort(stable=True)  # within a group in the random order
    sizes = groups.unique(return_counts=True)[1]
    place = torch.arange(len(images)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)  # within its group
    return order[by_group[place < count]].sort().values


def _check_labelled(name: str, items: Sequence[Item]) -> None:
    unknown = sum(item[1] is None for item in items)
    if unknown:
        raise ValueError(
            f"{name} of DATASETS.SOURCE has {unknown} of {len(items)} images without identity, but a source is trained "
            "on its labels. Say where they are from (DATASETS.FOLDER.IDENTITY_FROM for UnlabeledFolder), or train on "
            "it without labels: DATASETS.NAMES."
        )


def _check_apart(items: Sequence[Item], target: TrainingImages) -> None:
    """The labels of a target image would be trained on."""
    known = set(map(os.path.abspath, target.paths))
    shared = [str(item[0]) for item in items if os.path.abspath(str(item[0])) in known]
    if shared:
        raise ValueError(
            f"{len(shared)} images, such as {shared[0]}, belong to DATASETS.SOURCE and to DATASETS.NAMES, whose images "
            "have no labels. Name other datasets in one of them."
        )


def _check_classes(cfg: CfgNode, images: TrainingImages) -> None:
    assert images.identities is not None
    batch, instances = source_ims_per_batch(cfg), cfg.DATALOADER.NUM_INSTANCE
    classes = int(images.identities.max()) + 1
    if classes < batch // instances:
        raise ValueError(
            f"{' and '.join(cfg.DATASETS.SOURCE)} of DATASETS.SOURCE has {classes} classes, but a batch needs "
            f"{batch // instances} (DATASETS.SOURCE_IMS_PER_BATCH {batch} / DATALOADER.NUM_INSTANCE {instances}). "
            "Lower DATASETS.SOURCE_IMS_PER_BATCH."
        )
