"""From features to pseudo labels, with the seconds and the memory of each stage."""

from __future__ import annotations  # unions of types, on Python 3.9

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastreid_ice.camera_normalization import camera_normalized
from fastreid_ice.clustering import distributed
from fastreid_ice.clustering.config import ClusteringConfig
from fastreid_ice.clustering.costs import Costs
from fastreid_ice.clustering.methods import GROUND_TRUTH, METHODS, ImageFacts, check_cameras
from fastreid_ice.clustering.prepare import prepare_features
from fastreid_ice.clustering.tracks import (
    MUST_AND_CANNOT_LINK,
    NONE,
    TrackRows,
    Tracks,
    check_tracks,
    conflicting_clusters,
    separate_tracks,
    track_rows,
    track_spans,
)
from fastreid_ice.clustering.within_class import mapped, whitening, within_class_covariance

logger = logging.getLogger(__name__)


@dataclass
class ClusteringResult:
    """Pseudo labels and what they cost.

    Attributes:
        labels: (N,) int64 on the CPU, -1 = outlier, clusters numbered from 0 without gaps. "jaccard_dbscan" numbers
            them by their first core image.
        seconds: wall time per stage: "search", then on rank 0 "reciprocal", "jaccard", "dbscan"; or "kmeans"; or what
            another method records; empty for "ground_truth". CLUSTERING.CAMERA_NORMALIZATION adds "cameras" and
            CLUSTERING.TRACKS "tracks" before them; the latter also "separation" behind. CLUSTERING.WCCN_ROUNDS adds
            "whitening", and a stage of several rounds counts all of them.
        process_peak_mb: for the same stages, the most memory in MiB that the whole process had used from its start to
            the end of the stage, of a stage of several rounds to the end of its last: resident memory, or allocated
            memory of the accelerator where the features are on one. Without entries where the system does not tell
            (Windows).
        knn_recall: lowest share, over the ranks, of the true neighbours that an approximate search found on a
            sample (see :func:`approximate_neighbors`), in the last round; None if the search was exact.
    """

    labels: Tensor
    seconds: dict[str, float] = field(default_factory=dict)
    process_peak_mb: dict[str, float] = field(default_factory=dict)
    knn_recall: float | None = None

    @property
    def num_clusters(self) -> int:
        """Number of clusters."""
        return int(self.labels.max()) + 1

    @property
    def num_outliers(self) -> int:
        """Number of images labelled -1."""
        return int((self.labels < 0).sum())


class Clusterer:
    """Cluster the features of the training images, once per epoch.

    Holds no state between calls but its configuration, so that a resumed run clusters as an uninterrupted one.

    Note:
        A collective where torch.distributed is initialised: all ranks must call it, each with all N features. With
        "jaccard_dbscan" each rank searches the neighbours of its share of the rows. Rank 0 clusters and broadcasts the
        labels.

    Args:
        config: a ClusteringConfig, default that of ICE.
    """

    def __init__(self, config: ClusteringConfig | None = None):
        self.config = config or ClusteringConfig()

    def __call__(
        self,
        features: Tensor | np.ndarray,
        camids: Sequence[int] | np.ndarray | Tensor | None = None,
        names: Sequence[str] | None = None,
        identities: Sequence[int] | np.ndarray | Tensor | None = None,
        tracks: Tracks | None = None,
    ) -> ClusteringResult:
        """Cluster.

        Args:
            features: (N, D) tensor or array, any float type, any device; rows are normalised where they are not.
            camids: (N,) camera ids, handed to the method; of those built in "ca_jaccard_dbscan" needs them. Needed for
                CLUSTERING.CAMERA_NORMALIZATION too.
            names: N image paths for error messages.
            identities: (N,) true identities, if they are known; of the methods built in only "ground_truth" looks at
                them.
            tracks: of the N images, looked at where CLUSTERING.TRACKS says so.

        Returns:
            A ClusteringResult; the labels are the same on all ranks.

        Raises:
            ValueError: features of a wrong shape or type or with NaN or infinite values; camids, names, identities or
                tracks of another length; a method, CLUSTERING.TRACKS or CLUSTERING.CAMERA_NORMALIZATION that needs
                what is not there; a method that returns something other than labels.
        """
        on_cpu = "cpu" if self.config.backend == "numba" else None
        features = prepare_features(features, device=on_cpu, names=names)
        images = _image_facts(len(features), camids, names, identities, tracks)
        check_cameras(self.config.method, images.camids is not None)
        costs = Costs(features.device)
        if self.config.camera_normalization:
            with costs.stage("cameras"):
                features = without_cameras(features, images.camids)
        labels = self._track_labels(features, images, costs)
        return ClusteringResult(labels, costs.seconds, costs.process_peak_mb, costs.knn_recall)

    def _track_labels(self, features: Tensor, images: ImageFacts, costs: Costs) -> Tensor:
        """The labels of the images, with the tracks respected as CLUSTERING.TRACKS says."""
        check_tracks(self.config.tracks, images.tracks)
        if self.config.tracks == NONE or images.tracks is None:
            return self._labels(features, images, costs)
        with costs.stage("tracks"):
            rows = track_rows(images.tracks.ids)
            features = rows.mean(features)
        labels = self._labels(features, _facts_of_rows(images, rows), costs)
        if self.config.tracks == MUST_AND_CANNOT_LINK:
            with costs.stage("separation"):
                labels = self._separated(features, labels, images.tracks, rows)
        return labels[rows.of_image]

    def _separated(self, features: Tensor, labels: Tensor, tracks: Tracks, rows: TrackRows) -> Tensor:
        """Computed by the first rank, for the others too."""
        separated = None
        if distributed.is_first():
            spans = track_spans(tracks, rows)
            broken = conflicting_clusters(labels.numpy(), spans)
            separated = torch.from_numpy(separate_tracks(features.cpu().numpy(), labels.numpy(), spans))
            logger.info(
                "Tracks: %d of %d clusters held tracks that one camera sees at the same time; %d clusters without",
                len(broken),
                int(labels.max()) + 1,
                int(separated.max()) + 1,
            )
        if distributed.in_group():
            return distributed.broadcast_labels(separated, len(labels))
        assert separated is not None
        return separated

    def _labels(self, features: Tensor, images: ImageFacts, costs: Costs) -> Tensor:
        """The labels of all rows, after the rounds that CLUSTERING.WCCN_ROUNDS asks for."""
        labels = self._method_labels(features, images, costs)
        rounds = 0 if self.config.method == GROUND_TRUTH else self.config.wccn_rounds  # which no features change
        for _ in range(rounds):
            if not bool((labels >= 0).any()):
                break
            labels = self._method_labels(self._whitened(features, labels, costs), images, costs)
        return labels

    def _whitened(self, features: Tensor, labels: Tensor, costs: Costs) -> Tensor:
        """By the map that the first rank computes: the others' may differ in the last bit. As they are where unused."""
        with costs.stage("whitening"):
            matrix = None
            if distributed.is_first():
                matrix = whitening(within_class_covariance(features, labels), self.config.wccn_shrinkage).cpu()
            if not METHODS[self.config.method].collective:
                return features if matrix is None else mapped(features, matrix)
            if distributed.in_group():
                sent = None if matrix is None else [matrix.numpy()]
                matrix = torch.from_numpy(distributed.broadcast_arrays(sent)[0])
            assert matrix is not None
            return mapped(features, matrix)

    def _method_labels(self, features: Tensor, images: ImageFacts, costs: Costs) -> Tensor:
        """The method's labels of all rows, checked, the same on all ranks."""
        method = METHODS[self.config.method]
        labels = None
        if method.collective or distributed.is_first():
            found = method.cluster(features, images, self.config, costs)
            if distributed.is_first():
                labels = checked_labels(found, len(features), self.config.method)
        if distributed.in_group():
            return distributed.broadcast_labels(labels, len(features))
        assert labels is not None
        return labels


def without_cameras(features: Tensor, camids: Tensor | None) -> Tensor:
    """The features as CLUSTERING.CAMERA_NORMALIZATION has them clustered.

    Args:
        features: (N, D) float32.
        camids: (N,) int64, or None where they are not known or not to be used.

    Returns:
        (N, D) float32 rows of unit length.

    Raises:
        ValueError: no camera ids.
    """
    if camids is None:
        raise ValueError("CLUSTERING.CAMERA_NORMALIZATION needs camera ids, and there are none; set it False.")
    return camera_normalized(features, camids)


def checked_labels(labels: Any, images: int, method: str) -> Tensor:
    """Check what a method returned.

    Args:
        labels: (N,) tensor or array of integers, -1 = outlier.
        images: N.
        method: its name, for the message.

    Returns:
        (N,) int64 on the CPU. Clusters keep their order and are renumbered without gaps.

    Raises:
        ValueError: it is something else.

    Example:
        >>> checked_labels(np.array([7, -1, 3, 7]), 4, "mine").tolist()
        [1, -1, 0, 1]
    """
    if not isinstance(labels, (Tensor, np.ndarray)):
        raise ValueError(
            f"The clustering method {method!r} returned {type(labels).__name__}; labels are a tensor or an array."
        )
    labels = torch.as_tensor(labels).detach().cpu()
    if labels.shape != (images,):
        raise ValueError(
            f"The clustering method {method!r} returned labels of shape {tuple(labels.shape)}; it must be ({images},): "
            "a label for each image."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(
            f"The clustering method {method!r} returned labels of type {labels.dtype}; they must be integers."
        )
    labels = labels.long()
    if int(labels.min()) < -1:
        raise ValueError(
            f"The clustering method {method!r} returned the label {int(labels.min())}; labels are 0, 1, ..., "
            "and -1 for an outlier."
        )
    values, dense = labels.unique(return_inverse=True)
    return dense - int(values[0] == -1)


def _image_facts(
    images: int,
    camids: Sequence[int] | np.ndarray | Tensor | None,
    names: Sequence[str] | None,
    identities: Sequence[int] | np.ndarray | Tensor | None,
    tracks: Tracks | None = None,
) -> ImageFacts:
    """Put together what is known about the images; a list of another length is an error."""
    for what, values in (("camera ids", camids), ("names", names), ("identities", identities), ("tracks", tracks)):
        if values is not None and len(values) != images:
            raise ValueError(f"Clustering got {images} features but {len(values)} {what}.")
    return ImageFacts(
        camids=None if camids is None else torch.as_tensor(camids).cpu().long(),
        identities=None if identities is None else torch.as_tensor(identities).cpu().long(),
        names=None if names is None else tuple(names),
        tracks=tracks,
    )


def _facts_of_rows(images: ImageFacts, rows: TrackRows) -> ImageFacts:
    """What is known of the first image of each row."""
    first = rows.first_image
    return ImageFacts(
        camids=None if images.camids is None else images.camids[first],
        identities=None if images.identities is None else images.identities[first],
        names=None if images.names is None else tuple(images.names[i] for i in first.tolist()),
    )


def cluster_features(
    features: Tensor | np.ndarray,
    k1: int = 30,
    k2: int = 6,
    eps: float = 0.55,
    min_samples: int = 4,
    device: torch.device | str | None = None,
) -> Tensor:
    """Cluster features into pseudo labels, as ICE does before each epoch.

    Args:
        features: (N, D) tensor or array, any float type; rows are normalised where they are not.
        k1: length of a neighbour list, the image itself included.
        k2: rows averaged by the query expansion.
        eps: largest Jaccard distance between two DBSCAN neighbours.
        min_samples: images within eps, itself included, that make an image a core image.
        device: where to cluster; default where the features are.

    Returns:
        (N,) int64 labels on the CPU, -1 = outlier, clusters numbered by their first core image.

    Raises:
        ValueError: NaN or infinite features (names the image), a wrong shape, or a parameter out of range.

    Example:
        >>> points = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [0.01, 1.0], [-1.0, -1.0]])
        >>> cluster_features(points, k1=2, k2=1, min_samples=2).tolist()
        [0, 0, 1, 1, -1]
    """
    config = ClusteringConfig(k1=k1, k2=k2, eps=eps, min_samples=min_samples)
    return Clusterer(config)(prepare_features(features, device)).labels
