"""The loaders of ICE: one epoch's pseudo-labelled views, and all training images for the clustering."""

from __future__ import annotations

from collections.abc import Iterator

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from fastreid.data import build_reid_test_loader, build_reid_train_loader
from fastreid.data.common import CommDataset
from fastreid.data.samplers import TrainingSampler
from fastreid.data.transforms import build_transforms
from fastreid.utils import comm
from torch import Tensor

from fastreid_ice.data.datasets import TrainingImages
from fastreid_ice.data.randomness import derive_seed, seeded
from fastreid_ice.data.samplers import IdentityCameraSampler
from fastreid_ice.data.views import build_strong_view, build_weak_view


class _ReadableImages(CommDataset):
    """fastreid's dataset with an error that names the file that cannot be read."""

    def __getitem__(self, index: int) -> dict:
        try:
            return super().__getitem__(index)
        except Exception as error:
            path = self.img_items[index][0]
            raise RuntimeError(f"{path} cannot be read as an image ({error}). Repair or remove the file.") from error


class PseudoLabeledViews(_ReadableImages):
    """Two strong views and one weak view of an image, from one decoding, with its pseudo label.

    An item is asked for as (image, draw), see :class:`IdentityCameraSampler`. Its randomness depends on the seed and
    the draw alone: not on the number of workers or processes.

    Returns:
        dict with ``images``, ``images_key`` (strong) and ``images_weak``, each (3, H, W) float32 in 0..255,
        ``targets`` and ``camids`` (int), ``img_paths`` (str).
    """

    def __init__(self, images: TrainingImages, labels: Tensor, strong_view, weak_view, seed: int):
        items = list(zip(images.paths, labels.tolist(), images.camids.tolist()))
        super().__init__(items, transform=None, relabel=False)
        self.strong_view = strong_view
        self.weak_view = weak_view
        self.seed = seed

    def __getitem__(self, drawn: tuple[int, int]) -> dict:
        index, draw = drawn
        item = super().__getitem__(index)
        image = item["images"]
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

    def __init__(self, cfg, images: TrainingImages):
        self.cfg = cfg
        self.images = images
        self._loader = None
        self._batches: Iterator[dict] | None = None

    @property
    def dataset(self) -> EpochLoader:
        return self

    def __len__(self) -> int:
        """Images of an epoch, over all processes."""
        return self.cfg.SOLVER.ITERS_PER_EPOCH * self.cfg.SOLVER.IMS_PER_BATCH

    def __iter__(self) -> EpochLoader:
        return self

    def __next__(self) -> dict:
        if self._batches is None:
            unlabelled = -self.images.identities.new_ones(len(self.images))
            self._open(unlabelled, _EveryImage(len(self.images), seed=0), seed=0)
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

    def _open(self, labels: Tensor, sampler, seed: int) -> None:
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


def build_feature_loader(cfg, images: TrainingImages):
    """All training images once, in order, as the test transform gives them; each process its contiguous share."""
    items = [(path, 0, 0) for path in images.paths]
    dataset = _ReadableImages(items, build_transforms(cfg, is_train=False), relabel=False)
    loader, _ = build_reid_test_loader(
        dataset, test_batch_size=cfg.TEST.IMS_PER_BATCH, num_query=0, num_workers=cfg.DATALOADER.NUM_WORKERS
    )
    return loader
