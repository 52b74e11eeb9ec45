"""The loaders of ICE: one epoch's pseudo-labelled views, and all training images for the clustering."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Callable

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
from fastreid.config import CfgNode
from fastreid.data import build_reid_test_loader, build_reid_train_loader
from fastreid.data.common import CommDataset
from fastreid.data.samplers import TrainingSampler
from fastreid.data.transforms import build_transforms
from fastreid.utils import comm
from torch import Tensor

from fastreid_ice.data.datasets import TrainingImages, load_test_images
from fastreid_ice.data.randomness import derive_seed, seeded
from fastreid_ice.data.samplers import IdentityCameraSampler
from fastreid_ice.data.views import build_strong_view, build_weak_view, split_common_resize


class ReadableImages(CommDataset):
    """fastreid's dataset with an error that names the file that cannot be read."""

    def __getitem__(self, index: Any) -> dict[str, Any]:
        try:
            return super().__getitem__(index)
        except Exception as error:
            path = self.img_items[index][0]
            raise RuntimeError(f"{path} cannot be read as an image ({error}). Repair or remove the file.") from error


class PseudoLabeledViews(ReadableImages):
    """Two strong views and one weak view of an image, from one decoding and resizing, with its pseudo label.

    An item is asked for as (image, draw), see :class:`IdentityCameraSampler`. Its randomness depends on the seed and
    the draw alone: not on the number of workers or processes.

    Returns:
        dict with ``images``, ``images_key`` (strong) and ``images_weak``, each (3, H, W) float32 in 0..255,
        ``targets`` and ``camids`` (int), ``img_paths`` (str).
    """

    def __init__(self, images: TrainingImages, labels: Tensor, strong_view: Callable, weak_view: Callable, seed: int):
        items = list(zip(images.paths, labels.tolist(), images.camids.tolist()))
        super().__init__(items, transform=None, relabel=False)
        self.resize, self.strong_view, self.weak_view = split_common_resize(strong_view, weak_view)
        self.seed = seed

    def __getitem__(self, drawn: tuple[int, int]) -> dict[str, Any]:
        index, draw = drawn
        item = super().__getitem__(index)
        image = self.resize(item["images"])
        with seeded(derive_seed(self.seed, draw)):
            item["images"] = self.strong_view(image)
            item["images_key"] = self.strong_view(image)
            item["images_weak"] = self.weak_view(image)
        return item


class _EveryImage:
    """Images in random order as (image, draw), for ever: what the loader gives before there are labels."""

    def __init__(self, size: int, seed: int):
        self._indices = TrainingSampler(size, seed=seed)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((int(index), draw) for draw, index in enumerate(self._indices))


class EpochLoader:
    """The loader that fastreid's trainer takes its iterator from once, whatever labels will come.

    :meth:`start_epoch` puts new labels behind it. Until then it gives unlabelled images (targets -1), which fastreid's
    PreciseBN wants. As ``dataset`` it shows its own size, so that fastreid counts ``SOLVER.ITERS_PER_EPOCH`` steps.
    """

    num_classes = 0

    def __init__(self, cfg: CfgNode, images: TrainingImages):
        self.cfg = cfg
        self.images = images
        self._loader: Any = None
        self._batches: Iterator[dict[str, Any]] | None = None

    @property
    def dataset(self) -> EpochLoader:
        return self

    def __len__(self) -> int:
        """Images of an epoch, over all processes."""
        return self.cfg.SOLVER.ITERS_PER_EPOCH * self.cfg.SOLVER.IMS_PER_BATCH

    def __iter__(self) -> EpochLoader:
        return self

    def __next__(self) -> dict[str, Any]:
        if self._batches is None:
            unlabelled = torch.full((len(self.images),), -1)
            self._open(unlabelled, _EveryImage(len(self.images), seed=0), seed=0)
        assert self._batches is not None
        return next(self._batches)

    def start_epoch(self, labels: Tensor, seed: int) -> None:
        """Draw the next ``ITERS_PER_EPOCH`` batches from these (N,) pseudo labels; ``seed`` the same on all ranks.

        Raises:
            ValueError: there are too few clusters for a batch.
        """
        sampler = IdentityCameraSampler(
            labels,
            self.images.camids,
            batch_size=self.cfg.SOLVER.IMS_PER_BATCH,
            num_instances=self.cfg.DATALOADER.NUM_INSTANCE,
            batches=self.cfg.SOLVER.ITERS_PER_EPOCH,
            seed=derive_seed(seed, 0),
            rank=comm.get_rank(),
            world_size=comm.get_world_size(),
        )
        self._open(labels, sampler, seed=derive_seed(seed, 1))

    def _open(self, labels: Tensor, sampler: Any, seed: int) -> None:
        self.close()
        views = PseudoLabeledViews(self.images, labels, build_strong_view(self.cfg), build_weak_view(self.cfg), seed)
        self._loader = build_reid_train_loader(
            views,
            sampler=sampler,
            total_batch_size=self.cfg.SOLVER.IMS_PER_BATCH,
            num_workers=self.cfg.DATALOADER.NUM_WORKERS,
        )
        self._batches = iter(self._loader)

    def close(self) -> None:
        """End the current loader's threads and workers."""
        if self._loader is not None:
            self._loader.shutdown()
        self._loader = self._batches = None


def build_feature_loader(cfg: CfgNode, images: TrainingImages) -> Any:
    """All training images once, in order, as the test transform gives them; each process its contiguous share."""
    items = [(path, 0, 0) for path in images.paths]
    dataset = ReadableImages(items, build_transforms(cfg, is_train=False), relabel=False)
    loader, _ = build_reid_test_loader(
        dataset, test_batch_size=cfg.TEST.IMS_PER_BATCH, num_query=0, num_workers=cfg.DATALOADER.NUM_WORKERS
    )
    return loader


def build_test_loader(cfg: CfgNode, dataset_name: str) -> tuple[Any, int]:
    """Queries, then gallery of a dataset of ``DATASETS.TESTS``, each process its contiguous share.

    fastreid's own always starts four workers and names no file that it cannot read.

    Returns:
        loader, and the number of queries.
    """
    dataset = load_test_images(cfg, dataset_name)
    if comm.is_main_process():
        dataset.show_test()
    images = ReadableImages(dataset.query + dataset.gallery, build_transforms(cfg, is_train=False), relabel=False)
    return build_reid_test_loader(
        images,
        test_batch_size=cfg.TEST.IMS_PER_BATCH,
        num_query=len(dataset.query),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
