"""How eps and min_samples change the clusters of given features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import silhouette_score
from torch import Tensor

from fastreid_ice.clustering.ca_jaccard import NAME as CA_JACCARD
from fastreid_ice.clustering.config import ClusteringConfig
from fastreid_ice.clustering.prepare import prepare_features
from fastreid_ice.clustering.quality import agreement, summarize
from fastreid_ice.clustering.stages import dbscan, jaccard_distances, k_reciprocal_encoding, nearest_neighbors
from fastreid_ice.clustering.tracks import (
    MUST_AND_CANNOT_LINK,
    NONE,
    Tracks,
    check_tracks,
    separate_tracks,
    track_rows,
    track_spans,
)

SILHOUETTE_IMAGES = 5000  # more are sampled: it compares all pairs


@dataclass(frozen=True)
class SweepRow:
    """The clustering of one pair of values; NaN where a number is not defined.

    Attributes:
        eps: CLUSTERING.EPS.
        min_samples: CLUSTERING.MIN_SAMPLES.
        clusters: number of clusters.
        outliers: images in none, in percent.
        largest: images in the largest cluster, in percent.
        silhouette: mean over the images in clusters, cosine distances, in [-1, 1]; of a seeded sample above 5,000.
        neighbour_stability: mean :func:`agreement` with the labels of the next smaller and next larger eps.
        subsample_stability: mean :func:`agreement` of the labels of random parts of the images, clustered alone, with
            their labels in the whole.
        ari: adjusted Rand index against the true identities, each outlier a cluster of its own; NaN without any.
    """

    eps: float
    min_samples: int
    clusters: int
    outliers: float
    largest: float
    silhouette: float
    neighbour_stability: float
    subsample_stability: float
    ari: float


def sweep(
    features: Tensor | np.ndarray,
    eps: Sequence[float],
    min_samples: Sequence[int],
    config: ClusteringConfig | None = None,
    *,
    identities: Tensor | None = None,
    tracks: Tracks | None = None,
    subsamples: int = 3,
    fraction: float = 0.8,
    seed: int = 0,
) -> list[SweepRow]:
    """Cluster with every pair of values of eps and min_samples.

    Args:
        features: (N, D), any float type.
        eps: values to try; each once, in ascending order.
        min_samples: likewise.
        config: k1, k2, tracks ...; its own eps and min_samples are not used.
        identities: (N,) int64, or None.
        tracks: of the N images; looked at where the config says so.
        subsamples: how many random parts; 0 leaves their stability undefined.
        fraction: of the images in a part, in (0, 1).
        seed: of parts and sample.

    Returns:
        A row for each pair, by min_samples and then eps.

    Raises:
        ValueError: no value, or one out of range; or camera-aware distances.
    """
    config = config or ClusteringConfig()
    check_method(config)
    eps, min_samples = sorted(set(eps)), sorted(set(min_samples))
    check_values(eps, min_samples, subsamples, fraction)
    features = prepare_features(features)
    whole = _labels_of(features, eps, min_samples, config, tracks)
    generator = np.random.default_rng(seed)
    stability = _subsample_stability(features, whole, eps, min_samples, config, tracks, subsamples, fraction, generator)
    sample = np.sort(generator.permutation(len(features))[:SILHOUETTE_IMAGES])
    distances = _cosine_distances(features[torch.from_numpy(sample).to(features.device)])
    rows = []
    for least in min_samples:
        for place, radius in enumerate(eps):
            labels = whole[radius, least]
            beside = [whole[eps[i], least] for i in (place - 1, place + 1) if 0 <= i < len(eps)]
            summary = summarize(torch.from_numpy(labels), identities)
            rows.append(
                SweepRow(
                    eps=radius,
                    min_samples=least,
                    clusters=int(summary["clusters"]),
                    outliers=100 * summary["outliers"] / len(labels),
                    largest=100 * summary["largest_cluster"] / len(labels),
                    silhouette=_silhouette(distances, labels[sample]),
                    neighbour_stability=_mean([agreement(labels, other) for other in beside]),
                    subsample_stability=stability[radius, least],
                    ari=summary.get("ari", float("nan")),
                )
            )
    return rows


def suggest(rows: Sequence[SweepRow]) -> SweepRow | None:
    """The row with the highest mean of both stabilities, of equal ones the highest silhouette.

    Rows with fewer than two clusters, with more than half of the images in one or more than half of them outliers, or
    with a silhouette of 0 or less are passed over: labels can be stable there, and of no use. None if no row is left.
    """
    useful = [row for row in rows if row.largest <= 50 and row.outliers <= 50 and row.silhouette > 0]
    if not useful:
        return None

    def worth(row: SweepRow) -> tuple[float, float]:
        stability = _mean([row.neighbour_stability, row.subsample_stability])
        return _rounded(stability), _rounded(row.silhouette)

    return max(useful, key=worth)


def check_method(config: ClusteringConfig) -> None:
    """Raise ValueError for a method whose eps is of distances that :func:`sweep` does not try."""
    if config.method == CA_JACCARD:
        raise ValueError(
            f"CLUSTERING.METHOD is {CA_JACCARD!r}, but the sweep tries the distances of jaccard_dbscan only, whose "
            "best eps is another; set CLUSTERING.METHOD jaccard_dbscan to sweep those."
        )


def check_values(eps: Sequence[float], min_samples: Sequence[int], subsamples: int, fraction: float) -> None:
    """Raise ValueError for values with which :func:`sweep` cannot work."""
    if not eps or not min_samples:
        raise ValueError("There is no value of eps or min_samples to try.")
    if not 0 < min(eps) <= max(eps) < 1:
        raise ValueError(
            f"eps goes from {min(eps):g} to {max(eps):g}; a Jaccard distance threshold lies between 0 and 1."
        )
    if min(min_samples) < 1:
        raise ValueError(f"min_samples is {min(min_samples)}; it must be at least 1.")
    if subsamples < 0:
        raise ValueError(f"The number of parts is {subsamples}; it must be 0 or more.")
    if not 0 < fraction < 1:
        raise ValueError(f"A part has the share {fraction} of the images; it must be between 0 and 1.")


def _labels_of(
    features: Tensor, eps: list[float], min_samples: list[int], config: ClusteringConfig, tracks: Tracks | None
) -> dict[tuple[float, int], np.ndarray]:
    """(eps, min_samples) -> (N,) labels. Neighbours and encoding are computed once."""
    check_tracks(config.tracks, tracks)
    linked = tracks if config.tracks != NONE else None
    rows = None if linked is None else track_rows(linked.ids)
    points = features if rows is None else rows.mean(features)
    budget = config.memory_budget_mb
    similarities, ranks = nearest_neighbors(points, config.k1, None, config.backend, budget, config.allow_tf32)
    encoding = k_reciprocal_encoding(points, ranks, similarities, config.k1, config.k2, config.backend, budget)
    found = {}
    for radius in eps:
        graph = jaccard_distances(encoding, radius, budget)
        for least in min_samples:
            labels = dbscan(graph, least).cpu().numpy()
            if linked is not None and rows is not None:
                if config.tracks == MUST_AND_CANNOT_LINK:
                    labels = separate_tracks(points.cpu().numpy(), labels, track_spans(linked, rows))
                labels = labels[rows.of_image.numpy()]
            found[radius, least] = labels
    return found


def _subsample_stability(
    features: Tensor,
    whole: dict[tuple[float, int], np.ndarray],
    eps: list[float],
    min_samples: list[int],
    config: ClusteringConfig,
    tracks: Tracks | None,
    subsamples: int,
    fraction: float,
    generator: np.random.Generator,
) -> dict[tuple[float, int], float]:
    """(eps, min_samples) -> mean agreement over the parts."""
    found: dict[tuple[float, int], list[float]] = {pair: [] for pair in whole}
    size = max(2, round(fraction * len(features)))
    for _ in range(subsamples):
        part = np.sort(generator.permutation(len(features))[:size])
        rows = torch.from_numpy(part).to(features.device)
        some = None if tracks is None else tracks.subset(part)
        for pair, labels in _labels_of(features[rows], eps, min_samples, config, some).items():
            found[pair].append(agreement(labels, whole[pair][part]))
    return {pair: _mean(values) for pair, values in found.items()}


def _cosine_distances(features: Tensor) -> np.ndarray:
    """(n, D) unit rows -> (n, n) float32 with a diagonal of exactly 0, as scikit-learn wants it."""
    distances = (1 - features @ features.t()).clamp_(min=0).fill_diagonal_(0)
    return distances.cpu().numpy()


def _silhouette(distances: np.ndarray, labels: np.ndarray) -> float:
    """NaN unless there are at least two clusters and fewer than images."""
    kept = np.flatnonzero(labels >= 0)
    clusters = len(np.unique(labels[kept]))
    if not 2 <= clusters < len(kept):
        return float("nan")
    return float(silhouette_score(distances[np.ix_(kept, kept)], labels[kept], metric="precomputed"))


def _rounded(value: float) -> float:
    """To three digits; undefined below everything."""
    return -np.inf if value != value else round(value, 3)


def _mean(values: Sequence[float]) -> float:
    """Of those that are defined; NaN if none is."""
    defined = [value for value in values if value == value]
    return float(np.mean(defined)) if defined else float("nan")
