"""How far images are from the centroid of their cluster and from the next one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 4096  # images compared with all centroids at a time


@dataclass(frozen=True)
class CentroidDistances:
    """Cosine distances 1 - cos of N images to centroids, in [0, 2]; NaN where there is none.

    Attributes:
        own: (N,) float32, to the centroid of the own cluster; NaN for outliers.
        next: (N,) int64, the nearest other cluster, for outliers the nearest; -1 where there is no other.
        to_next: (N,) float32, the distance to that.
    """

    own: Tensor
    next: Tensor
    to_next: Tensor

    @property
    def margin(self) -> Tensor:
        """(N,) float32, ``to_next - own``: below 0 where another centroid is nearer than the own."""
        return self.to_next - self.own


def centroid_distances(features: Tensor, labels: Tensor) -> CentroidDistances:
    """Compare each image with the centroids of all clusters, the normalised means of their members' features.

    Args:
        features: (N, D) float32 rows of length 1.
        labels: (N,) int64 without gaps, -1 = outlier.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
        >>> found = centroid_distances(features, torch.tensor([0, 0, 1, -1]))
        >>> found.own.tolist(), found.next.tolist(), [round(d, 3) for d in found.to_next.tolist()]
        ([0.0, 0.0, 0.0, nan], [1, 1, 0, 0], [1.0, 1.0, 1.0, 0.2])
    """
    kept = labels >= 0
    clusters = int(labels.max()) + 1
    # Outliers are added up beside the clusters: a copy without them would take as much memory as the features.
    sums = features.new_zeros(clusters + 1, features.shape[1])
    sums.index_add_(0, labels.where(kept, clusters), features)
    centroids = F.normalize(sums[:clusters], dim=1)  # (C, D)
    own = features.new_full((len(features),), float("nan"))
    to_next = own.clone()
    following = torch.full_like(labels, -1)
    if clusters == 0:
        return CentroidDistances(own, following, to_next)
    for start in range(0, len(features), ROWS):
        part = slice(start, start + ROWS)
        distances = (1 - features[part] @ centroids.t()).clamp_(min=0)  # (n, C)
        members = kept[part].nonzero().flatten()
        theirs = labels[part][members]
        own[part][members] = distances[members, theirs]
        distances[members, theirs] = float("inf")
        smallest, nearest = distances.min(dim=1)
        there = smallest.isfinite()
        to_next[part] = smallest.where(there, torch.full_like(smallest, float("nan")))
        following[part] = nearest.where(there, torch.full_like(nearest, -1))
    return CentroidDistances(own, following, to_next)
