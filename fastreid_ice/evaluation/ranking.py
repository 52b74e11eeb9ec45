"""CMC, average precision and inverse negative penalty of queries against a gallery, without sorting the gallery.

All three need only the rank of each true match of a query: how many gallery images, junk left out, are more similar.
One pass over the query's similarities counts them. Never imports fastreid.
"""

from __future__ import annotations

from typing import Callable, NamedTuple, Union

import numpy as np
import torch
from torch import Tensor

from fastreid_ice.evaluation import counting, counting_on_device
from fastreid_ice.evaluation.counting import Relevant

Labels = Union[np.ndarray, Tensor]

# Memory for similarities and what ranks them, in MiB.
MEMORY_BUDGET_MB = 160


class Ranking(NamedTuple):
    """How well queries find their matches.

    Attributes:
        cmc: (max_rank,) float64. [r - 1] is the share of queries with a match among their r most similar images.
        average_precisions: (V,) float64 in (0, 1], of the V queries that have a match, in their order.
        inverse_negative_penalties: (V,) float64 in (0, 1]: number of matches / rank of the last.
        queries: (V,) int64, which queries these are.
    """

    cmc: np.ndarray
    average_precisions: np.ndarray
    inverse_negative_penalties: np.ndarray
    queries: np.ndarray

    @property
    def mean_average_precision(self) -> float:
        return float(self.average_precisions.mean())

    @property
    def mean_inverse_negative_penalty(self) -> float:
        return float(self.inverse_negative_penalties.mean())


class Identities:
    """Who is on the images, and which camera took them: what decides between match, junk and stranger.

    A gallery image of a query's identity is a match if another camera took it, else junk, which is left out.
    Every identity counts as one, -1 too: fastreid's datasets leave such images out themselves.

    Args:
        query_ids, gallery_ids: (Q,) and (G,) whole numbers.
        query_cameras, gallery_cameras: (Q,) and (G,) whole numbers.

    Raises:
        ValueError: identities and cameras differ in number, or there are none.
    """

    def __init__(self, query_ids: Labels, gallery_ids: Labels, query_cameras: Labels, gallery_cameras: Labels):
        self._query_cameras, self._gallery_cameras = _whole(query_cameras), _whole(gallery_cameras)
        query_ids, gallery_ids = _whole(query_ids), _whole(gallery_ids)
        for name, ids, cameras in (
            ("query", query_ids, self._query_cameras),
            ("gallery", gallery_ids, self._gallery_cameras),
        ):
            if len(ids) != len(cameras) or len(ids) == 0:
                raise ValueError(
                    f"Ranking needs an identity and a camera for each {name} image, found {len(ids)} identities and "
                    f"{len(cameras)} cameras. Check the dataset in DATASETS.TESTS."
                )
        self.num_queries, self.num_gallery = len(query_ids), len(gallery_ids)
        self._by_identity = np.argsort(gallery_ids, kind="stable")
        sorted_ids = gallery_ids[self._by_identity]
        self._begins = np.searchsorted(sorted_ids, query_ids, side="left")
        self._ends = np.searchsorted(sorted_ids, query_ids, side="right")

    def relevant(self, start: int, stop: int) -> Relevant:
        """Matches and junk of the queries start..stop."""
        begins, sizes = self._begins[start:stop], self._ends[start:stop] - self._begins[start:stop]
        owner = np.repeat(np.arange(stop - start), sizes)
        images = self._by_identity[np.arange(len(owner)) + (begins - (np.cumsum(sizes) - sizes))[owner]]
        junk = self._gallery_cameras[images] == self._query_cameras[start:stop][owner]
        return Relevant(
            images[~junk], _bounds(owner[~junk], stop - start), images[junk], _bounds(owner[junk], stop - start)
        )


def rank_queries(
    similarities: Callable[[int, int], Tensor],
    identities: Identities,
    queries_at_once: int,
    max_rank: int = 50,
) -> Ranking:
    """Rank the gallery for each query, by similarity; equally similar images by gallery index.

    With r_1 < ... < r_p the ranks, from 1, of a query's p matches among the gallery images that are not junk:

        AP = 1/p sum_j j / r_j        INP = p / r_p        CMC(r) = share of queries with r_1 <= r

    Queries without a match are left out of all means.

    Args:
        similarities: called with (start, stop), gives the (stop - start, G) similarities of these queries: float32 on
            any device, float64 on the CPU too. Each result is used up before the next call.
        identities: of the Q queries and G gallery images.
        queries_at_once: how many to ask for in one call, see :func:`chunk_size`; the result does not depend on it.
        max_rank: length of the curve; behind the last gallery image it stays at its last value.

    Raises:
        ValueError: no query has a match, or a similarity is NaN; names the first such pair.
    """
    best, precisions, penalties, queries = [], [], [], []
    for start in range(0, identities.num_queries, queries_at_once):
        stop = min(start + queries_at_once, identities.num_queries)
        relevant = identities.relevant(start, stop)
        ranks = _ranks(similarities(start, stop), relevant, start) + 1
        owner, matches = _owners(relevant.match_bounds)
        valid = np.flatnonzero(np.diff(relevant.match_bounds))
        sizes = np.diff(relevant.match_bounds)[valid]
        queries.append(start + valid)
        best.append(ranks[relevant.match_bounds[valid]])
        precisions.append(np.bincount(owner, (matches + 1) / ranks, minlength=stop - start)[valid] / sizes)
        penalties.append(sizes / ranks[relevant.match_bounds[valid + 1] - 1])
    found = np.concatenate(best)
    if len(found) == 0:
        raise ValueError(
            f"None of the {identities.num_queries} queries has a match: a gallery image of the same identity from "
            "another camera. Check the query and gallery folders of the dataset in DATASETS.TESTS, and its camera ids."
        )
    first = np.bincount(np.minimum(found, max_rank + 1), minlength=max_rank + 2)[1:-1]
    cmc = np.cumsum(first) / len(found)
    return Ranking(cmc, np.concatenate(precisions), np.concatenate(penalties), np.concatenate(queries))


def evaluate_rank(
    distmat: np.ndarray,
    q_pids: np.ndarray,
    g_pids: np.ndarray,
    q_camids: np.ndarray,
    g_camids: np.ndarray,
    max_rank: int = 50,
    use_metric_cuhk03: bool = False,
    use_cython: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What ``fastreid.evaluation.rank.evaluate_rank`` computes, from the same arguments.

    Equal distances are ranked by gallery index, which upstream leaves to chance. The curve has ``max_rank`` entries
    for small galleries too.

    Args:
        distmat: (Q, G) distances; float64 is ranked as float64, other types as float32.
        q_pids: (Q,) int, identities of the queries.
        g_pids: (G,) int, identities of the gallery.
        q_camids: (Q,) int, their cameras.
        g_camids: (G,) int, likewise.
        max_rank: entries of the curve, at least 1.
        use_cython: for upstream's callers; there is one implementation here.

    Returns:
        all_cmc (max_rank,) float32; all_AP and all_INP (V,) float64, of the queries with a match.

    Raises:
        ValueError: as :func:`rank_queries`; or ``use_metric_cuhk03``, which draws random gallery images.
    """
    if use_metric_cuhk03:
        raise ValueError("use_metric_cuhk03=True is not supported; use the new CUHK03 protocol, which draws nothing.")
    distances = torch.as_tensor(distmat)
    if distances.dtype != torch.float64:
        distances = distances.float()
    identities = Identities(q_pids, g_pids, q_camids, g_camids)
    if distances.shape != (identities.num_queries, identities.num_gallery):
        raise ValueError(
            f"Ranking needs a distance for each of {identities.num_queries} queries and {identities.num_gallery} "
            f"gallery images, found a matrix of shape {tuple(distances.shape)}."
        )
    at_once = chunk_size(identities.num_gallery, distances.device)
    ranking = rank_queries(lambda start, stop: -distances[start:stop], identities, at_once, max_rank)
    return ranking.cmc.astype(np.float32), ranking.average_precisions, ranking.inverse_negative_penalties


def chunk_size(num_gallery: int, device: torch.device, copies: int = 1) -> int:
    """How many queries' similarities fit MEMORY_BUDGET_MB, held ``copies`` times."""
    per_pair = 4 * copies + (0 if device.type == "cpu" else counting_on_device.BYTES_PER_PAIR)
    return max(1, MEMORY_BUDGET_MB * 2**20 // (per_pair * num_gallery))


def _ranks(similarities: Tensor, relevant: Relevant, first_query: int) -> np.ndarray:
    """(B, G) -> ranks of the matches, from 0, ascending within a query."""
    if similarities.device.type == "cpu":
        rows = similarities.numpy()
        _refuse_nan(counting.first_nan(rows), first_query)
        return counting.ranks_of_matches(rows, relevant)
    _refuse_nan(counting_on_device.first_nan(similarities), first_query)
    return counting_on_device.ranks_of_matches(similarities, relevant)


def _refuse_nan(pair: tuple[int, int] | None, first_query: int) -> None:
    if pair is not None:
        raise ValueError(
            f"The similarity of query {first_query + pair[0]} and gallery image {pair[1]} is NaN: the features of one "
            "of them are not finite. The network that made them has diverged, or the image cannot be read."
        )


def _owners(bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(B + 1,) -> of each entry: its query and its number within the query."""
    owner = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    return owner, np.arange(len(owner)) - bounds[owner]


def _bounds(owner: np.ndarray, queries: int) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=queries))])


def _whole(labels: Labels) -> np.ndarray:
    return torch.as_tensor(labels).cpu().numpy().astype(np.int64)
