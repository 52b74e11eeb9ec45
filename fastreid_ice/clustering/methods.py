"""The table of clustering methods: a new one is a module with a function, and a row here or in the user's code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from torch import Tensor

from fastreid_ice.clustering import distributed
from fastreid_ice.clustering.approximate import approximate_neighbors
from fastreid_ice.clustering.costs import Costs
from fastreid_ice.clustering.spherical_kmeans import kmeans
from fastreid_ice.clustering.stages import dbscan, jaccard_distances, k_reciprocal_encoding, nearest_neighbors
from fastreid_ice.clustering.tracks import Tracks

if TYPE_CHECKING:
    from fastreid_ice.clustering.config import ClusteringConfig


@dataclass(frozen=True)
class ImageFacts:
    """What is known about the images beside their features; each may be None.

    Attributes:
        camids: (N,) int64 on the CPU, cameras; None when the training is to ignore them.
        identities: (N,) int64 on the CPU, true identities; None for images without labels.
        names: N paths, for messages.
        tracks: of N images, the trackers' tracks; CLUSTERING.TRACKS applies them, a method need not. Where it does,
            the method is given a row for each track, with the facts of the track's first image.
    """

    camids: Tensor | None = None
    identities: Tensor | None = None
    names: tuple[str, ...] | None = None
    tracks: Tracks | None = None


class ClusterFunction(Protocol):
    """A clustering: (N, D) float32 unit rows and what is known of the images -> (N,) integer labels, -1 = outlier.

    The clusters may have any numbers from 0 on; :class:`Clusterer` renumbers them without gaps, in their order.
    ``costs.stage("name")`` times a part. Only a collective may return None, on all ranks but the first.
    """

    def __call__(
        self, features: Tensor, images: ImageFacts, config: ClusteringConfig, costs: Costs, /
    ) -> Tensor | np.ndarray | None: ...


Check = Callable[["ClusteringConfig"], None]
Advice = Callable[["ClusteringConfig", int, int], str]
F = TypeVar("F", bound=Callable[..., Any])


def _accept(config: ClusteringConfig) -> None:
    """The check of a method that has nothing to check."""


def _neutral_advice(config: ClusteringConfig, num_clusters: int, num_outliers: int) -> str:
    return f"Turn the parameters of CLUSTERING.METHOD {config.method!r} towards more clusters"


@dataclass(frozen=True)
class Method:
    """A row of the table; see :func:`register_method`."""

    cluster: ClusterFunction
    collective: bool = False
    needs_cameras: bool = False
    check: Check = _accept
    advice: Advice = _neutral_advice


METHODS: dict[str, Method] = {}
GROUND_TRUTH = "ground_truth"


def register_method(
    name: str,
    *,
    collective: bool = False,
    needs_cameras: bool = False,
    check: Check = _accept,
    advice: Advice = _neutral_advice,
) -> Callable[[F], F]:
    """Make a function a choice of CLUSTERING.METHOD.

    The module that does so must be imported before a :class:`ClusteringConfig` is made.

    Args:
        name: the value of CLUSTERING.METHOD.
        collective: False: the function runs on the first rank only, and the others receive its labels. True: it is
            called on all ranks, each with all features; what it returns on the first counts.
        needs_cameras: True: a training without camera ids is an error, told before it begins.
        check: raises ValueError, with the key to change, when the method cannot work with a config. It runs when a
            :class:`ClusteringConfig` is made, before anything is trained.
        advice: (config, number of clusters, number of outliers) -> the beginning of a sentence that says which keys to
            turn when there are too few clusters for a batch; ", or use a smaller batch." follows.

    Raises:
        ValueError: the name is taken.

    Example:
        >>> import torch
        >>> @register_method("sign_of_the_first_feature")
        ... def by_sign(features, images, config, costs):
        ...     return (features[:, 0] > config.extra.get("threshold", 0)).long()
        >>> from fastreid_ice.clustering import Clusterer, ClusteringConfig
        >>> Clusterer(ClusteringConfig("sign_of_the_first_feature"))(torch.tensor([[1.0], [-1.0]])).labels.tolist()
        [1, 0]
        >>> del METHODS["sign_of_the_first_feature"]  # only this example's tidiness
    """

    def register(function: F) -> F:
        if name in METHODS:
            raise ValueError(f"The clustering method {name!r} is registered already; choose another name.")
        METHODS[name] = Method(function, collective, needs_cameras, check, advice)
        return function

    return register


def method_names() -> tuple[str, ...]:
    """All choices of CLUSTERING.METHOD, the built-in ones first.

    Example:
        >>> method_names()[:3]
        ('jaccard_dbscan', 'kmeans', 'ground_truth')
    """
    return tuple(METHODS)


def check_cameras(method: str, known: bool) -> None:
    """Raise ValueError if a method needs camera ids and they are not ``known``, or not to be used."""
    if METHODS[method].needs_cameras and not known:
        raise ValueError(
            f"CLUSTERING.METHOD {method} needs camera ids, and there are none: set DATASETS.USE_CAMERAS True, or "
            "choose another CLUSTERING.METHOD."
        )


def check_clusters(num_clusters: int, num_outliers: int, needed: int, config: ClusteringConfig) -> None:
    """Check that there are clusters enough for a batch.

    Args:
        num_clusters: found by the clustering.
        num_outliers: images without a cluster.
        needed: clusters in a batch, SOLVER.IMS_PER_BATCH / DATALOADER.NUM_INSTANCE.
        config: of the clustering.

    Raises:
        ValueError: there are fewer; the message says what the method advises.
    """
    if num_clusters >= needed:
        return
    if num_clusters == 0:
        found = f"no cluster: all {num_outliers} images are outliers"
    else:
        outliers = f"{num_outliers or 'no'} outlier" + "s" * (num_outliers > 1)
        found = f"{num_clusters} cluster{'s' * (num_clusters > 1)} and {outliers}"
    advice = METHODS[config.method].advice(config, num_clusters, num_outliers)
    raise ValueError(
        f"Clustering found {found}, but a batch needs {needed} clusters (SOLVER.IMS_PER_BATCH / "
        f"DATALOADER.NUM_INSTANCE). {advice}, or use a smaller batch."
    )


def jaccard_dbscan_advice(config: ClusteringConfig, num_clusters: int, num_outliers: int) -> str:
    """Isolated images need a larger eps; images that all hang together a smaller one."""
    eps, min_samples = f"CLUSTERING.EPS (now {config.eps})", f"CLUSTERING.MIN_SAMPLES (now {config.min_samples})"
    if num_clusters == 0:
        return f"Raise {eps} or lower {min_samples}"
    if num_outliers == 0:
        return f"Lower {eps}"
    return f"If most images are outliers, raise {eps} or lower {min_samples}; if few are, lower CLUSTERING.EPS"


@register_method("jaccard_dbscan", collective=True, advice=jaccard_dbscan_advice)
def jaccard_dbscan(features: Tensor, images: ImageFacts, config: ClusteringConfig, costs: Costs) -> Tensor | None:
    """The clustering of ICE: DBSCAN on Jaccard distances of k-reciprocal neighbours. The ranks share the search."""
    with costs.stage("search"):
        similarities, ranks, costs.knn_recall = _search(features, config)
    if not distributed.is_first():
        return None
    budget = config.memory_budget_mb
    with costs.stage("reciprocal"):
        encoding = k_reciprocal_encoding(features, ranks, similarities, config.k1, config.k2, config.backend, budget)
    with costs.stage("jaccard"):
        graph = jaccard_distances(encoding, config.eps, budget)
    with costs.stage("dbscan"):
        return dbscan(graph, config.min_samples).cpu()


def _search(features: Tensor, config: ClusteringConfig) -> tuple[Tensor, Tensor, float | None]:
    """Similarities (N, K), ranks (N, K) and the recall of an approximate search, on all ranks."""
    rows = distributed.own_rows(len(features))
    budget = config.memory_budget_mb
    recall = None
    if config.knn == "exact":
        similarities, ranks = nearest_neighbors(features, config.k1, rows, config.backend, budget, config.allow_tf32)
    else:
        similarities, ranks, recall = approximate_neighbors(
            features, config.k1, config.knn, rows, config.seed, budget, config.knn_recall, distributed.in_group()
        )
    if distributed.in_group():
        similarities, ranks = (distributed.gather_rows(part, len(features)) for part in (similarities, ranks))
        recall = None if recall is None else distributed.lowest(recall)
    return similarities, ranks, recall


def _check_kmeans(config: ClusteringConfig) -> None:
    if config.num_clusters < 1:
        raise ValueError(f"CLUSTERING.METHOD 'kmeans' needs CLUSTERING.NUM_CLUSTERS >= 1, not {config.num_clusters}.")


def _kmeans_advice(config: ClusteringConfig, num_clusters: int, num_outliers: int) -> str:
    return f"Raise CLUSTERING.NUM_CLUSTERS (now {config.num_clusters})"


@register_method("kmeans", check=_check_kmeans, advice=_kmeans_advice)
def _kmeans(features: Tensor, images: ImageFacts, config: ClusteringConfig, costs: Costs) -> Tensor:
    with costs.stage("kmeans"):
        return kmeans(features, config.num_clusters, config.seed)


def _ground_truth_advice(config: ClusteringConfig, num_clusters: int, num_outliers: int) -> str:
    return f"The training set has {num_clusters} identities: add images of others"


@register_method(GROUND_TRUTH, advice=_ground_truth_advice)
def ground_truth(features: Tensor, images: ImageFacts, config: ClusteringConfig, costs: Costs) -> Tensor:
    """The true identities, the upper bound of the paper's tables.

    Raises:
        ValueError: they are not known.
    """
    if images.identities is None:
        of = f" (such as {images.names[0]})" if images.names else ""
        raise ValueError(
            f"CLUSTERING.METHOD ground_truth needs the true identities, but the training set{of} has none. "
            "Choose another CLUSTERING.METHOD, or a training set with identities."
        )
    return images.identities
