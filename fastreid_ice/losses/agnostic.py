"""Contrast of each image with the centroids of all clusters (ICE, proxy-agnostic loss)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def agnostic_loss(
    query: Tensor,
    labels: Tensor,
    centroids: Tensor,
    temperature: float = 0.5,
    smoothing: float = 0.1,
    normalize_query: bool = False,
) -> Tensor:
    """Softmax cross-entropy of each query over the cluster centroids, with label smoothing.

    With z_ic = <query_i, centroid_c> / t and y the pseudo label:

        L = -1/N sum_i [ (1 - e) log softmax(z_i)_{y_i} + e/C sum_c log softmax(z_i)_c ]

    Args:
        query: (N, D) float, embeddings of the online encoder, as they leave the BN neck; the gradient flows here.
        labels: (N,) int64 pseudo labels in [0, C).
        centroids: (C, D) float, plain means of the clusters' normalised features, not normalised again.
        temperature: tau_a in the paper, > 0.
        smoothing: e, in [0, 1). 0.1 in the reference code.
        normalize_query: divide each query by its L2 norm first. The reference code does not.

    Returns:
        Scalar mean over the queries.

    Raises:
        ValueError: the number of queries and labels differ, or the dimensions of queries and centroids.

    Example:
        >>> import torch
        >>> query, centroids = torch.tensor([[1.0, 0.0]]), torch.eye(2)
        >>> round(agnostic_loss(query, torch.tensor([0]), centroids, temperature=1.0, smoothing=0.0).item(), 4)
        0.3133
    """
    if len(query) != len(labels) or query.shape[1] != centroids.shape[1]:
        raise ValueError(
            f"agnostic_loss: query {tuple(query.shape)}, labels {tuple(labels.shape)} and "
            f"centroids {tuple(centroids.shape)} do not fit together"
        )
    if normalize_query:
        query = F.normalize(query, dim=1)
    logits = query @ centroids.t() / temperature  # (N, C)
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)
