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
    """Batches of clusters x instances for one epoch; outliers are drawn only where ``outlier_share`` says so.

    A pass over the data visits every cluster once, in random order; its last incomplete batch is dropped, and passes
    follow each other until the epoch's batches are drawn. A batch lists its clusters one after another. With several
    processes each takes its contiguous share of every batch.

    Outliers that are drawn take the places of a cluster together, ``num_instances`` different ones, in random order. So
    a pass shows each outlier once and each cluster ``num_instances`` times, as the samplers of SpCL and OpenUnReID do
    (Ge et al., NeurIPS 2020), while all batches are equally large. Before the features are good there are far more
    outliers than clusters; ``outlier_share`` then takes another random part of them in each pass.

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
        outlier_share: largest share of outliers among the images of a pass, in [0, 1] (DATALOADER.OUTLIER_SHARE); 0
            draws none, 1 all.

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
        outlier_share: float = 0.0,
    ):
        check_batch(batch_size, num_instances, world_size)
        self.batch_size = batch_size
        self.num_instances = num_instances
        self.batches = batches
        self.seed = seed
        share = batch_size // world_size
        self.share = slice(rank * share, (rank + 1) * share)
        known = labels.cpu().numpy()
        self.clusters, self.outliers = _images_of_clusters(known), np.flatnonzero(known < 0)
        self.outlier_slots = outlier_slots(len(self.clusters), len(self.outliers), num_instances, outlier_share)
        self.camids = camids.cpu().numpy()
        needed = batch_size // num_instances
        if len(self.clusters) + self.outlier_slots < needed:
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
            alone = self._outliers_of_a_pass(rng)
            order = rng.permutation(len(self.clusters) + len(alone))
            for start in range(0, len(order) - per_batch + 1, per_batch):
                yield np.concatenate([self._draw(rng, slot, alone) for slot in order[start : start + per_batch]])

    def _draw(self, rng: np.random.Generator, slot: int, alone: np.ndarray) -> np.ndarray:
        """(num_instances,) images of a cluster or, behind the last one, of a row of outliers."""
        if slot >= len(self.clusters):
            return alone[slot - len(self.clusters)]
        images = self.clusters[slot]
        return draw_instances(rng, images, self.camids[images], self.num_instances)

    def _outliers_of_a_pass(self, rng: np.random.Generator) -> np.ndarray:
        """(outlier_slots, num_instances) outliers in random order; what the last row lacks are others once more."""
        if not self.outlier_slots:
            return np.empty((0, self.num_instances), np.int64)
        places = self.outlier_slots * self.num_instances
        chosen = rng.permutation(self.outliers)[:places]
        lacking = places - len(chosen)
        if lacking:
            begun = chosen[len(chosen) - (self.num_instances - lacking) :]
            others = np.setdiff1d(self.outliers, begun)
            others = others if len(others) >= lacking else self.outliers
            again = rng.choice(others, lacking, replace=len(others) < lacking)
            chosen = np.concatenate([chosen, again])
        return chosen.reshape(self.outlier_slots, self.num_instances)


def outlier_slots(clusters: int, outliers: int, num_instances: int, share: float) -> int:
    """How many times outliers take the places of a cluster in a pass.

    Args:
        clusters: how many there are.
        outliers: how many there are.
        num_instances: images that take the places of a cluster.
        share: see :class:`IdentityCameraSampler`.

    Example:
        >>> [outlier_slots(10, 101, 4, share) for share in (0, 0.2, 0.5, 1)]
        [0, 2, 10, 26]
    """
    if not share:
        return 0
    slots = -(-outliers // num_instances)
    return slots if share == 1 else min(slots, int(clusters * share / (1 - share) + 1e-9))


def check_batch(batch_size: int, num_instances: int, world_size: int, key: str = "SOLVER.IMS_PER_BATCH") -> None:
    """Raise ValueError, which names ``key``, unless a batch divides into processes and clusters."""
    if batch_size % num_instances:
        raise ValueError(f"{key} ({batch_size}) must be a multiple of DATALOADER.NUM_INSTANCE ({num_instances})")
    if batch_size % world_size:
        raise ValueError(f"{key} ({batch_size}) must be a multiple of the {world_size} processes")


def _images_of_clusters(labels: np.ndarray) -> list[np.ndarray]:
    """The images of each cluster, in order of label; outliers are left out."""
    images = np.flatnonzero(labels >= 0)
    images = images[np.argsort(labels[images], kind="stable")]
    boundaries = np.flatnonzero(np.diff(labels[images])) + 1
    return np.split(images, boundaries) if len(images) else []
