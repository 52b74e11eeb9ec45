"""Make the directions count less in which the images of one cluster differ. Never imports fastreid.

With the covariance of the features around the centroids of their clusters,

    W = 1/M sum_i (f_i - c_i) (f_i - c_i)^T,  over the M images that have a cluster, c_i the mean of its features,

the features become g_i = W^(-1/2) f_i, g_i / |g_i|: what differs among the images of one person (pose, light, camera)
is made small beside what differs from person to person. It is within-class covariance normalisation (Hatch, Kajarekar,
Stolcke, Interspeech 2006, of speakers), with pseudo labels for the classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastreid_ice.precision import exact_float32

PIECE_ROWS = 4096  # rows whose deviations are made at a time


def within_class_covariance(features: Tensor, labels: Tensor) -> Tensor:
    """The covariance of features around the means of their clusters.

    Args:
        features: (N, D) float32, any device.
        labels: (N,) int64, clusters numbered from 0 without gaps, -1 = outlier, which does not count.

    Returns:
        (D, D) float64 on the features' device; zeros where no image has a cluster.

    Example:
        >>> features = torch.tensor([[1.0, 4.0], [3.0, 4.0], [0.0, 0.0], [0.0, 2.0], [9.0, 9.0]])
        >>> within_class_covariance(features, torch.tensor([0, 0, 1, 1, -1])).tolist()
        [[0.5, 0.0], [0.0, 0.5]]
    """
    members = (labels >= 0).nonzero().flatten().to(features.device)
    owners = labels.to(features.device)
    clusters = int(labels.max()) + 1
    means = torch.zeros(clusters, features.shape[1], dtype=torch.float64, device=features.device)
    for rows in members.split(PIECE_ROWS):
        means.index_add_(0, owners[rows], features[rows].double())
    means /= torch.bincount(owners[members], minlength=clusters)[:, None]
    covariance = means.new_zeros(features.shape[1], features.shape[1])
    with exact_float32(features.device):
        for rows in members.split(PIECE_ROWS):
            deviations = (features[rows].double() - means[owners[rows]]).float()
            covariance += (deviations.t() @ deviations).double()
    return covariance / max(1, len(members))


def whitening(covariance: Tensor, shrinkage: float) -> Tensor:
    """The symmetric map ((1 - s) W + s mean(diag W) I)^(-1/2), up to a factor; the identity where W is 0.

    Args:
        covariance: W, (D, D) float64.
        shrinkage: s in (0, 1]. With 1 the map changes no angle.

    Returns:
        (D, D) float64 with a largest eigenvalue of at most 1, so that no row gets longer.

    Example:
        >>> whitening(torch.diag(torch.tensor([2.0, 10.0], dtype=torch.float64)), 0.5).round(decimals=6).tolist()
        [[1.0, 0.0], [0.0, 0.707107]]
    """
    scale = covariance.diagonal().mean()
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    if not scale > 0:
        return identity
    values, vectors = torch.linalg.eigh((1 - shrinkage) * covariance / scale + shrinkage * identity)
    values = values.clamp(min=shrinkage)  # none is below that but by rounding
    return (vectors * (values / values[0]).rsqrt()) @ vectors.t()


def mapped(features: Tensor, matrix: Tensor) -> Tensor:
    """(N, D) float32 rows times a (D, D) map, of unit length; a row of zeros stays one."""
    with exact_float32(features.device):
        rows = features @ matrix.to(features)
    return F.normalize(rows, dim=1, out=rows)


def within_class_normalized(features: Tensor, labels: Tensor, shrinkage: float) -> Tensor:
    """A copy of a matrix, whitened by the covariance within its clusters.

    Args:
        features: (N, D) float32, any device.
        labels: (N,) int64, as for :func:`within_class_covariance`.
        shrinkage: in (0, 1].

    Returns:
        (N, D) float32 rows of unit length; a row of zeros stays one.
    """
    return mapped(features, whitening(within_class_covariance(features, labels), shrinkage))
