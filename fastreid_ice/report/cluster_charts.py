"""Charts of a clustering: how large the clusters are, how many cameras they join, how pure they are."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fastreid_ice.report.axes import COLOURS, save_figure, style_axes
from fastreid_ice.report.wording import percent

logger = logging.getLogger(__name__)

MOST_BARS = 24
Numbers = Sequence[int]
Draw = Callable[[Axes], None]


def cluster_sizes(
    labels: Numbers | np.ndarray,
    out_path: str | os.PathLike,
    *,
    cameras: Numbers | np.ndarray | None = None,
    identities: Numbers | np.ndarray | None = None,
    title: str | None = None,
) -> Path:
    """Draw a histogram of the clusters' sizes, and where known of their cameras and of their purity.

    Args:
        labels: (N,) pseudo labels, -1 = outlier.
        out_path: file to write; its ending chooses the format.
        cameras, identities: (N,) numbers, or None.
        title: drawn above the panels; default: the counts.

    Returns:
        ``out_path``.

    Raises:
        ValueError: lengths differ, or there is no cluster.
    """
    labels = np.asarray(labels)
    panels = cluster_panels(labels, cameras, identities)
    figure = Figure(figsize=(4.6 * len(panels), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    clusters, outliers = len(np.unique(labels[labels >= 0])), int((labels < 0).sum())
    figure.suptitle(title or f"{clusters:,} clusters, {outliers:,} outliers of {len(labels):,} images", fontsize=12)
    for axes, draw in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.values()):
        draw(axes)
    save_figure(figure, out_path)
    logger.info("Wrote the sizes of %d clusters to %s", clusters, out_path)
    return Path(out_path)


def cluster_panels(
    labels: np.ndarray,
    cameras: Numbers | np.ndarray | None = None,
    identities: Numbers | np.ndarray | None = None,
) -> dict[str, Draw]:
    """What can be drawn, by its title: functions that draw into the axes they are given.

    Raises:
        ValueError: lengths differ, or there is no cluster.
    """
    for name, others in (("cameras", cameras), ("identities", identities)):
        if others is not None and len(others) != len(labels):
            raise ValueError(f"{name} has {len(others)} entries, but there are {len(labels)} labels.")
    clustered = labels >= 0
    if not clustered.any():
        raise ValueError(f"There is no cluster to draw: all {len(labels):,} images are outliers.")
    _, members, sizes = np.unique(labels[clustered], return_inverse=True, return_counts=True)
    panels: dict[str, Draw] = {
        "Images per cluster": lambda axes: _histogram(axes, sizes, "Images per cluster", "images")
    }
    if cameras is not None and len(np.unique(cameras)) > 1:
        seen = _distinct(members, np.asarray(cameras)[clustered])
        panels["Cameras per cluster"] = lambda axes: _histogram(axes, seen, "Cameras per cluster", "cameras")
    if identities is not None:
        purity = _largest_share(members, np.asarray(identities)[clustered], sizes)
        panels["Purity of the clusters"] = lambda axes: _purity(axes, purity)
    return panels


def _distinct(members: np.ndarray, values: np.ndarray) -> np.ndarray:
    """How many different values each cluster has."""
    pairs = np.unique(np.stack([members, values]), axis=1)
    return np.bincount(pairs[0])


def _largest_share(members: np.ndarray, identities: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Share of each cluster's most frequent identity, in (0, 1]."""
    pairs, counts = np.unique(np.stack([members, identities]), axis=1, return_counts=True)
    largest = np.zeros(len(sizes), dtype=np.int64)
    np.maximum.at(largest, pairs[0], counts)
    return largest / sizes


def _histogram(axes: Axes, values: np.ndarray, title: str, unit: str) -> None:
    """A bar for each whole number, or for equal ranges of them where there are many."""
    width = -(-(int(values.max()) - int(values.min()) + 1) // MOST_BARS)
    edges = np.arange(int(values.min()), int(values.max()) + width + 1, width) - 0.5
    axes.hist(values, bins=edges.tolist(), color=COLOURS[0], rwidth=0.88)
    median = f"median {np.median(values):g}, largest {values.max():,}"
    _style(axes, f"{title}: {median}", unit)


def _purity(axes: Axes, purity: np.ndarray) -> None:
    axes.hist(100 * purity, bins=list(range(0, 101, 5)), color=COLOURS[2], rwidth=0.88)
    _style(axes, f"Purity: {percent((purity == 1).mean())} of the clusters are pure", "% of the most frequent identity")


def _style(axes: Axes, title: str, unit: str) -> None:
    style_axes(axes, title, unit, "clusters", grid="y")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
