"""What a report of a run is made from: plain values, whoever collected them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastreid_ice.report.ranking_sheet import MARKS


@dataclass(frozen=True)
class RankingExample:
    """A query and what was found for it, the most similar first; what the protocol leaves out is not in the list.

    Attributes:
        dataset: name of the test set.
        query: image file.
        query_camera: its camera.
        found: k image files.
        cameras: (k,) their cameras.
        similarities: (k,) cosine similarity to the query.
        marks: (k,) "right", "wrong" or "unknown".
        matches: number of right images in the whole gallery; 0 for a query that the scores leave out.
        average_precision: over the whole gallery, in [0, 1]; None without matches.
    """

    dataset: str
    query: str
    query_camera: int
    found: Sequence[str]
    cameras: Sequence[int]
    similarities: Sequence[float]
    marks: Sequence[str]
    matches: int = 0
    average_precision: float | None = None

    def __post_init__(self) -> None:
        for name in ("cameras", "similarities", "marks"):
            if len(getattr(self, name)) != len(self.found):
                raise ValueError(f"{name} has {len(getattr(self, name))} entries, but {len(self.found)} were found.")
        strange = sorted(set(self.marks) - set(MARKS))
        if strange:
            raise ValueError(f"There is no mark {strange[0]!r}; choose among {', '.join(MARKS)}.")


@dataclass(frozen=True)
class ReportData:
    """A run, as far as it is known; every part may be missing.

    Attributes:
        title: of the page.
        records: rows of ``results.json``, one per epoch, each with ``epoch``.
        paths: N training images.
        labels: (N,) int64 pseudo labels of the last clustering, -1 = outlier.
        cameras: (N,) int64, or None where they are not used.
        identities: (N,) int64 true identities, or None where they are not known.
        features: (M, D) float32, L2-normalised, of the images ``featured``; None if none were extracted.
        featured: (M,) int64 indices into ``paths``; None where the features are those of all N images in order.
        rankings: examples of queries.
        tests: names of the test sets, as in ``DATASETS.TESTS``.
        config: the whole config, nested; empty if it is not known.
        manifest: content of ``run.json``, see :mod:`fastreid_ice.report.manifest`; None for a run without.
        notes: for "map" and "ranking" why it is missing.

    Raises:
        ValueError: lengths differ, or a record has no ``epoch``.
    """

    title: str
    records: Sequence[Mapping[str, Any]] = ()
    paths: Sequence[str] = ()
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    cameras: np.ndarray | None = None
    identities: np.ndarray | None = None
    features: np.ndarray | None = None
    featured: np.ndarray | None = None
    rankings: Sequence[RankingExample] = ()
    tests: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] | None = None
    notes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("labels", "cameras", "identities"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.paths):
                raise ValueError(f"{name} has {len(values)} entries, but there are {len(self.paths)} paths.")
        rows = self.paths if self.featured is None else self.featured
        if self.features is not None and (self.features.ndim != 2 or len(self.features) != len(rows)):
            raise ValueError(f"features has the shape {self.features.shape}, but {len(rows)} rows are needed.")
        for record in self.records:
            if "epoch" not in record:
                raise ValueError(f"A record has the keys {sorted(record)}, but needs 'epoch' as well.")

    @property
    def num_clusters(self) -> int:
        return len(set(self.labels[self.labels >= 0].tolist()))

    @property
    def num_outliers(self) -> int:
        return int((self.labels < 0).sum())

    def rows_of_features(self) -> np.ndarray:
        """(M,) which images the features are of."""
        return np.arange(len(self.paths)) if self.featured is None else np.asarray(self.featured)
