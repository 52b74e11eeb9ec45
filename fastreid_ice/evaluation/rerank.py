"""Re-ranking by k-reciprocal Jaccard distances (Zhong et al., CVPR 2017) over sparse rows. Never imports fastreid."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor

from fastreid_ice.clustering import k_reciprocal_encoding, nearest_neighbors
from fastreid_ice.clustering.stages import as_csr
from fastreid_ice.compiled import njit
from fastreid_ice.evaluation.ranking import chunk_size
from fastreid_ice.evaluation.similarities import Similarities
from fastreid_ice.parallel import map_rows


class RerankedSimilarities:
    """Minus the distance (1 - weight) d_J + weight d, some queries at a time, on the features' device.

    d_J = 1 - m / (2 - m), with m the sum of the element-wise minima of two images' k-reciprocal encodings among all
    queries and gallery images. No N x N matrix is made: the encodings are sparse.

    Args:
        features: (N, D) float32, the queries first; unit rows, or raw ones if ``metric`` is "euclidean".
        num_query: how many of the rows are queries.
        original: what gives d; None for d_J alone.
        metric: "cosine" or "euclidean": what neighbours and weights are made of.
        k1: length of a neighbour list, TEST.RERANK.K1.
        k2: rows to average, TEST.RERANK.K2.
        weight: lambda, TEST.RERANK.LAMBDA.
    """

    def __init__(
        self,
        features: Tensor,
        num_query: int,
        original: Similarities | None,
        metric: str = "cosine",
        k1: int = 20,
        k2: int = 6,
        weight: float = 0.3,
    ):
        self._original, self._weight = original, weight if original is not None else 0.0
        self._device = features.device
        encode = _encode_raw if metric == "euclidean" else _encode_unit
        encoding = encode(features, k1, k2)
        self._queries = encoding[:num_query]
        gallery = encoding[num_query:].tocsc()
        self._columns = (gallery.indptr, gallery.indices, gallery.data)
        self._num_gallery = gallery.shape[0]
        self.queries_at_once = min(num_query, chunk_size(self._num_gallery, features.device, copies=3))

    @torch.no_grad()
    def distances(self, start: int, stop: int) -> Tensor:
        """(stop - start, G) float32 distances of the queries start..stop."""
        overlaps = torch.from_numpy(self._overlaps(start, stop)).to(self._device)
        jaccard = (overlaps / (2 - overlaps)).neg_().add_(1).clamp_(min=0)
        if self._original is None:
            return jaccard
        return jaccard.mul_(1 - self._weight).add_(self._original.distances(start, stop), alpha=self._weight)

    def __call__(self, start: int, stop: int) -> Tensor:
        return self.distances(start, stop).neg_()

    def _overlaps(self, start: int, stop: int) -> np.ndarray:
        rows = self._queries
        sums = np.zeros((stop - start, self._num_gallery), np.float32)
        map_rows(
            lambda a, b: _add_minima(rows.indptr, rows.indices, rows.data, *self._columns, sums, start, a, b),
            stop - start,
        )
        return sums


def _encode_unit(features: Tensor, k1: int, k2: int) -> sparse.csr_array:
    similarities, ranks = nearest_neighbors(features, k1)
    return as_csr(k_reciprocal_encoding(features, ranks, similarities, k1, k2))


def _encode_raw(features: Tensor, k1: int, k2: int) -> sparse.csr_array:
    """The encoding over Euclidean distances of rows that are not of unit length.

    Which images an encoding holds depends on the neighbour lists alone, so only the weights are made here.
    """
    ranks = _nearest_by_distance(features, min(k1, len(features)))  # (N, K)
    unit = F.normalize(features, dim=1)
    members = as_csr(k_reciprocal_encoding(unit, ranks, torch.zeros_like(ranks, dtype=torch.float32), k1, 1))
    sizes = np.diff(members.indptr)
    owner = torch.from_numpy(np.repeat(np.arange(len(features)), sizes)).to(features.device)
    other = torch.from_numpy(members.indices.astype(np.int64)).to(features.device)
    distances = torch.cat(
        [(features[a] - features[b]).square_().sum(dim=1) for a, b in zip(owner.split(1 << 14), other.split(1 << 14))]
    )
    logits = torch.full((len(features), int(sizes.max())), -torch.inf, device=features.device)
    place = torch.arange(len(owner), device=owner.device) - torch.from_numpy(members.indptr[:-1]).to(owner)[owner]
    logits[owner, place] = -distances
    weights = logits.softmax(dim=1)[owner, place].cpu().numpy()
    encoding = sparse.csr_array((weights, members.indices, members.indptr), shape=members.shape)
    nearest = ranks[:, :k2].cpu().numpy()
    share = np.full(nearest.size, 1 / nearest.shape[1], np.float32)
    bounds = np.arange(0, nearest.size + 1, nearest.shape[1])
    return (sparse.csr_array((share, nearest.ravel(), bounds), shape=members.shape) @ encoding).tocsr()


def _nearest_by_distance(features: Tensor, length: int) -> Tensor:
    """(N, D) -> (N, length) int64, nearest first."""
    half_squares = features.square().sum(dim=1) / 2
    rows = chunk_size(len(features), features.device, copies=2)
    return torch.cat([(part @ features.t() - half_squares).topk(length).indices for part in features.split(rows)])


@njit(cache=True, nogil=True)
def _add_minima(indptr, indices, data, column_bounds, column_rows, column_values, sums, first, start, stop):
    """Add to sums[i, j] the minima of query first + i's and gallery image j's entries, for i in start..stop."""
    for i in range(start, stop):
        total = sums[i]
        for entry in range(indptr[first + i], indptr[first + i + 1]):
            weight, column = data[entry], indices[entry]
            for place in range(column_bounds[column], column_bounds[column + 1]):
                total[column_rows[place]] += min(weight, column_values[place])
