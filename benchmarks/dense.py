"""The definitions, as plainly as possible over dense float64 matrices. Slow on purpose; for tests and benchmarks."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.cluster import DBSCAN


def dense_neighbors(features: ArrayLike, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar rows of each row, equal ones by index: (N, D) -> similarities (N, N), ranks (N, min(k, N))."""
    features = np.asarray(features, np.float64)
    similarities = np.einsum("id,jd->ij", features, features)
    similarities = np.rint(similarities * 2.0**32) / 2.0**32  # rounding of the sums must not order equal rows
    return similarities, np.argsort(-similarities, axis=1, kind="stable")[:, :k]


def dense_reciprocal_set(ranks: np.ndarray, image: int, length: int) -> set[int]:
    """Images among the first ``length`` neighbours of ``image`` that have it among theirs."""
    return {int(j) for j in ranks[image, :length] if image in ranks[j, :length]}


def dense_encoding(features: ArrayLike, k1: int, k2: int) -> np.ndarray:
    """k-reciprocal encoding: (N, D) -> (N, N), rows sum to 1."""
    similarities, ranks = dense_neighbors(features, k1)
    images = len(ranks)
    weights = np.zeros((images, images))
    for i in range(images):
        expanded = reciprocal = dense_reciprocal_set(ranks, i, k1)
        for j in reciprocal:
            half = dense_reciprocal_set(ranks, j, round(k1 / 2) + 1)
            if 3 * len(half & reciprocal) > 2 * len(half):
                expanded = expanded | half
        members = sorted(expanded)
        exponentials = np.exp(-(2 - 2 * similarities[i, members]))
        weights[i, members] = exponentials / exponentials.sum()
    if k2 == 1:
        return weights
    return np.stack([weights[ranks[i, :k2]].mean(axis=0) for i in range(images)])


def dense_camera_aware_encoding(
    features: ArrayLike, cameras: ArrayLike, k1: tuple[int, int], k2: tuple[int, int]
) -> np.ndarray:
    """Camera-aware encoding of Chen et al. (CVPR 2024): (N, D), (N,) -> (N, N), rows sum to 1.

    ``k1`` and ``k2`` are (intra, inter); the lists have k1 + 1 entries, as in the authors' code.
    """
    similarities, ranks = dense_neighbors(features, len(np.asarray(features)))
    cameras = np.asarray(cameras)
    images = len(ranks)
    lists = []
    for same, length in ((True, k1[0] + 1), (False, k1[1] + 1)):
        lists.append([[j for j in ranks[i] if (cameras[i] == cameras[j]) == same][:length] for i in range(images)])
    weights = np.zeros((images, images))
    for i in range(images):
        members = [j for kind in lists for j in kind[i] if i in kind[j]]
        exponentials = np.exp(-(2 - 2 * similarities[i, members]))
        weights[i, members] = exponentials / exponentials.sum()
    averaged = [lists[0][i][: k2[0]] + lists[1][i][: k2[1]] for i in range(images)]
    return np.stack([weights[rows].mean(axis=0) for rows in averaged])


def dense_jaccard(encoding: np.ndarray) -> np.ndarray:
    """Jaccard distances 1 - m / (2 - m) of all pairs of rows, m = sum of their element-wise minima."""
    overlaps = np.stack([np.minimum(row, encoding).sum(axis=1) for row in encoding])
    return np.maximum(1 - overlaps / (2 - overlaps), 0)


def dense_clusters(features: ArrayLike, k1: int, k2: int, eps: float, min_samples: int) -> np.ndarray:
    """Labels (N,) of scikit-learn's DBSCAN on the dense distances; a distance that equals eps is within eps."""
    distances = dense_jaccard(dense_encoding(features, k1, k2))
    return DBSCAN(eps=eps + 1e-6, min_samples=min_samples, metric="precomputed").fit_predict(distances)
