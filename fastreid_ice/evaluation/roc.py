"""The verification rates that fastreid prints with TEST.ROC, without holding or sorting all distances.

Never imports fastreid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Callable

import numpy as np
import torch
from torch import Tensor

from fastreid_ice.evaluation.ranking import Identities

RATES = (1e-4, 1e-3, 1e-2)


def true_positive_rates(
    distances: Callable[[int, int], Tensor],
    identities: Identities,
    queries_at_once: int,
    rates: Sequence[float] = RATES,
) -> list[float]:
    """Share of strangers whose distance to the query is at least t, for the t that the given share of matches reaches.

    "Positive" is a pair of different people, as upstream labels them. The t are distances of matches; of those that
    scikit-learn's ``roc_curve`` keeps, the one whose rate is nearest is taken. Upstream sorts all pairs for that; here
    they are counted between the matches' distances, in a second pass.

    Args:
        distances: called with (start, stop), gives the (stop - start, G) float32 distances of these queries.
        identities: of the Q queries and G gallery images.
        queries_at_once: how many to ask for in one call.
        rates: false positive rates, in (0, 1).

    Returns:
        A true positive rate in [0, 1] for each rate; NaN where there is no match or no stranger.
    """
    found = [part[owner, image] for part, (owner, image), _ in _chunks(distances, identities, queries_at_once)]
    values, matches = torch.cat(found).unique(return_counts=True)  # (n,) ascending
    if len(values) == 0:
        return [float("nan")] * len(rates)
    counts = torch.zeros(2 * len(values) + 2, dtype=torch.int64, device=values.device)
    for part, (owner, image), (junk_owner, junk) in _chunks(distances, identities, queries_at_once):
        place = torch.searchsorted(values, part)  # (B, G)
        equal = values[place.clamp(max=len(values) - 1)] == part
        place = place.mul_(2).add_(equal)  # 2k + 1: at value k; 2k: before it, behind k - 1
        place[owner, image] = place[junk_owner, junk] = len(counts) - 1
        counts += torch.bincount(place.flatten(), minlength=len(counts))
    return _rates_at(matches.flip(0).cpu().numpy(), counts[:-1].flip(0).cpu().numpy(), rates)


Pairs = tuple[Tensor, Tensor]


def _chunks(distances, identities: Identities, queries_at_once: int) -> Iterator[tuple[Tensor, Pairs, Pairs]]:
    """Distances of some queries, and where in them the matches and the junk are: rows and columns."""
    for start in range(0, identities.num_queries, queries_at_once):
        stop = min(start + queries_at_once, identities.num_queries)
        relevant = identities.relevant(start, stop)
        part = distances(start, stop)
        places = []
        for images, bounds in (relevant[:2], relevant[2:]):
            owner = np.repeat(np.arange(stop - start), np.diff(bounds))
            places.append((torch.from_numpy(owner).to(part.device), torch.from_numpy(images).to(part.device)))
        yield part, places[0], places[1]


def _rates_at(matches: np.ndarray, strangers: np.ndarray, rates: Sequence[float]) -> list[float]:
    """Read the curve from counts by descending distance.

    Args:
        matches: (n,) matches at each of the n distances that matches have.
        strangers: (2n + 1,) strangers above the first of these distances, at it, between it and the next, ...
    """
    if strangers.sum() == 0:
        return [float("nan")] * len(rates)
    at, between = strangers[1::2], strangers[0::2]  # (n,), (n + 1,)
    false_positives = matches.cumsum()
    true_positives = between[:-1].cumsum() + at.cumsum()
    # roc_curve drops a point on the line between its neighbours: the steps to it and from it are the same
    same = (between[1:-1] == 0) & (matches[:-1] == matches[1:]) & (at[:-1] == at[1:])
    kept = np.append(~same, True)
    kept[0] |= between[0] == 0  # the first point of all
    false_rates = np.append(0, false_positives[kept]) / false_positives[-1]
    true_rates = np.append(0, true_positives[kept]) / strangers.sum()
    return [float(true_rates[np.abs(false_rates - rate).argmin()]) for rate in rates]
