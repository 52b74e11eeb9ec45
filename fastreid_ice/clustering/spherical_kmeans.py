"""Spherical k-means, the alternative when the number of identities is known."""

from __future__ import annotations

import faiss
import torch
from torch import Tensor

ITERATIONS = 20  # of assignment and mean


def kmeans(features: Tensor, num_clusters: int, seed: int = 0) -> Tensor:
    """Cluster by cosine similarity to ``num_clusters`` centroids (Dhillon and Modha, 2001) with faiss on the CPU.

    Args:
        features: (N, D) float32 unit rows; copied to the CPU if they are elsewhere.
        num_clusters: K; empty clusters are dropped, so that fewer may come out.
        seed: of the choice of the first centroids.

    Returns:
        (N,) int64 labels on the CPU, no outliers, clusters numbered by their first image.

    Raises:
        ValueError: more clusters than images.
    """
    vectors = features.detach().cpu().numpy()
    images, dimensions = vectors.shape
    if num_clusters > images:
        raise ValueError(f"CLUSTERING.NUM_CLUSTERS is {num_clusters}, but there are only {images} images.")
    search = faiss.Kmeans(
        dimensions,
        num_clusters,
        niter=ITERATIONS,
        spherical=True,
        seed=seed % 2**31,  # a C int
        min_points_per_centroid=1,
        max_points_per_centroid=max(256, -(-images // num_clusters)),
    )
    search.train(vectors)
    nearest = torch.from_numpy(search.index.search(vectors, 1)[1][:, 0])  # (N,)
    _, labels = nearest.unique(return_inverse=True)  # dense
    first = torch.full((int(labels.max()) + 1,), images).scatter_reduce(0, labels, torch.arange(images), "amin")
    return first.argsort().argsort()[labels]
