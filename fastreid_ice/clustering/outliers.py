"""Outliers as classes of their own, beside the clusters (SpCL, Ge et al., NeurIPS 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

DROP, INSTANCES = OUTLIERS = ("drop", "instances")


def instance_labels(labels: Tensor, rows: Tensor | None = None) -> Tensor:
    """Give each outlier a label of its own, behind those of the clusters, in the order of the images.

    Args:
        labels: (N,) int64, clusters 0..C-1, -1 = outlier.
        rows: (N,) int64, what was clustered as one, such as a track: its outliers share a label. Default: each image
            is alone.

    Returns:
        (N,) int64 labels without gaps, none of them -1.

    Example:
        >>> labels = torch.tensor([0, -1, 1, -1, -1, 0])
        >>> instance_labels(labels).tolist(), instance_labels(labels, torch.tensor([0, 1, 2, 3, 1, 0])).tolist()
        ([0, 2, 1, 3, 4, 0], [0, 2, 1, 3, 2, 0])
    """
    outliers = labels < 0
    rows = torch.arange(len(labels)) if rows is None else rows
    places = rows[outliers].unique(return_inverse=True)[1]
    instances = labels.clone()
    instances[outliers] = int(labels.max()) + 1 + places
    return instances
