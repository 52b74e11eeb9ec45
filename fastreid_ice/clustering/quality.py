"""How large the clusters are, and how well they agree with the true identities."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor


def summarize(labels: Tensor, identities: Tensor | None = None) -> dict[str, float]:
    """Size and, where the identities are known, quality of a clustering.

    Args:
        labels: (N,) int64 pseudo labels, -1 = outlier.
        identities: (N,) int64 true identities, or None.

    Returns:
        clusters, outliers, mean_cluster_size, largest_cluster; and with identities nmi and ari against them over all
        images, each outlier counted as a cluster of its own.

    Example:
        >>> summary = summarize(torch.tensor([0, 0, 1, -1]), torch.tensor([0, 0, 1, 1]))
        >>> summary["clusters"], summary["outliers"], summary["largest_cluster"]
        (2, 1, 2)
        >>> sorted(summary.keys() - summarize(torch.tensor([0, 0, 1, -1])).keys())
        ['ari', 'nmi']
    """
    labels = labels.cpu()
    outliers = labels < 0
    num_clusters = int(labels.max()) + 1
    sizes = torch.bincount(labels[~outliers], minlength=1)
    summary: dict[str, float] = {
        "clusters": num_clusters,
        "outliers": int(outliers.sum()),
        "mean_cluster_size": sizes.float().mean().item(),
        "largest_cluster": int(sizes.max()),
    }
    if identities is not None:
        truth, found = identities.cpu().numpy(), _alone(labels.numpy())
        with _many_classes():
            summary["nmi"] = float(normalized_mutual_info_score(truth, found))
            summary["ari"] = float(adjusted_rand_score(truth, found))
    return summary


def agreement(labels: np.ndarray, others: np.ndarray) -> float:
    """Adjusted Rand index of two clusterings, over the images that at least one of them has in a cluster.

    An outlier is a cluster of its own. NaN where all images are outliers in both.

    Example:
        >>> agreement(np.array([0, 0, 1, 1, -1]), np.array([1, 1, 0, 0, -1]))
        1.0
    """
    used = (labels >= 0) | (others >= 0)
    if not used.any():
        return float("nan")
    with _many_classes():
        return float(adjusted_rand_score(_alone(labels[used]), _alone(others[used])))


@contextmanager
def _many_classes() -> Iterator[None]:
    """scikit-learn 1.7 warns of more classes than half of the samples: outliers are such classes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        yield


def _alone(labels: np.ndarray) -> np.ndarray:
    """Labels in which each outlier has one of its own."""
    outliers = labels < 0
    separate = labels.copy()
    separate[outliers] = labels.max(initial=-1) + 1 + np.arange(outliers.sum())
    return separate
