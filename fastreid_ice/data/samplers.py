"""Which images form a batch: identities times instances, spread over the cameras."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor
from torch.utils.data import Sampler


def draw_instances(rng: np.random.Generator, images: np.ndarray, camids: np.ndarray, count: int) -> np.ndarray:
    """Draw ``count`` images of one cluster, as the reference code does.

    One random image from every camera that saw the cluster. Too many: a random ``count`` of them. Too few: filled up
    with other images of the cluster, without repetition if they suffice, else with; if there are none, all are drawn
    from the selected ones with repetition.

    Args:
        rng: source of randomness.
        images: (n,) the cluster's images, n >= 1.
        camids: (n,) their cameras.
        count: how many, >= 1.

    Returns:
        (count,) of ``images``.
    """
    selected = np.array([rng.choice(images[camids == camera]) for camera in np.unique(camids)])
    if len(selected) >= count:
        return rng.choice(selected, count, replace=False)
    others = np.setdiff1d(images, selected)
    if len(others) == 0:
        return rng.choice(selected, count, replace=True)
    missing = count - len(selected)
    return np.concatenate([selected, rng.choice(others, missing, replace=len(others) < missing)])


class IdentityCameraSampler(Sampler):
    """Batches of clusters x instances for one epoch; outliers are never drawn.

    A pass over the data visits every cluster once, in random order; its last incomplete batch is dropped, and passes
    follow each other until the epoch's batches are drawn. A batch lists its clusters one after another. With several
    processes each takes its contiguous share of every batch.

    Yields pairs (image, draw): the index of an image, and the number of the draw within the epoch, from which the
    views take their randomness. After ``batches`` batches it ends, so that the loader's workers end with it.

    Args:
        labels: (N,) int64 pseudo labels; -1 = outlier.
        camids: (N,) int64 camera ids.
        batch_size: images of a whole batch, over all processes (SOLVER.IMS_PER_BATCH).
        num_instances: images per cluster (DATALOADER.NUM_INSTANCE).
        batches: how many batches to draw (SOLVER.ITERS_PER_EPOCH).
        seed: the same in every process.
        rank: this process, of ``world_size``.

    Raises:
        ValueError: the sizes do not divide each other, or there are fewer clusters than a batch needs.
    """

    def __init__(
        self,
        labels: Tensor,
        camids: Tensor,
        batch_size: int,
        num_instances: int,
        batches: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        check_batch(batch_size, num_instances, world_size)
        self.batch_size = batch_size
        self.num_instances = num_instances
        self.batches = batches
        self.seed = seed
        share = batch_size // world_size
        self.share = slice(rank * share, (rank + 1) * share)
        self.clusters = _images_of_clusters(labels.cpu().numpy())
        self.camids = camids.cpu().numpy()
        needed = batch_size // num_instances
        if len(self.clusters) < needed:
            raise ValueError(
                f"{len(self.clusters)} clusters, but a batch needs {needed} "
                "(SOLVER.IMS_PER_BATCH / DATALOADER.NUM_INSTANCE)"
            )

    def __len__(self) -> int:
        return self.batches * (self.share.stop - self.share.start)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng(self.seed)
        batches = self._batches(rng)
        for number in range(self.batches):
            first_draw = number * self.batch_size
            draws = list(enumerate(next(batches).tolist(), start=first_draw))
            yield from ((image, draw) for draw, image in draws[self.share])

    def _batches(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """(batch_size,) images, for ever."""
        per_batch = self.batch_size // self.num_instances
        while True:
            order = rng.permutation(len(self.clusters))
            for start in range(0, len(order) - per_batch + 1, per_batch):
                chosen = [self.clusters[cluster] for cluster in order[start : start + per_batch]]
                drawn = [draw_instances(rng, images, self.camids[images], self.num_instances) for images in chosen]
                yield np.concatenate(drawn)


def check_batch(batch_size: int, num_instances: int, world_size: int) -> None:
    """Raise ValueError unless a batch divides into processes and clusters."""
    if batch_size % num_instances:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH ({batch_size}) must be a multiple of DATALOADER.NUM_INSTANCE ({num_instances})"
        )
    if batch_size % world_size:
        raise ValueError(f"SOLVER.IMS_PER_BATCH ({batch_size}) must be a multiple of the {world_size} processes")


def _images_of_clusters(labels: np.ndarray) -> list[np.ndarray]:
    """The images of each cluster, in order of label; outliers are left out."""
    images = np.flatnonzero(labels >= 0)
    images = images[np.argsort(labels[images], kind="stable")]
    boundaries = np.flatnonzero(np.diff(labels[images])) + 1
    return np.split(images, boundaries) if len(images) else []
