"""An exact search over whole rows of float64 similarities: for the few images that a faster search leaves unclear."""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor

from fastreid_ice.clustering.definitions import GRID

# Images that some rows are compared with at a time, so that the memory budget buys rows: in float32 256 MiB are about
# 500, however many images there are, and a million images are read 2,000 times and not once for every 27 rows.
COLUMNS = 65536


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
    if not len(images):
        return similarities, ranks
    a_row = 48 * min(COLUMNS, len(features)) + 64 * length + (0 if excluded is None else len(features))
    done = 0
    for part in images.split(max(1, memory_budget_mb * 2**20 // a_row)):
        queries = features[part].double()  # (B, D)
        best = queries.new_empty(len(part), 0), part.new_empty(len(part), 0)
        hidden = None if excluded is None else excluded(part)  # (B, N)
        for first, columns in zip(range(0, len(features), COLUMNS), features.split(COLUMNS)):
            products, numbers = _compared(queries, columns, first, memory_budget_mb)
            if hidden is not None:
                products.masked_fill_(hidden[:, first : first + len(columns)], -torch.inf)
            found = sort_candidates(products, numbers, length)
            similar, there = (torch.cat(both, dim=1) for both in zip(best, found))
            best = sort_candidates(similar, there, length)
        similarities[done : done + len(part)], ranks[done : done + len(part)] = best
        done += len(part)
    return similarities, ranks


def _compared(queries: Tensor, columns: Tensor, first: int, memory_budget_mb: int) -> tuple[Tensor, Tensor]:
    """(B, D) float64, (C, D) float32 of the images from ``first`` on -> their products and numbers, (B, C) each."""
    block = max(1, memory_budget_mb * 2**20 // (16 * columns.shape[1]))
    products = torch.cat([queries @ keys.double().t() for keys in columns.split(block)], dim=1)
    return products, torch.arange(first, first + len(columns), device=columns.device).expand_as(products)


def sort_candidates(similarities: Tensor, candidates: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Order by similarity on the grid, then index: (B, M) float64, (B, M) -> the first ``length`` of both."""
    candidates, order = candidates.sort(dim=1)
    similarities = (similarities.gather(1, order) * GRID).round_().div_(GRID)
    similarities, by_similarity = similarities.sort(dim=1, descending=True, stable=True)
    return similarities[:, :length], candidates.gather(1, by_similarity)[:, :length]
