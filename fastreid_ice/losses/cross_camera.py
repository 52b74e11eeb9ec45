"""Contrast of each image with the proxies of its cluster under every camera (ICE, cross-camera proxy loss)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastreid_ice.losses.proxies import AVERAGES, batch_average, check_choice, check_proxies, check_sizes


def cross_camera_loss(
    query: Tensor,
    labels: Tensor,
    camids: Tensor,
    proxies: Tensor,
    proxy_labels: Tensor,
    proxy_camids: Tensor,
    temperature: float = 0.07,
    num_negatives: int = 50,
    proxy_norm: str = "dimension",
    pad_with_positives: bool = True,
    positives: str = "all",
    denominator: str = "joint",
    average: str = "camera",
    batch_camids: Tensor | None = None,
) -> Tensor:
    """Softmax cross-entropy of each query over its cluster's camera proxies and the hardest other proxies.

    With s_ip = <query_i, proxy_p> / t, P(i) the proxies of i's cluster (its own camera's included) and N(i) the
    ``num_negatives`` most similar proxies of other clusters:

        l_i = log sum_{p in P(i) + N(i)} exp(s_ip) - 1/|P(i)| sum_{p in P(i)} s_ip
        L   = sum over cameras c of the mean of l_i over the batch's images of camera c

    This is the reference code's loss before its factor 0.5, peculiarities included, each with a switch.

    Args:
        query: (N, D) float, embeddings of the online encoder; normalised here. The gradient flows here.
        labels: (N,) int64 pseudo labels, each with at least one proxy.
        camids: (N,) int64 camera ids; an image of -1 is left out: it contributes 0 and counts in no mean. It has no
            proxy.
        proxies: (P, D) float, L2-normalised means of the clusters' features under one camera.
        proxy_labels: (P,) int64 pseudo label of each proxy.
        proxy_camids: (P,) int64 camera id of each proxy.
        temperature: tau_c in the paper, > 0.
        num_negatives: size of N(i), >= 0.
        proxy_norm: "dimension" divides each of the D columns by its norm over the proxies, as the reference code
            does; "proxy" keeps each proxy of length 1.
        pad_with_positives: with fewer than ``num_negatives`` other proxies the reference code fills N(i) up with
            proxies of the own cluster, which are then counted twice in the sum (those of the highest index).
        positives: "all": P(i) as above; "other_cameras": without the proxy of the image's own camera. An image
            whose cluster no other camera has seen then contributes 0.
        denominator: "joint": as above; "single": the positive itself and N(i), for each positive.
        average: "camera": as above; "image": the mean of l_i over the batch.
        batch_camids: (B,) int64 camera ids of the whole batch when the queries are one rank's share of it. The
            shares' losses add up to the loss of the whole batch. Default: ``camids``.

    Returns:
        Scalar.

    Raises:
        ValueError: sizes that do not fit, an unknown choice, or a label without proxy (the latter on the CPU
            only: an accelerator would have to be waited for).
    """
    check_sizes("cross_camera_loss", query, labels, camids, proxies, proxy_labels, proxy_camids)
    _check_choices(PROXY_NORM=proxy_norm, POSITIVES=positives, DENOMINATOR=denominator, AVERAGE=average)
    similarity = F.normalize(query, dim=1) @ F.normalize(proxies, dim=_NORM_AXES[proxy_norm]).t()  # (N, P)
    own_cluster = labels[:, None] == proxy_labels[None, :]  # (N, P)
    check_proxies("cross_camera_loss", own_cluster, labels, camids)

    positive = own_cluster
    if positives == "other_cameras":
        positive = own_cluster & (camids[:, None] != proxy_camids[None, :])
    hardest = _hardest_proxies(similarity, own_cluster, num_negatives)  # (N, K) indices
    logits = similarity / temperature
    negatives = logits.gather(1, hardest)
    if not pad_with_positives:
        negatives = negatives.masked_fill(own_cluster.gather(1, hardest), float("-inf"))
    losses = _contrast(logits, positive, negatives, denominator)  # (N,)
    return batch_average(losses, camids, batch_camids, average)


def _contrast(logits: Tensor, positive: Tensor, negatives: Tensor, denominator: str) -> Tensor:
    """(N,) l_i from logits (N, P), the mask of the positives (N, P) and the negatives' logits (N, K)."""
    counts = positive.sum(dim=1)
    if denominator == "joint":
        candidates = torch.cat([logits.masked_fill(~positive, float("-inf")), negatives], dim=1)
        log_partition = candidates.masked_fill((counts == 0)[:, None], 0).logsumexp(dim=1)[:, None]  # (N, 1)
    else:
        log_partition = torch.cat([logits[:, :, None], negatives[:, None, :].expand(*logits.shape, -1)], dim=2)
        log_partition = log_partition.logsumexp(dim=2)  # (N, P)
    return (log_partition - logits).masked_fill(~positive, 0).sum(dim=1) / counts.clamp(min=1)


_NORM_AXES = {"dimension": 0, "proxy": 1}


CHOICES = {
    "PROXY_NORM": tuple(_NORM_AXES),
    "POSITIVES": ("all", "other_cameras"),
    "DENOMINATOR": ("joint", "single"),
    "AVERAGE": AVERAGES,
}


def _check_choices(**chosen: str) -> None:
    for key, value in chosen.items():
        check_choice("CROSS_CAMERA", key, value, CHOICES[key])


def _hardest_proxies(similarity: Tensor, own_cluster: Tensor, count: int) -> Tensor:
    """(N, min(count, P)) indices: other clusters' proxies by similarity, then the own ones by falling index."""
    num_proxies = similarity.shape[1]
    # A cosine is far above -1e4, and whole numbers of this size are exact in float32: no ties among the own proxies.
    after_all_others = torch.arange(num_proxies, device=similarity.device, dtype=similarity.dtype) - 1e4 - num_proxies
    ranking = torch.where(own_cluster, after_all_others, similarity.detach())
    return ranking.topk(min(count, num_proxies), dim=1).indices
