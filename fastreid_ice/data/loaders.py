"""The loaders of ICE: one epoch's pseudo-labelled views, and all training images for the clustering."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)
from fastreid_ice.compat.loading import DeviceLoader

import torch
from fastreid.config import CfgNode
from fastreid.data import build_reid_test_loader
from fastreid.data.build import fast_batch_collator
from fastreid.data.common import CommDataset
from fastreid.data.samplers import TrainingSampler
from fastreid.data.transforms import build_transforms
from fastreid.utils import comm
from torch import Tensor
from torch.utils.data import BatchSampler
from torchvision import transforms as T

from fastreid_ice.data.datasets import TrainingImages, load_test_images
from fastreid_ice.data.image_cache import ImageCache, ResizedImages
from fastreid_ice.data.randomness import derive_seed, seeded
from fastreid_ice.data.samplers import IdentityCameraSampler
from fastreid_ice.data.views import (
    BytesToTensor,
    build_strong_view,
    build_weak_view,
    keep_bytes,
    resize_of,
    split_common_resize,
    without_resize,
)


class ReadableImages(CommDataset):
    """fastreid's dataset with an error that names the file that cannot be read.

    Args:
        items: (path, identity, camera) of each image.
        transform: of a picture; None: pictures are given as they are.
        relabel: number identities and cameras of these items.
        resized: the images behind the resize that ``transform`` begins with, which is then left out.
    """

    def __init__(
        self,
        items: Sequence[tuple],
        transform: T.Compose | None,
        relabel: bool = False,
        resized: ResizedImages | None = None,
    ):
        super().__init__(items, transform, relabel)
        self.resized = resized
        if resized is not None:
            self.transform = None if transform is None else without_resize(transform)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        if self.resized is not None:
            return self._kept(index)
        try:
            return super().__getitem__(index)
        except Exception as error:
            path = self.img_items[index][0]
            raise RuntimeError(f"{path} cannot be read as an image ({error}). Repair or remove the file.") from error

    def _kept(self, index: int) -> dict[str, Any]:
        """The item from the resized images; without the way through a picture where only a tensor is made of it."""
        assert self.resized is not None and not self.relabel
        path, identity, camera = self.img_items[index][:3]
        if self.transform is not None and [type(step) for step in self.transform.transforms] == [BytesToTensor]:
            image = self.transform(self.resized.pixels[index])
        else:
            image = self.resized[index] if self.transform is None else self.transform(self.resized[index])
        return {"images": image, "targets": identity, "camids": camera, "img_paths": path}


class Drawn(NamedTuple):
    """What a batch asks for: an image, the number of the draw within the epoch, and what the epoch makes of them.

    An ``outlier`` that is a class of its own belongs to no camera proxy; its camera is then given as -1.
    """

    image: int
    draw: int
    label: int
    seed: int
    outlier: bool = False


class PseudoLabeledViews(ReadableImages):
    """Two strong views and one weak view of an image, from one decoding and resizing, with its pseudo label.

    An item is asked for as :class:`Drawn`, which holds all that changes with the epoch: workers that were started
    before need not know of it. Its randomness depends on the seed and the draw alone: not on the number of workers or
    processes.

    Returns:
        dict with ``images``, ``images_key`` (strong) and ``images_weak``, each (3, H, W) in 0..255, uint8 or, from
        views that compute with tensors, float32; ``targets`` and ``camids`` (int), ``img_paths`` (str).
    """

    def __init__(
        self, images: TrainingImages, strong_view: T.Compose, weak_view: T.Compose, cache: ImageCache | None = None
    ):
        items = [(path, -1, camera) for path, camera in zip(images.paths, images.camids.tolist())]
        resized = None if cache is None else cache.resized(strong_view)
        assert resized is None or resize_of(weak_view).size == resize_of(strong_view).size
        super().__init__(items, transform=None, relabel=False, resized=resized)
        self.resize: Callable | None = None
        if resized is None:
            self.resize, self.strong_view, self.weak_view = split_common_resize(strong_view, weak_view)
        else:
            self.strong_view, self.weak_view = without_resize(strong_view), without_resize(weak_view)

    def __getitem__(self, drawn: Drawn) -> dict[str, Any]:
        item = super().__getitem__(drawn.image)
        item["targets"] = drawn.label
        if drawn.outlier:
            item["camids"] = -1
        image = item["images"] if self.resize is None else self.resize(item["images"])
        with seeded(derive_seed(drawn.seed, drawn.draw)):
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


class _ThisEpoch:
    """The draws of whatever epoch it is, with its labels and its seed; the loader asks anew in every epoch."""

    def __init__(self) -> None:
        self._draws: Iterable[tuple[int, int]] = ()
        self._labels: list[int] = []
        self._outliers: list[bool] = []
        self._seed = 0

    def set(self, draws: Iterable[tuple[int, int]], labels: Tensor, targets: Tensor, seed: int) -> None:
        self._draws, self._labels, self._seed = draws, targets.tolist(), seed
        self._outliers = ((labels < 0) & (targets >= 0)).tolist()

    def __iter__(self) -> Iterator[Drawn]:
        labels, outliers, seed = self._labels, self._outliers, self._seed
        return (Drawn(image, draw, labels[image], seed, outliers[image]) for image, draw in self._draws)


class EpochLoader:
    """The loader that fastreid's trainer takes its iterator from once, whatever labels will come.

    :meth:`start_epoch` puts new labels behind it. Until then it gives unlabelled images (targets -1), which fastreid's
    PreciseBN wants. As ``dataset`` it shows its own size, so that fastreid counts ``SOLVER.ITERS_PER_EPOCH`` steps. Its
    workers are started once and live until :meth:`close`.

    Attributes:
        cache: of the training images, also for the clustering's :func:`build_feature_loader`.
    """

    num_classes = 0

    def __init__(self, cfg: CfgNode, images: TrainingImages):
        self.cfg = cfg
        self.images = images
        self.cache = ImageCache(cfg, images.paths)
        self._epoch = _ThisEpoch()
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
            self._open(_EveryImage(len(self.images), seed=0), unlabelled, unlabelled, seed=0)
        assert self._batches is not None
        return next(self._batches)

    def start_epoch(self, labels: Tensor, seed: int, targets: Tensor | None = None) -> None:
        """Draw the next ``ITERS_PER_EPOCH`` batches.

        Args:
            labels: (N,) int64 pseudo labels, -1 = outlier.
            seed: the same on all ranks.
            targets: (N,) int64, the labels that the losses get, in which outliers have labels of their own; these are
                drawn too. Default: ``labels``.

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
            outlier_share=0.0 if targets is None else self.cfg.DATALOADER.OUTLIER_SHARE,
        )
        self._open(sampler, labels, labels if targets is None else targets, seed=derive_seed(seed, 1))

    def _open(self, draws: Iterable[tuple[int, int]], labels: Tensor, targets: Tensor, seed: int) -> None:
        self._epoch.set(draws, labels, targets, seed)
        if self.cfg.INPUT.RPT.ENABLED:  # its pool of patches would reach back over the epochs, and a resume has none
            self.close()
        if self._loader is None:
            self._loader = self._build()
        self._loader.shutdown()  # what a broken epoch has loaded ahead is dropped
        # A plain loader draws its workers' seed from torch's generator whenever it begins, one that goes on does not.
        # Ours has a generator of its own; what is drawn behind it stays as it was, whatever the workers do.
        torch.empty((), dtype=torch.int64).random_()
        self._batches = iter(self._loader)

    def _build(self) -> DeviceLoader:
        """fastreid's training loader, with workers that live longer than an epoch."""
        cfg = self.cfg
        strong, weak = keep_bytes(build_strong_view(cfg)), keep_bytes(build_weak_view(cfg))
        share = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
        draws: Any = self._epoch  # not the integers that torch's types expect
        return DeviceLoader(
            comm.get_local_rank(),
            dataset=PseudoLabeledViews(self.images, strong, weak, self.cache),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            batch_sampler=BatchSampler(draws, share, drop_last=True),
            collate_fn=fast_batch_collator,
            pin_memory=True,
            persistent_workers=cfg.DATALOADER.NUM_WORKERS > 0,
            generator=torch.Generator().manual_seed(0),
        )

    def close(self) -> None:
        """End the loader's threads and workers."""
        if self._loader is not None:
            self._loader.shutdown()
        self._loader = self._batches = None


def build_feature_loader(cfg: CfgNode, images: TrainingImages, cache: ImageCache | None = None) -> Any:
    """All training images once, in order, as the test transform gives them; each process its contiguous share.

    Args:
        cfg: the config.
        images: the training images.
        cache: of these images. What it keeps is read by this process alone: a worker would take longer to hand it over.
    """
    items = [(path, 0, 0) for path in images.paths]
    view = keep_bytes(build_transforms(cfg, is_train=False))
    resized = None if cache is None else cache.resized(view)
    loader, _ = build_reid_test_loader(
        ReadableImages(items, view, resized=resized),
        test_batch_size=cfg.TEST.IMS_PER_BATCH,
        num_query=0,
        num_workers=cfg.DATALOADER.NUM_WORKERS if resized is None else 0,
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
    images = ReadableImages(dataset.query + dataset.gallery, keep_bytes(build_transforms(cfg, is_train=False)))
    return build_reid_test_loader(
        images,
        test_batch_size=cfg.TEST.IMS_PER_BATCH,
        num_query=len(dataset.query),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
