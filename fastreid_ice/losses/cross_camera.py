"""Contrast of each image with the proxies of its cluster under every camera (ICE, cross-camera proxy loss)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_camera_loss(
    query: Tensor,
    labels: Tensor,
    camids: Tensor,
    proxies: Tensor,
    proxy_labels: Tensor,
    temperature: float = 0.07,
    num_negatives: int = 50,
    proxy_norm: str = "dimension",
    pad_with_positives: bool = True,
    batch_camids: Tensor | None = None,
) -> Tensor:
    """Softmax cross-entropy of each query over its cluster's camera proxies and the hardest other proxies.

    With s_ip = <query_i, proxy_p> / t, P(i) the proxies of i's cluster (its own camera's included) and N(i) the
    ``num_negatives`` most similar other proxies:

        l_i = log sum_{p in P(i) + N(i)} exp(s_ip) - 1/|P(i)| sum_{p in P(i)} s_ip
        L   = sum over cameras c of the mean of l_i over the batch's images of camera c

    This is the reference code's loss before its factor 0.5, two peculiarities included, each with a switch.

    Args:
        query: (N, D) float, embeddings of the online encoder; normalised here. The gradient flows here.
        labels: (N,) int64 pseudo labels, each with at least one proxy.
        camids: (N,) int64 camera ids.
        proxies: (P, D) float, L2-normalised means of the clusters' features under one camera.
        proxy_labels: (P,) int64 pseudo label of each proxy.
        temperature: tau_c in the paper, > 0.
        num_negatives: size of N(i), >= 0.
        proxy_norm: "dimension" divides each of the D columns by its norm over the proxies, as the reference code
            does; "proxy" keeps each proxy of length 1.
        pad_with_positives: with fewer than ``num_negatives`` other proxies the reference code fills N(i) up with
            proxies of P(i), which are then counted twice in the sum (those of the highest index).
        batch_camids: (B,) int64 camera ids of the whole batch when the queries are one rank's share of it. The
            shares' losses add up to the loss of the whole batch. Default: ``camids``.

    Returns:
        Scalar.

    Raises:
        ValueError: sizes that do not fit, an unknown ``proxy_norm``, or a label without proxy.
    """
    _check_sizes(query, labels, camids, proxies, proxy_labels)
    similarity = F.normalize(query, dim=1) @ _normalize_proxies(proxies, proxy_norm).t()  # (N, P)
    own_cluster = labels[:, None] == proxy_labels[None, :]  # (N, P)
    positives_per_query = own_cluster.sum(dim=1)
    if not positives_per_query.all():
        missing = labels[positives_per_query == 0].unique().tolist()
        raise ValueError(f"cross_camera_loss: no proxy for the pseudo labels {missing}")

    logits = similarity / temperature
    hardest = _hardest_proxies(similarity, own_cluster, num_negatives)  # (N, K) indices
    negatives = logits.gather(1, hardest)
    if not pad_with_positives:
        negatives = negatives.masked_fill(own_cluster.gather(1, hardest), float("-inf"))
    positives = logits.masked_fill(~own_cluster, float("-inf"))
    log_partition = torch.cat([positives, negatives], dim=1).logsumexp(dim=1)  # (N,)
    mean_positive = logits.masked_fill(~own_cluster, 0).sum(dim=1) / positives_per_query
    return ((log_partition - mean_positive) / _images_of_same_camera(camids, batch_camids)).sum()


def _check_sizes(query, labels, camids, proxies, proxy_labels) -> None:
    fits = len(query) == len(labels) == len(camids) and len(proxies) == len(proxy_labels)
    if not fits or query.shape[1] != proxies.shape[1]:
        raise ValueError(
            f"cross_camera_loss: query {tuple(query.shape)}, labels {tuple(labels.shape)}, camids "
            f"{tuple(camids.shape)}, proxies {tuple(proxies.shape)} and proxy_labels {tuple(proxy_labels.shape)} "
            "do not fit together"
        )


def _normalize_proxies(proxies: Tensor, proxy_norm: str) -> Tensor:
    axes = {"dimension": 0, "proxy": 1}
    if proxy_norm not in axes:
        raise ValueError(f"MODEL.LOSSES.CROSS_CAMERA.PROXY_NORM is {proxy_norm!r}; choose one of {', '.join(axes)}")
    return F.normalize(proxies, dim=axes[proxy_norm])


def _hardest_proxies(similarity: Tensor, own_cluster: Tensor, count: int) -> Tensor:
    """(N, min(count, P)) indices: other clusters' proxies by similarity, then the own ones by falling index."""
    num_proxies = similarity.shape[1]
    # A cosine is far above -1e4, and whole numbers of this size are exact in float32: no ties among the own proxies.
    after_all_others = torch.arange(num_proxies, device=similarity.device, dtype=similarity.dtype) - 1e4 - num_proxies
    ranking = torch.where(own_cluster, after_all_others, similarity.detach())
    return ranking.topk(min(count, num_proxies), dim=1).indices


def _images_of_same_camera(camids: Tensor, batch_camids: Tensor | None) -> Tensor:
    """(N,) number of images in the whole batch that the camera of each query has."""
    batch_camids = camids if batch_camids is None else batch_camids
    return (camids[:, None] == batch_camids[None, :]).sum(dim=1)
