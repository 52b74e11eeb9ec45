"""How many gallery images rank before each true match of a query, in torch operations, for features on an accelerator.

One integer holds an image's similarity and its gallery index, so that one comparison ranks equal similarities too.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastreid_ice.evaluation.counting import Relevant

# Of each pair, at the peak: similarity, key, place, and the copies that make them.
BYTES_PER_PAIR = 40


def ranks_of_matches(similarities: Tensor, relevant: Relevant) -> np.ndarray:
    """As :func:`fastreid_ice.evaluation.counting.ranks_of_matches`, for similarities (B, G) float32 on any device."""
    device = similarities.device
    matches, match_bounds, junk, junk_bounds = (torch.from_numpy(part).to(device) for part in relevant)
    if len(matches) == 0:
        return np.empty(0, np.int64)
    keys = _ranking_keys(similarities)  # (B, G)
    owner, column = _positions(match_bounds)
    most = int((match_bounds[1:] - match_bounds[:-1]).max())
    sorted_keys = torch.full((len(keys), most), torch.iinfo(torch.int64).max, device=device)
    sorted_keys[owner, column] = keys[owner, matches]
    sorted_keys = sorted_keys.sort(dim=1).values  # (B, P), the best match first
    places = torch.searchsorted(sorted_keys, keys, right=True)  # (B, G): j + 1 for match j itself
    junk_owner, _ = _positions(junk_bounds)
    places[junk_owner, junk] = most  # behind all matches: counted nowhere
    places += torch.arange(len(keys), device=device)[:, None] * (most + 1)
    counts = torch.bincount(places.flatten(), minlength=len(keys) * (most + 1)).view(len(keys), most + 1)
    return counts.cumsum(dim=1)[owner, column].cpu().numpy()


def first_nan(similarities: Tensor) -> tuple[int, int] | None:
    """(row, column) of a NaN, or None."""
    bad = similarities.isnan()
    if not bool(bad.any()):
        return None
    row, column = bad.nonzero()[0].tolist()
    return row, column


def _ranking_keys(similarities: Tensor) -> Tensor:
    """(B, G) float32 -> (B, G) int64 that ascend where similarities descend, equal ones by column."""
    bits = (0.0 - similarities).view(torch.int32)  # 0 - x: there is one zero, not two
    bits ^= (bits >> 31) & 0x7FFFFFFF  # as integers, negative floats descend
    return (bits.long() << 32) | torch.arange(similarities.shape[1], device=similarities.device)


def _positions(bounds: Tensor) -> tuple[Tensor, Tensor]:
    """(B + 1,) -> of each entry: its query and its number within the query."""
    owner = torch.repeat_interleave(bounds[1:] - bounds[:-1])
    return owner, torch.arange(len(owner), device=bounds.device) - bounds[owner]
