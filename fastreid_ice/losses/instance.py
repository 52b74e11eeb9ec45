"""Contrast between the images of a batch: hard instance contrast and soft instance consistency (ICE)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def hard_instance_loss(
    query: Tensor, keys: Tensor, query_labels: Tensor, key_labels: Tensor, temperature: float = 0.1
) -> Tensor:
    """InfoNCE of each query against the least similar key of its own cluster.

    With s_ij = cos(query_i, key_j) and p(i) = argmin s_ij over the keys of i's cluster, i's own key included:

        L = -1/N sum_i log[ exp(s_ip/t) / (exp(s_ip/t) + sum_{j: y_j != y_i} exp(s_ij/t)) ]

    Args:
        query: (N, D) float, embeddings of the online encoder; normalised here. The gradient flows here.
        keys: (M, D) float, embeddings of the momentum encoder, another view of the batch's images; normalised here.
        query_labels: (N,) int64 pseudo labels.
        key_labels: (M,) int64 pseudo labels, at least one key for each query's cluster.
        temperature: tau_h_ins in the paper, > 0.

    Returns:
        Scalar mean over the queries; a query whose batch has no other cluster contributes 0.

    Raises:
        ValueError: features and labels disagree in length, or (on the CPU) a query has no key of its cluster; on an
            accelerator the loss is then infinite or NaN.
    """
    if len(query) != len(query_labels) or len(keys) != len(key_labels):
        raise ValueError(
            f"hard_instance_loss: {len(query)} queries with {len(query_labels)} labels, "
            f"{len(keys)} keys with {len(key_labels)} labels"
        )
    same = query_labels[:, None] == key_labels[None, :]  # (N, M)
    if same.device.type == "cpu" and not same.any(dim=1).all():  # elsewhere the answer would have to be waited for
        raise ValueError("hard_instance_loss: a query has no key of its own cluster")
    similarity = F.normalize(query, dim=1) @ F.normalize(keys, dim=1).t()  # (N, M)
    hardest = similarity.masked_fill(~same, float("inf")).amin(dim=1, keepdim=True)  # (N, 1)
    negatives = similarity.masked_fill(same, float("-inf"))  # (N, M)
    logits = torch.cat([hardest, negatives], dim=1) / temperature  # (N, 1 + M), positive first
    return F.cross_entropy(logits, torch.zeros_like(query_labels))


def soft_instance_loss(
    query: Tensor, keys: Tensor, weak_query: Tensor, weak_keys: Tensor, temperature: float = 0.4
) -> Tensor:
    """Kullback-Leibler divergence from the similarities of the weak views to those of the strong views.

    With P_i = softmax_j cos(weak_i, weak_j)/t and Q_i = softmax_j cos(query_i, key_j)/t over all images j of the
    batch, the image itself included:

        L = 1/N sum_i KL(P_i || Q_i)

    Args:
        query: (N, D) float, online embeddings of the strong view; normalised here. The gradient flows here.
        keys: (M, D) float, momentum embeddings of the other strong view; normalised here.
        weak_query: (N, D) float, momentum embeddings of the un-augmented views of the queries' images.
        weak_keys: (M, D) float, momentum embeddings of the un-augmented views of the keys' images.
        temperature: tau_s_ins in the paper, > 0, shared by both softmaxes.

    Returns:
        Scalar mean over the queries, before the weight of the reference (10).

    Raises:
        ValueError: the views disagree in length.
    """
    if len(query) != len(weak_query) or len(keys) != len(weak_keys):
        raise ValueError(
            f"soft_instance_loss: {len(query)} queries with {len(weak_query)} weak views, "
            f"{len(keys)} keys with {len(weak_keys)} weak views"
        )
    weak_similarity = F.normalize(weak_query, dim=1) @ F.normalize(weak_keys, dim=1).t()  # (N, M)
    similarity = F.normalize(query, dim=1) @ F.normalize(keys, dim=1).t()  # (N, M)
    target = (weak_similarity / temperature).softmax(dim=1)
    return F.kl_div((similarity / temperature).log_softmax(dim=1), target, reduction="batchmean")
