"""Features that the clustering tests share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BACKENDS = ["numba", "torch"]


def blobs(identities: int, images_each: int, dimensions: int = 32, spread: float = 0.1, seed: int = 0) -> Tensor:
    """(identities * images_each, dimensions) unit rows around a random centre per identity, identities in order."""
    rng = np.random.default_rng(seed)
    centers = np.repeat(rng.normal(size=(identities, dimensions)), images_each, axis=0)
    rows = centers + spread * rng.normal(size=centers.shape)
    return torch.nn.functional.normalize(torch.from_numpy(rows).float(), dim=1)
