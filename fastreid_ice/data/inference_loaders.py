"""The loaders of images that are only encoded: all training images for the clustering, and the test images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from fastreid.config import CfgNode
from fastreid.data import build_reid_test_loader
from fastreid.data.datasets.bases import ImageDataset
from fastreid.data.samplers import InferenceSampler
from fastreid.data.transforms import build_transforms
from fastreid.utils import comm
from torch import Tensor
from torch.utils.data import Dataset, Subset

from fastreid_ice.data.datasets import TrainingImages, check_same_everywhere, load_test_images
from fastreid_ice.data.image_cache import ImageCache
from fastreid_ice.data.readable_images import ReadableImages
from fastreid_ice.data.views import keep_bytes


def build_feature_loader(
    cfg: CfgNode, images: TrainingImages, cache: ImageCache | None = None, chosen: Tensor | None = None
) -> Any:
    """All training images once, in order, as the test transform gives them; each process its contiguous share.

    Args:
        cfg: the config.
        images: the training images.
        cache: of these images.
        chosen: (n,) int64 numbers of the images that are wanted, in this order; default all.
    """
    items = [(path, 0, 0) for path in images.paths]
    view = keep_bytes(build_transforms(cfg, is_train=False))
    resized = None if cache is None else cache.resized(view)
    dataset: Dataset = ReadableImages(items, view, resized=resized)
    if chosen is not None:
        dataset = Subset(dataset, chosen.tolist())
    return _loader(cfg, dataset, 0, from_cache=resized is not None)[0]


class KeptTestImages(NamedTuple):
    """A test set as it was listed first, and the cache of this process's share of its images, if they are kept."""

    dataset: ImageDataset
    cache: ImageCache | None


_KEPT: ContextVar[dict[str, KeptTestImages] | None] = ContextVar("kept test images", default=None)


@contextmanager
def keeping_test_images(kept: dict[str, KeptTestImages] | None) -> Iterator[None]:
    """Within it, :func:`build_test_loader` reads the test images from their caches (``DATALOADER.CACHE``).

    Args:
        kept: the caller's, of the datasets seen so far, by name; those that are missing are added. None: as without.
    """
    token = _KEPT.set(kept)
    try:
        yield
    finally:
        _KEPT.reset(token)


def build_test_loader(cfg: CfgNode, dataset_name: str) -> tuple[Any, int]:
    """Queries, then gallery of a dataset of ``DATASETS.TESTS``, each process its contiguous share.

    fastreid's own always starts four workers and names no file that it cannot read. See :func:`keeping_test_images`.

    Returns:
        loader, and the number of queries.
    """
    dataset, cache = _test_images(cfg, dataset_name)
    if comm.is_main_process():
        dataset.show_test()
    items = dataset.query + dataset.gallery
    view = keep_bytes(build_transforms(cfg, is_train=False))
    resized = None if cache is None else cache.resized(view)
    images = ReadableImages(items, view, resized=resized)
    return _loader(cfg, images, len(dataset.query), from_cache=resized is not None)


def _test_images(cfg: CfgNode, name: str) -> KeptTestImages:
    kept = _KEPT.get()
    if kept is not None and name in kept:
        return kept[name]
    dataset = load_test_images(cfg, name)
    items = dataset.query + dataset.gallery
    check_same_everywhere(f"{name} of DATASETS.TESTS", [(path, camera) for path, _, camera, *_ in items])
    if kept is None:
        return KeptTestImages(dataset, None)
    paths = [path for path, *_ in items]
    kept[name] = KeptTestImages(dataset, ImageCache(cfg, paths, list(InferenceSampler(len(paths)))))
    return kept[name]


def _loader(cfg: CfgNode, dataset: Dataset, num_query: int, from_cache: bool) -> tuple[Any, int]:
    """What a cache keeps is read by this process alone: a worker would take longer to hand it over."""
    return build_reid_test_loader(
        dataset,
        test_batch_size=cfg.TEST.IMS_PER_BATCH,
        num_query=num_query,
        num_workers=0 if from_cache else cfg.DATALOADER.NUM_WORKERS,
    )
