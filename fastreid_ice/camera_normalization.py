"""Take out of features what all images of a camera share. Never imports fastreid.

Every dimension of every camera's features is standardised:

    g_i = (f_i - mean_c) / deviation_c,  c the camera of image i,  then g_i / |g_i|

(camera-specific feature normalisation, arXiv 2502.10195). The evaluation applies it to the test features
(TEST.CAMERA_NORMALIZATION), the clustering to those of the training images (CLUSTERING.CAMERA_NORMALIZATION).

It takes for the camera's what its images share. Of a camera with few images that is the people on them as well: those
of n images would be at a cosine of -1 / (n - 1) to each other in the mean, whoever they show. So such a camera takes
the statistics of all images. Nothing can be done where a camera has seen one person only, often.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# A dimension whose standard deviation in a camera is below this share of the camera's largest is constant there.
CONSTANT = 1e-6

# Images of a camera that has statistics of its own, at least.
FEWEST = 30

# Rows of a piece: copies of one in float64 are small.
PIECE_ROWS = 1024


def camera_normalized(features: Tensor, cameras: Tensor, fewest: int = FEWEST) -> Tensor:
    """A camera-normalised copy of a matrix.

    Args:
        features: (N, D) float32, any device.
        cameras: (N,) int64, any numbers.
        fewest: see :func:`normalize_cameras`.

    Returns:
        (N, D) float32 rows of unit length; a row of zeros stays one.

    Raises:
        ValueError: the lengths differ.

    Example:
        >>> features = torch.tensor([[1.0, 4.0], [3.0, 0.0], [11.0, 4.0], [13.0, 0.0]])
        >>> camera_normalized(features, torch.tensor([0, 0, 1, 1]), fewest=2).sign().tolist()
        [[-1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, -1.0]]
    """
    if features.dim() != 2 or len(features) != len(cameras):
        raise ValueError(f"Features {tuple(features.shape)} and {len(cameras)} camera ids do not fit together.")
    features = features.clone()
    normalize_cameras([features], cameras, fewest)
    return features


def normalize_cameras(parts: Sequence[Tensor], cameras: Tensor, fewest: int = FEWEST) -> None:
    """Camera-normalise rows in place.

    A dimension that is constant within a camera becomes 0 there.

    Args:
        parts: tensors (n, D) float32 on one device, which together are the N rows.
        cameras: (N,) int64, any numbers.
        fewest: a camera with fewer images than this, at least 2, takes the statistics of all images.
    """
    kinds, camera = cameras.to(parts[0].device).unique(return_inverse=True)
    pieces = _pieces(parts, camera)
    counts = torch.bincount(camera).double()[:, None]  # (C, 1)
    sums = torch.zeros(len(kinds), parts[0].shape[1], dtype=torch.float64, device=camera.device)
    squares = torch.zeros_like(sums)
    for rows, owner in pieces:
        sums.index_add_(0, owner, rows.double())
        squares.index_add_(0, owner, rows.double().square_())
    few = counts[:, 0] < fewest
    sums[few], squares[few] = sums.sum(dim=0), squares.sum(dim=0)
    counts[few] = sum(len(part) for part in parts)
    means = sums / counts  # (C, D)
    deviations = (squares / counts - means.square()).clamp_(min=0).sqrt_()
    constant = deviations <= CONSTANT * deviations.amax(dim=1, keepdim=True)
    scales = deviations.reciprocal().masked_fill_(constant, 0)
    for rows, owner in pieces:
        rows.sub_(means[owner]).mul_(scales[owner])
    for part in parts:
        F.normalize(part, dim=1, out=part)


def _pieces(parts: Sequence[Tensor], labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Views of few rows, each with its share of the labels (N,)."""
    rows = [piece for part in parts for piece in part.split(PIECE_ROWS)]
    return list(zip(rows, labels.split([len(piece) for piece in rows])))
