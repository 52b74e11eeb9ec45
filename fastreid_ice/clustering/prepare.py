"""Check the features once, so that every later stage may rely on them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# Rows whose squared norm is this close to 1 are used as they are: dividing again would only move the last bit.
UNIT_TOLERANCE = 1e-4


def prepare_features(
    features: Tensor | np.ndarray, device: torch.device | str | None = None, names: Sequence[str] | None = None
) -> Tensor:
    """Turn features into contiguous float32 rows of unit length.

    Rows that are not of unit length are normalised (the similarity is the cosine). A zero vector has no
    direction: it stays zero, similar to nothing, and a warning counts such rows.

    Args:
        features: (N, D) tensor or array of any float type, on any device, contiguous or not.
        device: where the result shall be; None leaves it where it is.
        names: N image paths for error messages, optional.

    Returns:
        (N, D) float32 tensor, contiguous; the input itself where nothing had to change.

    Raises:
        ValueError: not a matrix, no rows or columns, or a NaN or infinite value; names the first such image.

    Example:
        >>> prepare_features(np.array([[3.0, 4.0], [0.0, 1.0]])).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 1.0]]
    """
    if isinstance(features, np.ndarray):
        features = torch.from_numpy(np.ascontiguousarray(features))
    if features.dim() != 2 or 0 in features.shape:
        raise ValueError(f"Clustering needs features of shape (images, dimensions), found {tuple(features.shape)}.")
    if not features.is_floating_point():
        raise ValueError(f"Clustering needs floating-point features, found {features.dtype}.")
    features = features.detach().to(device=device).contiguous()
    if features.dtype != torch.float64:
        features = features.float()
    return _unit_rows(features, names).float()  # in float64 first: its range is larger


def _unit_rows(features: Tensor, names: Sequence[str] | None) -> Tensor:
    """(N, D) -> (N, D) of unit length, zero rows left zero; the input itself if all rows are of unit length."""
    norms = torch.linalg.vector_norm(features, dim=1)  # (N,)
    if not bool(torch.isfinite(norms).all()):
        _raise_not_finite(features, names)
    zero = (features == 0).all(dim=1)
    if bool(zero.any()):
        logger.warning("%d of %d images have a zero feature vector, similar to nothing.", int(zero.sum()), len(zero))
    if bool((((norms - 1).abs() <= UNIT_TOLERANCE) | zero).all()):
        return features
    largest = features.abs().amax(dim=1, keepdim=True).masked_fill(zero[:, None], 1)
    features = features / largest  # neither their squares nor their inverse can leave the range of the type
    return features / torch.linalg.vector_norm(features, dim=1, keepdim=True).masked_fill(zero[:, None], 1)


def _raise_not_finite(features: Tensor, names: Sequence[str] | None) -> None:
    bad = (~torch.isfinite(features)).any(dim=1).nonzero().flatten()
    if len(bad) == 0:
        return
    image = int(bad[0])
    name = f" ({names[image]})" if names is not None else ""
    raise ValueError(
        f"The features of {len(bad)} of {len(features)} images are NaN or infinite, first of image {image}{name}. "
        "The network that made them has diverged or the image cannot be read; lower SOLVER.BASE_LR or check the image."
    )
