"""The loader of the training: one epoch's pseudo-labelled views."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)
from fastreid_ice.compat.loading import DeviceLoader

import torch
from fastreid.config import CfgNode
from fastreid.data.build import fast_batch_collator
from fastreid.data.samplers import TrainingSampler
from fastreid.utils import comm
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset
from torchvision import transforms as T

from fastreid_ice.config import source_ims_per_batch
from fastreid_ice.data.datasets import TrainingImages
from fastreid_ice.data.image_cache import ImageCache
from fastreid_ice.data.randomness import derive_seed, seeded
from fastreid_ice.data.readable_images import ReadableImages
from fastreid_ice.data.samplers import IdentityCameraSampler
from fastreid_ice.data.views import (
    build_strong_view,
    build_weak_view,
    erase_views,
    keep_bytes,
    put_view,
    resize_of,
    split_common_resize,
    takes_arrays,
    without_resize,
)


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
    """Two strong views and, if it is asked for, a weak one of an image, from one decoding and resizing, with its label.

    An item is asked for as :class:`Drawn`, which holds all that changes with the epoch: workers that were started
    before need not know of it. Its randomness depends on the seed and the draw alone: not on the number of workers or
    processes (but for fastreid's INPUT.RPT, which keeps its patches in each worker).

    Returns:
        dict with ``images``, ``images_key`` (strong) and, if there is one, ``images_weak``, each (3, H, W) in 0..255,
        uint8 or, from views that compute with tensors, float32; ``targets`` and ``camids`` (int), ``img_paths`` (str).
        A view of bytes that is still to be erased has its rectangle beside it, see
        :func:`~fastreid_ice.data.views.put_view`.
    """

    def __init__(
        self,
        images: TrainingImages,
        strong_view: T.Compose,
        weak_view: T.Compose,
        cache: ImageCache | None = None,
        with_weak: bool = True,
    ):
        items = [(path, -1, camera) for path, camera in zip(images.paths, images.camids.tolist())]
        resized = None if cache is None else cache.resized(strong_view)
        assert resized is None or resize_of(weak_view).size == resize_of(strong_view).size
        super().__init__(items, transform=None, relabel=False, resized=resized)
        self.with_weak = with_weak
        self.resize: Callable | None = None
        if resized is None:
            self.resize, self.strong_view, self.weak_view = split_common_resize(strong_view, weak_view)
        else:
            self.strong_view, self.weak_view = without_resize(strong_view), without_resize(weak_view)
            self.arrays = takes_arrays(self.strong_view) and takes_arrays(self.weak_view)

    def __getitem__(self, drawn: Drawn) -> dict[str, Any]:
        item = super().__getitem__(drawn.image)
        item["targets"] = drawn.label
        if drawn.outlier:
            item["camids"] = -1
        image = item["images"] if self.resize is None else self.resize(item["images"])
        with seeded(derive_seed(drawn.seed, drawn.draw)):
            put_view(item, "images", self.strong_view(image))
            put_view(item, "images_key", self.strong_view(image))
            if self.with_weak:
                put_view(item, "images_weak", self.weak_view(image))
        return item


class BothDomains(Dataset):
    """The images of the target, then those of the source, as one dataset; asked for as :class:`Drawn`."""

    def __init__(self, target: PseudoLabeledViews, source: PseudoLabeledViews):
        self._target, self._source = target, source

    def __len__(self) -> int:
        return len(self._target) + len(self._source)

    def __getitem__(self, drawn: Drawn) -> dict[str, Any]:
        behind = drawn.image - len(self._target)
        return self._target[drawn] if behind < 0 else self._source[drawn._replace(image=behind)]


class _EveryImage:
    """Images in random order as (image, draw), for ever: what the loader gives before there are labels."""

    def __init__(self, size: int, seed: int):
        self._indices = TrainingSampler(size, seed=seed)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((int(index), draw) for draw, index in enumerate(self._indices))


class _Draws:
    """What an epoch draws from one domain.

    Args:
        draws: (image, draw) of this process.
        labels: (N,) int64 of the domain's images, -1 = outlier.
        targets: (N,) int64, the labels that the losses get; an outlier may have one of its own.
        seed: of the views.
        share: how many of them a batch has.
        first: the place of the domain's first image in the loader's dataset.
    """

    def __init__(
        self,
        draws: Iterable[tuple[int, int]],
        labels: Tensor,
        targets: Tensor,
        seed: int,
        share: int,
        first: int = 0,
    ):
        self._draws, self._labels, self._seed = draws, targets.tolist(), seed
        self._outliers = ((labels < 0) & (targets >= 0)).tolist()
        self._first, self.share = first, share

    def __iter__(self) -> Iterator[Drawn]:
        labels, outliers, seed, first = self._labels, self._outliers, self._seed, self._first
        return (Drawn(first + image, draw, labels[image], seed, outliers[image]) for image, draw in self._draws)


class _ThisEpoch:
    """The draws of whatever epoch it is, each batch domain by domain; the loader asks anew in every epoch."""

    def __init__(self) -> None:
        self.domains: Sequence[_Draws] = ()

    def __iter__(self) -> Iterator[Drawn]:
        draws = [(iter(domain), domain.share) for domain in self.domains]
        while True:
            batch = list(chain.from_iterable(islice(drawn, share) for drawn, share in draws))
            if not batch:
                return
            yield from batch


class EpochLoader:
    """The loader that fastreid's trainer takes its iterator from once, whatever labels will come.

    :meth:`start_epoch` puts new labels behind it. Until then it gives unlabelled images (targets -1), which fastreid's
    PreciseBN wants. As ``dataset`` it shows its own size, so that fastreid counts ``SOLVER.ITERS_PER_EPOCH`` steps. Its
    workers are started once and live until :meth:`close`.

    With a source (``DATASETS.SOURCE``) the ``SOLVER.IMS_PER_BATCH`` images of the target are followed, in each
    process's share of a batch, by its share of ``DATASETS.SOURCE_IMS_PER_BATCH`` images of the source. Which images of
    the target are drawn, and their views, do not depend on it.

    Attributes:
        images: to train on: the target's.
        source: labelled images of another domain, or None.
        cache: of the training images, also for the clustering's :func:`build_feature_loader`.
        source_cache: likewise, of the source.
    """

    num_classes = 0

    def __init__(self, cfg: CfgNode, images: TrainingImages, source: TrainingImages | None = None):
        self.cfg = cfg
        self.images = images
        self.source = source
        self.cache = ImageCache(cfg, images.paths)
        self.source_cache = None if source is None else ImageCache(cfg, source.paths)
        self._epoch = _ThisEpoch()
        self._loader: Any = None
        self._batches: Iterator[dict[str, Any]] | None = None
        self._erased = torch.tensor(cfg.INPUT.REA.VALUE, dtype=torch.float32)[:, None, None]  # on the batches' device

    @property
    def dataset(self) -> EpochLoader:
        """Itself: fastreid looks there for the number of images."""
        return self

    def __len__(self) -> int:
        """Images of the target in an epoch, over all processes."""
        return self.cfg.SOLVER.ITERS_PER_EPOCH * self.cfg.SOLVER.IMS_PER_BATCH

    def __iter__(self) -> EpochLoader:
        return self

    def __next__(self) -> dict[str, Any]:
        if self._batches is None:
            unlabelled = torch.full((len(self.images),), -1)
            self._open(_Draws(_EveryImage(len(self.images), seed=0), unlabelled, unlabelled, seed=0, share=1))
        assert self._batches is not None
        batch = next(self._batches)
        if self._erased.device != batch["images"].device:
            self._erased = self._erased.to(batch["images"].device)
        return erase_views(batch, self._erased)

    def start_epoch(
        self, labels: Tensor, seed: int, targets: Tensor | None = None, source_labels: Tensor | None = None
    ) -> None:
        """Draw the next ``ITERS_PER_EPOCH`` batches.

        Args:
            labels: (N,) int64 pseudo labels, -1 = outlier.
            seed: the same on all ranks.
            targets: (N,) int64, the labels that the losses get, in which outliers have labels of their own; these are
                drawn too. Default: ``labels``.
            source_labels: (M,) int64 labels of the source's images, where there is one.

        Raises:
            ValueError: there are too few clusters for a batch.
        """
        order, views, source_order, source_views = (derive_seed(seed, part) for part in range(4))
        domains = [self._draws(self.images, labels, targets, self.cfg.SOLVER.IMS_PER_BATCH, order, views)]
        if self.source is not None:
            assert source_labels is not None
            size, first = source_ims_per_batch(self.cfg), len(self.images)
            domains.append(self._draws(self.source, source_labels, None, size, source_order, source_views, first))
        self._open(*domains)

    def _draws(
        self,
        images: TrainingImages,
        labels: Tensor,
        targets: Tensor | None,
        size: int,
        order_seed: int,
        view_seed: int,
        first: int = 0,
    ) -> _Draws:
        """One domain's part of an epoch, ``size`` images of each whole batch."""
        sampler = IdentityCameraSampler(
            labels,
            images.camids,
            batch_size=size,
            num_instances=self.cfg.DATALOADER.NUM_INSTANCE,
            batches=self.cfg.SOLVER.ITERS_PER_EPOCH,
            seed=order_seed,
            rank=comm.get_rank(),
            world_size=comm.get_world_size(),
            outlier_share=0.0 if targets is None else self.cfg.DATALOADER.OUTLIER_SHARE,
        )
        targets = labels if targets is None else targets
        return _Draws(sampler, labels, targets, view_seed, size // comm.get_world_size(), first)

    def _open(self, *domains: _Draws) -> None:
        self._epoch.domains = domains
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
        share = (cfg.SOLVER.IMS_PER_BATCH + source_ims_per_batch(cfg)) // comm.get_world_size()
        draws: Any = self._epoch  # not the integers that torch's types expect
        target = self._views(self.images, self.cache)
        source = None if self.source is None else self._views(self.source, self.source_cache)
        return DeviceLoader(
            comm.get_local_rank(),
            dataset=target if source is None else BothDomains(target, source),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            batch_sampler=BatchSampler(draws, share, drop_last=True),
            collate_fn=fast_batch_collator,
            pin_memory=True,
            persistent_workers=cfg.DATALOADER.NUM_WORKERS > 0,
            generator=torch.Generator().manual_seed(0),
        )

    def _views(self, images: TrainingImages, cache: ImageCache | None) -> PseudoLabeledViews:
        strong, weak = keep_bytes(build_strong_view(self.cfg)), keep_bytes(build_weak_view(self.cfg))
        return PseudoLabeledViews(images, strong, weak, cache, self.cfg.MODEL.ICE.WEAK_PASS)

    def close(self) -> None:
        """End the loader's threads and workers."""
        if self._loader is not None:
            self._loader.shutdown()
        self._loader = self._batches = None
