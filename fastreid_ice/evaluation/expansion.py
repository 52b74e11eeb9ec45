"""Query expansion: each image's feature becomes a weighted mean over its nearest images. Never imports fastreid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastreid_ice.clustering import nearest_neighbors


@torch.no_grad()
def expand_queries(features: Tensor, times: int = 1, neighbors: int = 5, alpha: float = 3.0) -> Tensor:
    """Average query expansion (Chum et al., ICCV 2007; weights of Radenovic et al., TPAMI 2019), as fastreid's ``aqe``.

        x_i <- 1/k sum over the k nearest j of i, i included, of s_ij^alpha x_j,    s_ij the cosine similarity

    Args:
        features: (N, D) float32, queries and gallery together.
        times: TEST.AQE.QE_TIME.
        neighbors: k, TEST.AQE.QE_K; all images where there are fewer.
        alpha: TEST.AQE.ALPHA.

    Returns:
        (N, D) float32.
    """
    for _ in range(times):
        similarities, ranks = nearest_neighbors(F.normalize(features, dim=1), neighbors)  # (N, k) twice
        weights = similarities.pow(alpha) / ranks.shape[1]
        pieces = zip(weights.split(1024), ranks.split(1024))
        features = torch.cat([torch.einsum("nk,nkd->nd", weight, features[rank]) for weight, rank in pieces])
    return features
