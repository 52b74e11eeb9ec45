"""Contrast with camera proxies within a camera (CAP) and with those found anew in every step (O2CAP)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastreid_ice.losses.proxies import AVERAGES, batch_average, check_choice, check_proxies, check_sizes


def intra_camera_loss(
    query: Tensor,
    labels: Tensor,
    camids: Tensor,
    proxies: Tensor,
    proxy_labels: Tensor,
    proxy_camids: Tensor,
    temperature: float = 0.07,
    average: str = "camera",
    batch_camids: Tensor | None = None,
) -> Tensor:
    """Softmax cross-entropy of each query over the proxies of its own camera (CAP, Wang et al., AAAI 2021).

    With s_ip = <query_i, proxy_p> / t, o(i) the proxy of i's cluster under i's camera and A(i) all proxies of this
    camera:

        l_i = log sum_{p in A(i)} exp(s_ip) - s_io(i)
        L   = sum over cameras c of the mean of l_i over the batch's images of camera c

    Args:
        query: (N, D) float, embeddings of the online encoder; normalised here. The gradient flows here.
        labels: (N,) int64 pseudo labels, each with a proxy under its camera.
        camids: (N,) int64 camera ids; an image of -1 is left out: it contributes 0 and counts in no mean.
        proxies: (P, D) float, L2-normalised means of the clusters' features under one camera.
        proxy_labels: (P,) int64 pseudo label of each proxy.
        proxy_camids: (P,) int64 camera id of each proxy.
        temperature: tau in the paper, > 0.
        average: "camera": as above; "image": the mean of l_i over the batch.
        batch_camids: (B,) int64 camera ids of the whole batch when the queries are one rank's share of it. The
            shares' losses add up to the loss of the whole batch. Default: ``camids``.

    Returns:
        Scalar.

    Raises:
        ValueError: sizes that do not fit, an unknown choice, or an image without proxy (the latter on the CPU only).
    """
    check_sizes("intra_camera_loss", query, labels, camids, proxies, proxy_labels, proxy_camids)
    check_choice("INTRA_CAMERA", "AVERAGE", average, AVERAGES)
    same_camera = camids[:, None] == proxy_camids[None, :]  # (N, P)
    own = same_camera & (labels[:, None] == proxy_labels[None, :])  # (N, P)
    check_proxies("intra_camera_loss", own, labels, camids)
    logits = F.normalize(query, dim=1) @ proxies.t() / temperature  # (N, P)
    # An image that is left out compares with all, so that its logarithm is finite, and then counts for nothing.
    compared = same_camera | (camids < 0)[:, None]
    log_partition = logits.masked_fill(~compared, float("-inf")).logsumexp(dim=1)  # (N,)
    losses = torch.where(camids >= 0, log_partition - logits.masked_fill(~own, 0).sum(dim=1), 0)
    return batch_average(losses, camids, batch_camids, average)


def online_association_loss(
    query: Tensor,
    labels: Tensor,
    camids: Tensor,
    proxies: Tensor,
    proxy_labels: Tensor,
    proxy_camids: Tensor,
    temperature: float = 0.07,
    num_positives: int = 3,
    num_negatives: int = 50,
    balance: float = 0.15,
    average: str = "camera",
    batch_camids: Tensor | None = None,
) -> Tensor:
    """Contrast of each query with proxies that are chosen by similarity, not by the clustering (O2CAP, online part).

    With o(i) the proxy of i's cluster under i's camera and b ``balance``, proxies are ranked for image i by

        r_ip = b <query_i, proxy_p> + (1 - b) <proxy_o(i), proxy_p>

    The positives P(i) are the ``num_positives`` best among the best proxy of each camera, whatever its cluster; the
    negatives N(i) the ``num_negatives`` best of the other proxies. With s_ip = <query_i, proxy_p> / t:

        l_i = log sum_{p in P(i) + N(i)} exp(s_ip) - 1/|P(i)| sum_{p in P(i)} s_ip
        L   = sum over cameras c of the mean of l_i over the batch's images of camera c

    (Wang et al., IEEE TIP 2022, arXiv 2201.05820.) With fewer cameras or proxies there are fewer of either.

    Args:
        query, labels, camids, proxies, proxy_labels, proxy_camids, average, batch_camids: see
            :func:`intra_camera_loss`.
        temperature: tau in the paper, > 0.
        num_positives: size of P(i), >= 1.
        num_negatives: size of N(i), >= 0.
        balance: b, in [0, 1].

    Returns:
        Scalar.

    Raises:
        ValueError: sizes that do not fit, an unknown choice, or an image without proxy (the latter on the CPU only).
    """
    check_sizes("online_association_loss", query, labels, camids, proxies, proxy_labels, proxy_camids)
    check_choice("ONLINE_ASSOCIATION", "AVERAGE", average, AVERAGES)
    own = (camids[:, None] == proxy_camids[None, :]) & (labels[:, None] == proxy_labels[None, :])  # (N, P)
    check_proxies("online_association_loss", own, labels, camids)
    similarity = F.normalize(query, dim=1) @ proxies.t()  # (N, P)
    own_proxies = proxies[own.int().argmax(dim=1)]  # (N, D)
    ranking = balance * similarity.detach() + (1 - balance) * own_proxies @ proxies.t()  # (N, P)

    best = ranking.masked_fill(~_best_of_cameras(ranking, proxy_camids), float("-inf"))
    worth, positives = best.topk(min(num_positives, len(proxies)), dim=1)  # (N, K)
    is_positive = worth > float("-inf")  # fewer cameras than positives: the rest is none
    rest = ranking.scatter(1, positives, torch.where(is_positive, float("-inf"), ranking.gather(1, positives)))
    worth, negatives = rest.topk(min(num_negatives, len(proxies)), dim=1)  # (N, M)
    is_negative = worth > float("-inf")

    logits = similarity / temperature
    positive_logits = logits.gather(1, positives)
    candidates = torch.cat(
        [
            positive_logits.masked_fill(~is_positive, float("-inf")),
            logits.gather(1, negatives).masked_fill(~is_negative, float("-inf")),
        ],
        dim=1,
    )  # (N, K + M)
    mean = positive_logits.masked_fill(~is_positive, 0).sum(dim=1) / is_positive.sum(dim=1)
    losses = torch.where(camids >= 0, candidates.logsumexp(dim=1) - mean, 0)
    return batch_average(losses, camids, batch_camids, average)


def _best_of_cameras(ranking: Tensor, cameras: Tensor) -> Tensor:
    """(N, P), (P,) -> (N, P) bool: the best proxy of each camera, of equal ones the first."""
    proxies = ranking.shape[1]
    # A camera's number is the place of its first proxy among all, sorted by camera: below P, without asking the device.
    groups = torch.searchsorted(cameras.sort().values, cameras).expand_as(ranking)
    largest = torch.full_like(ranking, float("-inf")).scatter_reduce(1, groups, ranking, "amax")
    place = torch.arange(proxies, device=ranking.device).expand_as(ranking)
    first = torch.where(ranking == largest.gather(1, groups), place, proxies)
    first = torch.full_like(first, proxies).scatter_reduce(1, groups, first, "amin")
    return place == first.gather(1, groups)
