"""Similarities between queries and gallery, some queries at a time. Never imports fastreid."""

from __future__ import annotations

import torch
from torch import Tensor

from fastreid_ice.evaluation.features import FeatureRows
from fastreid_ice.evaluation.ranking import chunk_size

PLAIN_METRICS = ("cosine", "euclidean")  # of pairs; the others are of whole neighbourhoods
METRICS = (*PLAIN_METRICS, "jaccard")  # of TEST.METRIC


class Similarities:
    """(stop - start, G) float32 similarities of the queries start..stop, on the features' device.

    cosine: <q, g>, for unit rows; the distance is 1 minus it. euclidean: -|q - g|^2; the distance is |q - g|^2.

    Args:
        features: (N, D), the queries first; L2-normalised if the metric is the cosine.
        num_query: how many of the rows are queries.
        metric: one of PLAIN_METRICS.

    Note:
        Each call writes over the result of the one before.
    """

    def __init__(self, features: FeatureRows, num_query: int, metric: str):
        if metric not in PLAIN_METRICS:
            raise ValueError(f"metric is {metric!r}; choose one of {', '.join(PLAIN_METRICS)}.")
        self._features, self._num_query = features, num_query
        self._gallery = features.parts(num_query)
        num_gallery = len(features) - num_query
        self.queries_at_once = min(num_query, chunk_size(num_gallery, features.device))
        self._memory = torch.empty(self.queries_at_once, num_gallery, device=features.device)
        self._squares = _squares(self._gallery) if metric == "euclidean" else None  # (G,)
        self._zero_distance = 0.0 if metric == "euclidean" else 1.0

    @torch.no_grad()
    def __call__(self, start: int, stop: int) -> Tensor:
        queries = self._features.matrix(start, stop)
        result = self._memory[: stop - start]
        columns = result.split([len(part) for part in self._gallery], dim=1)
        if self._squares is None:
            for part, column in zip(self._gallery, columns):
                torch.mm(queries, part.t(), out=column)
            return result
        torch.add(_squares([queries])[:, None], self._squares, out=result)
        for part, column in zip(self._gallery, columns):
            column.addmm_(queries, part.t(), alpha=-2)
        return result.neg_()

    def distances(self, start: int, stop: int) -> Tensor:
        """As a call, in fastreid's distance."""
        return self(start, stop).neg_().add_(self._zero_distance)


def _squares(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.square().sum(dim=1) for part in parts])
