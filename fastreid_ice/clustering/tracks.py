"""What a tracker knows, as a constraint on any clustering.

Must-link: the images of one track show one person. A track is clustered as one row, the mean of its images' features,
and all its images get the label of that row, whatever the method is.

Cannot-link: two tracks of one camera that are seen at the same time show two people. The clusters found are split
afterwards where they hold such tracks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

NONE, MUST_LINK, MUST_AND_CANNOT_LINK = TRACK_MODES = ("none", "must_link", "must_and_cannot_link")


@dataclass(frozen=True)
class Tracks:
    """The tracks to which images belong.

    Attributes:
        ids: (N,) int64 on the CPU, tracks, -1 for an image of no track. A track is of one camera.
        cameras: (N,) int64 on the CPU, or None where they are not known.
        frames: (N,) int64 on the CPU, number of the camera's frame from which the image was cut, or None.
    """

    ids: Tensor
    cameras: Tensor | None = None
    frames: Tensor | None = None

    def __post_init__(self) -> None:
        for what, values in (("cameras", self.cameras), ("frames", self.frames)):
            if values is not None and len(values) != len(self.ids):
                raise ValueError(f"There are {len(self.ids)} track ids, but {len(values)} {what}.")
        if self.cameras is not None:
            tracked = self.ids >= 0
            pairs = torch.stack([self.ids[tracked], self.cameras[tracked]]).unique(dim=1)
            several = int(pairs.shape[1]) - int(pairs[0].unique().numel())
            if several:
                raise ValueError(f"{several} tracks have images of several cameras; a track is of one camera.")

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, images: Tensor | np.ndarray | Sequence[int]) -> Tracks:
        """The tracks of some of the images."""
        chosen = torch.as_tensor(images)
        cameras = None if self.cameras is None else self.cameras[chosen]
        return Tracks(self.ids[chosen], cameras, None if self.frames is None else self.frames[chosen])


def check_tracks(mode: str, tracks: Tracks | None) -> None:
    """Check that the images have what CLUSTERING.TRACKS asks for.

    Raises:
        ValueError: they have not; with the key that would give it.
    """
    if mode == NONE:
        return
    if tracks is None or not bool((tracks.ids >= 0).any()):
        raise ValueError(
            f"CLUSTERING.TRACKS is {mode!r}, but the training images have no tracks. Say where they are from with "
            "DATASETS.FOLDER.TRACK_FROM, or set CLUSTERING.TRACKS none."
        )
    if mode == MUST_AND_CANNOT_LINK and (tracks.cameras is None or tracks.frames is None):
        lacking = (
            "cameras (DATASETS.FOLDER.CAMERA_FROM)"
            if tracks.cameras is None
            else ("frame numbers (a group frame in DATASETS.FOLDER.PATTERN, or a column frame in DATASETS.FOLDER.CSV)")
        )
        raise ValueError(
            f"CLUSTERING.TRACKS is {mode!r}, but the training images have no {lacking}. Without them only "
            f"CLUSTERING.TRACKS {MUST_LINK} is possible."
        )


@dataclass(frozen=True)
class TrackRows:
    """The rows that are clustered: a track each, or an image of no track; numbered by their first image.

    Attributes:
        of_image: (N,) int64 on the CPU, row of each image.
        first_image: (R,) int64 on the CPU, first image of each row.
    """

    of_image: Tensor
    first_image: Tensor

    def __len__(self) -> int:
        return len(self.first_image)

    def mean(self, features: Tensor) -> Tensor:
        """(N, D) float32 unit rows of the images -> (R, D) float32, the means at unit length, on the same device.

        A row of one image is that image's, bit for bit. The sum runs in the order of the images, on any device.
        """
        order = self.of_image.argsort(stable=True).to(features.device)
        lengths = torch.bincount(self.of_image, minlength=len(self)).to(features.device)
        sums = torch.segment_reduce(features[order], "sum", lengths=lengths, axis=0, unsafe=True)  # (R, D)
        single = lengths[:, None] == 1
        return torch.where(single, sums, F.normalize(sums, dim=1))


def track_rows(ids: Tensor) -> TrackRows:
    """Number tracks, and images of no track, by their first image.

    Args:
        ids: (N,) int64 tracks, -1 for none.

    Example:
        >>> rows = track_rows(torch.tensor([7, -1, 7, 3, -1]))
        >>> rows.of_image.tolist(), rows.first_image.tolist()
        ([0, 1, 0, 2, 3], [0, 1, 3, 4])
    """
    keys = ids.numpy().copy()
    alone = keys < 0
    keys[alone] = keys.max(initial=0) + 1 + np.arange(alone.sum())
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = first.argsort()
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return TrackRows(torch.from_numpy(rank[inverse.reshape(-1)]), torch.from_numpy(first[order]))


@dataclass(frozen=True)
class Spans:
    """When and where the tracks of R rows are seen: from their first to their last frame, both included.

    Attributes:
        cameras: (R,) int64, -1 for an image of no track, which is seen together with nothing.
        first: (R,) int64 frames.
        last: (R,) int64 frames.
    """

    cameras: np.ndarray
    first: np.ndarray
    last: np.ndarray

    def subset(self, rows: np.ndarray) -> Spans:
        """The spans of some rows."""
        return Spans(self.cameras[rows], self.first[rows], self.last[rows])

    def meets(self, row: int) -> np.ndarray:
        """(R,) bool: which rows are seen by the same camera at the same time as this one, itself included."""
        same = (self.cameras == self.cameras[row]) & (self.cameras >= 0)
        return same & (self.first <= self.last[row]) & (self.last >= self.first[row])


def track_spans(tracks: Tracks, rows: TrackRows) -> Spans:
    """The spans of the rows of tracks with cameras and frames."""
    assert tracks.cameras is not None and tracks.frames is not None
    first = torch.full((len(rows),), torch.iinfo(torch.int64).max)
    first = first.scatter_reduce(0, rows.of_image, tracks.frames, "amin")
    last = torch.full((len(rows),), torch.iinfo(torch.int64).min)
    last = last.scatter_reduce(0, rows.of_image, tracks.frames, "amax")
    cameras = torch.where(tracks.ids >= 0, tracks.cameras, -1)[rows.first_image]
    return Spans(cameras.numpy(), first.numpy(), last.numpy())


def conflicting_clusters(labels: np.ndarray, spans: Spans) -> np.ndarray:
    """The clusters that hold two tracks seen by one camera at the same time.

    Sorted by their first frame, tracks of one camera overlap if and only if two that follow each other do.

    Args:
        labels: (R,) int64, -1 = outlier.
        spans: of the R rows.

    Returns:
        Labels, ascending.

    Example:
        >>> spans = Spans(np.array([0, 0, 0]), np.array([1, 5, 6]), np.array([5, 9, 7]))
        >>> conflicting_clusters(np.array([0, 0, 1]), spans).tolist()
        [0]
    """
    order = np.lexsort((spans.first, spans.cameras, labels))
    before, after = order[:-1], order[1:]
    together = (labels[before] == labels[after]) & (spans.cameras[before] == spans.cameras[after])
    constrained = (labels[before] >= 0) & (spans.cameras[before] >= 0)
    overlap = spans.first[after] <= spans.last[before]
    return np.unique(labels[before][together & constrained & overlap])


def separate_tracks(features: np.ndarray, labels: np.ndarray, spans: Spans) -> np.ndarray:
    """Split the clusters that hold tracks seen by one camera at the same time; the others stay as they are.

    For each such cluster:

    1. The busiest moment is the frame of a camera at which most of its tracks are seen (the first such frame of the
       lowest camera). These tracks are different people: each begins a part.
    2. The other rows follow, those most similar to one of these tracks first, equal ones by their number. Each joins,
       of the parts that hold no track seen together with it, the one with the most similar centroid (the mean of its
       rows so far, cosine; equal ones: the earlier part). Where every part holds one, it begins another part.

    The first part keeps the cluster's label, the others get new ones behind the last.

    Args:
        features: (R, D) float32 rows of length 1.
        labels: (R,) int64, -1 = outlier; outliers stay outliers.
        spans: of the R rows.

    Returns:
        (R,) int64 labels without gaps, if ``labels`` had none.
    """
    separated = labels.copy()
    next_label = int(labels.max(initial=-1)) + 1
    for label in conflicting_clusters(labels, spans):
        rows = np.flatnonzero(labels == label)
        parts = _parts(features[rows], spans.subset(rows))
        separated[rows] = np.where(parts == 0, label, next_label + parts - 1)
        next_label += int(parts.max())
    return separated


def _parts(features: np.ndarray, spans: Spans) -> np.ndarray:
    """(r,) part of each row of one cluster, from 0."""
    seeds = _busiest(spans)
    parts = np.full(len(features), -1)
    parts[seeds] = np.arange(len(seeds))
    sums = features[seeds].astype(np.float64)  # a part each, and room for more
    lengths = np.linalg.norm(sums, axis=1)
    found = len(seeds)
    nearest = (features @ features[seeds].T).max(axis=1)
    others = np.flatnonzero(parts < 0)
    for row in others[np.argsort(-nearest[others], kind="stable")]:
        similarity = sums[:found] @ features[row] / np.maximum(lengths[:found], 1e-12)
        taken = parts[spans.meets(row) & (parts >= 0)]
        similarity[taken] = -np.inf
        part = int(similarity.argmax())
        if similarity[part] == -np.inf:
            part = found
            found += 1
            if found > len(sums):
                sums, lengths = np.concatenate([sums, np.zeros_like(sums)]), np.concatenate([lengths, lengths])
        parts[row] = part
        sums[part] += features[row]
        lengths[part : part + 1] = np.linalg.norm(sums[part : part + 1], axis=1)
    return parts


def _busiest(spans: Spans) -> np.ndarray:
    """The rows seen at the moment at which most are seen; such a moment begins with one of them."""
    best = np.array([], dtype=np.int64)
    for camera in np.unique(spans.cameras[spans.cameras >= 0]):
        rows = np.flatnonzero(spans.cameras == camera)
        starts = np.sort(spans.first[rows])
        begun = np.searchsorted(starts, starts, side="right")
        ended = np.searchsorted(np.sort(spans.last[rows]), starts, side="left")
        moment = starts[(begun - ended).argmax()]
        seen = rows[(spans.first[rows] <= moment) & (spans.last[rows] >= moment)]
        best = seen if len(seen) > len(best) else best
    return best
