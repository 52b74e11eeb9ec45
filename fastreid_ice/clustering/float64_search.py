"""An exact search over whole rows of float64 similarities: for the few images that a faster search leaves unclear."""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor

from fastreid_ice.clustering.definitions import GRID


def search_in_float64(
    features: Tensor,
    images: Tensor,
    length: int,
    memory_budget_mb: int,
    excluded: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Search the neighbours of the given images among all.

    Args:
        features: (N, D) float32 unit rows, on any device.
        images: (M,) int64, on the same device.
        length: entries of a list, at most N.
        memory_budget_mb: bounds the scratch memory, in MiB.
        excluded: from images (B,) to (B, N) bool, which of all images may not be their neighbours; their similarity is
            then minus infinity. Default: none.

    Returns:
        similarities (M, length) float32 and ranks (M, length) int64, ordered by :func:`sort_candidates`.
    """
    similarities = features.new_empty(len(images), length)
    ranks = torch.empty(len(images), length, dtype=torch.int64, device=features.device)
    block = max(1, memory_budget_mb * 2**20 // (16 * features.shape[1]))
    done = 0
    for part in images.split(max(1, memory_budget_mb * 2**20 // (48 * len(features)))):
        queries = features[part].double()  # (B, D)
        whole = torch.cat([queries @ keys.double().t() for keys in features.split(block)], dim=1)  # (B, N)
        if excluded is not None:
            whole.masked_fill_(excluded(part), -torch.inf)
        everyone = torch.arange(len(features), device=features.device).expand_as(whole)
        found = sort_candidates(whole, everyone, length)
        similarities[done : done + len(part)], ranks[done : done + len(part)] = found
        done += len(part)
    return similarities, ranks


def sort_candidates(similarities: Tensor, candidates: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Order by similarity on the grid, then index: (B, M) float64, (B, M) -> the first ``length`` of both."""
    candidates, order = candidates.sort(dim=1)
    similarities = (similarities.gather(1, order) * GRID).round_().div_(GRID)
    similarities, by_similarity = similarities.sort(dim=1, descending=True, stable=True)
    return similarities[:, :length], candidates.gather(1, by_similarity)[:, :length]
