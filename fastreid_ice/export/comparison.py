"""How far an exported model is from torch, on images."""

from __future__ import annotations

from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCE = 1e-4


def max_difference(run: Callable[[Tensor], Tensor], inputs: Tensor, expected: Tensor) -> float:
    """Largest difference between what an export gives and what it should, over a batch and its first image alone.

    Raw embeddings may be large: a difference is taken relative to the largest expected value, where that is above 1.

    Args:
        run: the export, (n, 3, H, W) to (n, D), for any n.
        inputs: (N, 3, H, W), N >= 2.
        expected: (N, D).

    Raises:
        RuntimeError: another shape, or a value that is no number.
    """
    largest = 0.0
    for count in (len(inputs), 1):
        found = run(inputs[:count].clone())
        if found.shape != expected[:count].shape:
            raise RuntimeError(
                f"The export is wrong, and was not kept: for {count} images it gives {tuple(found.shape)}, not "
                f"{tuple(expected[:count].shape)}"
            )
        difference = (found - expected[:count]).abs().max().item() / max(1.0, expected.abs().max().item())
        if not difference >= 0:
            raise RuntimeError("The export is wrong, and was not kept: it gives values that are no numbers")
        largest = max(largest, difference)
    return largest


def require_equal(difference: float, source: str) -> None:
    """Raise RuntimeError where the difference is above TOLERANCE."""
    if difference > TOLERANCE:
        raise RuntimeError(
            f"The export is wrong, and was not kept: it differs from torch by {difference:.2g} on {source} "
            f"(at most {TOLERANCE:g} may be rounding)"
        )


def expected_embeddings(model: Callable[[Tensor], Tensor], pixels: Tensor, normalized: bool) -> Tensor:
    """What the trained model itself makes of (N, 3, H, W) float RGB in 0..255."""
    with torch.no_grad():
        embeddings = model(pixels.clone()).float()
    return F.normalize(embeddings, dim=1) if normalized else embeddings
