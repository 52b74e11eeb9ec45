"""CA-Jaccard, the camera-aware Jaccard distance (Chen et al., CVPR 2024, arXiv 2311.10605), over sparse rows.

Images of one camera look alike, whoever they show: they fill a list of nearest neighbours. So each image has two lists,
of its own camera (intra) and of all others (inter), and both contribute to its encoding. The Jaccard distances and
DBSCAN behind it are the usual ones. Search and encoding are written in tensor operations for any device, once for both
backends; work is cut into chunks of rows, and nothing is N x N.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Callable

import torch
from torch import Tensor

from fastreid_ice.clustering import distributed
from fastreid_ice.clustering.costs import Costs
from fastreid_ice.clustering.float64_search import COLUMNS, search_in_float64
from fastreid_ice.clustering.methods import ImageFacts, jaccard_dbscan_advice, register_method
from fastreid_ice.clustering.stages import dbscan, for_backend, jaccard_distances
from fastreid_ice.clustering.torch_ops.encoding import averaged, reciprocal, softened
from fastreid_ice.clustering.torch_ops.search import (
    SPARE,
    TF32_SPARE,
    Candidates,
    no_candidates,
    rank_candidates,
    with_columns,
)
from fastreid_ice.clustering.torch_ops.sparse_rows import SparseRows, from_keys
from fastreid_ice.precision import products_in_tf32

if TYPE_CHECKING:
    from fastreid_ice.clustering.config import ClusteringConfig

logger = logging.getLogger(__name__)

NAME = "ca_jaccard_dbscan"


def camera_aware_neighbors(
    features: Tensor,
    cameras: Tensor,
    k_intra: int,
    k_inter: int,
    rows: tuple[int, int] | None = None,
    memory_budget_mb: int = 256,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor]:
    """Find the most similar images of each image, among those of its camera and among those of all others.

    Exact, with the order of :func:`fastreid_ice.clustering.nearest_neighbors`.

    Args:
        features: (N, D) float32 unit rows, on any device.
        cameras: (N,) int64, on the same device, any numbers.
        k_intra: length of a list of the own camera, in which the image itself is first; capped at N.
        k_inter: length of a list of the other cameras, capped at N.
        rows: (start, stop) to search for only these images, default all.
        memory_budget_mb: bounds the scratch memory of a chunk, in MiB.
        allow_tf32: let CUDA find the candidates in TF32: faster, and no longer guaranteed to be exact.

    Returns:
        ranks (n, k_intra) and (n, k_inter) int64, nearest first; -1 behind the last where there are fewer.

    Example:
        >>> features = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.3], [1.0, 0.7]]))
        >>> intra, inter = camera_aware_neighbors(features, torch.tensor([0, 1, 0, 0]), 2, 2)
        >>> intra.tolist(), inter.tolist()
        ([[0, 2], [1, -1], [2, 0], [3, 2]], [[1, -1], [0, 2], [1, -1], [1, -1]])
    """
    start, stop = rows if rows is not None else (0, len(features))
    images = len(features)
    spare = TF32_SPARE if allow_tf32 else SPARE
    lengths = min(k_intra, images), min(k_inter, images)
    kept = min(lengths[0] + spare, images), min(lengths[1] + spare, images)
    found = [torch.empty(stop - start, length, dtype=torch.int64, device=features.device) for length in lengths]
    unclear: tuple[list[Tensor], list[Tensor]] = ([found[0].new_empty(0)], [found[0].new_empty(0)])
    chunk = max(1, memory_budget_mb * 2**20 // (10 * min(COLUMNS, images) + 72 * sum(kept)))
    for first in range(start, stop, chunk):
        last = min(first + chunk, stop)
        queries = features[first:last]
        with products_in_tf32(allow_tf32):
            largest = _largest_products(queries, cameras[first:last], features, cameras, kept)
        for ranks, candidates, again in zip(found, largest, unclear):
            exact = rank_candidates(queries, features, candidates, ranks.shape[1], memory_budget_mb, allow_tf32)
            ranks[first - start : last - start] = _without_missing(*exact[:2])
            again.append(exact[2] + first)
    for ranks, again, hides in zip(found, unclear, (torch.ne, torch.eq)):
        rows_again = torch.cat(again)
        hidden = functools.partial(_hidden, hides, cameras)
        exact_again = search_in_float64(features, rows_again, ranks.shape[1], memory_budget_mb, hidden)
        ranks[rows_again - start] = _without_missing(*exact_again)
    return found[0], found[1]


def _hidden(hides: Callable[[Tensor, Tensor], Tensor], cameras: Tensor, images: Tensor) -> Tensor:
    """(B, N) bool: which images may not be among the neighbours of the given ones (B,), by their cameras."""
    return hides(cameras[images][:, None], cameras[None, :])


def _without_missing(similarities: Tensor, ranks: Tensor) -> Tensor:
    """-1 where a list has no further image."""
    return ranks.masked_fill(similarities == -torch.inf, -1)


def _largest_products(
    queries: Tensor, own: Tensor, features: Tensor, cameras: Tensor, kept: tuple[int, int]
) -> tuple[Candidates, Candidates]:
    """Candidates of queries of cameras ``own`` (B,): those of the same camera, and those of the others."""
    intra, inter = no_candidates(queries), no_candidates(queries)
    for first in range(0, len(features), COLUMNS):
        block = slice(first, first + COLUMNS)
        products = queries @ features[block].t()  # (B, C)
        same = own[:, None] == cameras[None, block]
        intra = with_columns(intra, products.masked_fill(~same, -torch.inf), first, kept[0])
        inter = with_columns(inter, products.masked_fill_(same, -torch.inf), first, kept[1])
    return intra, inter


def camera_aware_encoding(
    features: Tensor,
    intra: Tensor,
    inter: Tensor,
    k2_intra: int = 2,
    k2_inter: int = 4,
    memory_budget_mb: int = 256,
) -> SparseRows:
    """Encode each image as a sparse row of weights over its camera-aware k-reciprocal neighbours.

    R(i) = images in i's intra list that have i in theirs, and images in i's inter list that have i in theirs (CKRNNs).
    Weights: softmax of minus the squared Euclidean distance over R(i). Local query expansion (CLQE): the mean of the
    rows of the ``k2_intra`` first images of i's intra list, the first of which is i, and of the ``k2_inter`` first ones
    of its inter list. Where a list is shorter, the mean is over fewer rows.

    Args:
        features: (N, D) float32 unit rows.
        intra: (N, K) int64, nearest first, -1 for none; see :func:`camera_aware_neighbors`.
        inter: (N, L) int64, likewise.
        k2_intra: rows of the own camera to average, >= 1.
        k2_inter: rows of other cameras to average, >= 0.
        memory_budget_mb: bounds the scratch memory, in MiB.

    Returns:
        (N, N) sparse matrix, rows sum to 1.
    """
    images = len(intra)
    rows = torch.arange(images, device=intra.device)[:, None] * images
    keys = torch.cat([(rows + ranks)[reciprocal(ranks)] for ranks in (intra, inter)]).sort().values
    encoding = from_keys(keys, softened(features, keys, (0, images), memory_budget_mb), images)
    nearest = torch.cat([intra[:, :k2_intra], inter[:, :k2_inter]], dim=1)
    return averaged(encoding, nearest, memory_budget_mb)


def _check(config: ClusteringConfig) -> None:
    if config.knn != "exact":
        raise ValueError(
            f"CLUSTERING.KNN is {config.knn!r}, but CLUSTERING.METHOD {NAME} searches among the images of chosen "
            "cameras, which an index cannot; set CLUSTERING.KNN exact."
        )


@register_method(NAME, collective=True, needs_cameras=True, check=_check, advice=jaccard_dbscan_advice)
def ca_jaccard_dbscan(features: Tensor, images: ImageFacts, config: ClusteringConfig, costs: Costs) -> Tensor | None:
    """DBSCAN on CA-Jaccard distances. The ranks share the search.

    As in the authors' code a list has one entry more than k1: of the own camera that is the image itself. Where there
    are fewer images it is shorter; theirs goes on with images of the wrong cameras.
    """
    assert images.camids is not None
    if bool((images.camids == images.camids[0]).all()):
        logger.warning(
            "All images are of one camera: CLUSTERING.METHOD %s has no neighbours from other cameras, and compares "
            "lists of CLUSTERING.K1_INTRA (%d) images only.",
            NAME,
            config.k1_intra,
        )
    cameras, budget = images.camids.to(features.device), config.memory_budget_mb
    with costs.stage("search"):
        rows = distributed.own_rows(len(features))
        lists = camera_aware_neighbors(
            features, cameras, config.k1_intra + 1, config.k1_inter + 1, rows, budget, config.allow_tf32
        )
        if distributed.in_group():
            lists = distributed.gather_rows(lists[0], len(features)), distributed.gather_rows(lists[1], len(features))
    if not distributed.is_first():
        return None
    with costs.stage("reciprocal"):
        encoding = camera_aware_encoding(features, *lists, config.k2_intra, config.k2_inter, budget)
    with costs.stage("jaccard"):
        graph = jaccard_distances(for_backend(encoding, config.backend), config.eps, budget)
    with costs.stage("dbscan"):
        return dbscan(graph, config.min_samples).cpu()
