"""A map of embeddings: images that the model finds similar lie close together."""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from fastreid_ice.report.axes import COLOURS, save_figure

logger = logging.getLogger(__name__)

PROJECTIONS = ("tsne", "pca", "umap")
NAMES = {"tsne": "t-SNE", "pca": "PCA", "umap": "UMAP"}
MARKERS = "osD^vP"  # 8 colours x 6 markers: colour alone tells nothing
MOST_DIMENSIONS = 50  # to which PCA reduces before t-SNE, as its authors do
PERPLEXITY = 30.0
OUTLIER_COLOUR = "#8a8f98"


def project(features: np.ndarray, projection: str = "tsne", seed: int = 0) -> np.ndarray:
    """Embeddings on a plane.

    Args:
        features: (M, D) float.
        projection: "tsne" (neighbours stay neighbours; distances between groups mean little), "pca" (the two
            directions of most variance) or "umap" (needs the package umap-learn).
        seed: of t-SNE and UMAP.

    Returns:
        (M, 2) float64. Fewer than 4 images, or images that are all the same, of which t-SNE and UMAP make nothing, are
        projected by PCA.

    Raises:
        ValueError: no image, features that are not finite, or another projection.
        RuntimeError: UMAP is not installed.
    """
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or features.size == 0 or not np.isfinite(features).all():
        raise ValueError(f"A map needs finite features of shape (M, D), found the shape {features.shape}.")
    if projection not in PROJECTIONS:
        raise ValueError(f"projection is {projection!r}; choose one of {', '.join(PROJECTIONS)}.")
    if projection == "pca" or len(features) < 4 or not np.ptp(features, axis=0).any():
        return _pca(features, 2)
    reduced = _pca(features, min(MOST_DIMENSIONS, max(2, features.shape[1])))
    if projection == "umap":
        return _umap(reduced, seed)
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced).astype(np.float64)


def _pca(features: np.ndarray, dimensions: int) -> np.ndarray:
    """(M, dimensions): the directions of most variance; zeros where there are not so many."""
    found = np.zeros((len(features), dimensions))
    if len(features) > 1 and np.ptp(features, axis=0).any():
        components = min(dimensions, *features.shape)
        found[:, :components] = PCA(components, svd_solver="full").fit_transform(features)
    return found


def _umap(features: np.ndarray, seed: int) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of one thread because of the seed, and of what UMAP could use but is not there
        try:
            umap = importlib.import_module("umap")
        except ImportError:
            raise RuntimeError("UMAP is not installed: pip install umap-learn, or choose the projection tsne") from None
        points = umap.UMAP(n_neighbors=min(15, len(features) - 1), random_state=seed).fit_transform(features)
    return np.asarray(points, dtype=np.float64)


def sample_rows(images: int, most: int, seed: int = 0) -> np.ndarray:
    """(M,) int64, ascending: all images, or ``most`` of them drawn at random, each as likely as any other."""
    if images <= most:
        return np.arange(images)
    return np.sort(np.random.default_rng(seed).choice(images, most, replace=False))


def embedding_map(
    features: np.ndarray,
    out_path: str | os.PathLike,
    *,
    labels: Sequence[int] | np.ndarray | None = None,
    cameras: Sequence[int] | np.ndarray | None = None,
    identities: Sequence[int] | np.ndarray | None = None,
    projection: str = "tsne",
    title: str | None = None,
) -> Path:
    """Draw the map of M embeddings, a panel for each of clusters, cameras and true identities that are given.

    Args:
        features: (M, D) float.
        out_path: file to write; its ending chooses the format.
        labels: (M,) pseudo labels, -1 = outlier.
        cameras, identities: (M,) numbers.
        projection: see :func:`project`.
        title: drawn above the panels.

    Returns:
        ``out_path``.

    Raises:
        ValueError: lengths differ, or nothing to colour by is given; and as :func:`project`.
    """
    groups = {"Clusters": labels, "Cameras": cameras, "True identities": identities}
    known = {name: np.asarray(values) for name, values in groups.items() if values is not None}
    for name, values in known.items():
        if len(values) != len(features):
            raise ValueError(f"{name} of {len(values)} images, but features of {len(features)}.")
    if not known:
        raise ValueError("A map needs labels, cameras or identities to colour by.")
    points = project(features, projection)
    figure = Figure(figsize=(5.2 * len(known), 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title or f"{len(points):,} images, {NAMES[projection]}", fontsize=12)
    for axes, (name, values) in zip(figure.subplots(1, len(known), squeeze=False).flat, known.items()):
        draw_map(axes, points, values, name)
    save_figure(figure, out_path)
    logger.info("Wrote the map of %d embeddings to %s", len(points), out_path)
    return Path(out_path)


def map_figure(points: np.ndarray, groups: np.ndarray, name: str) -> Figure:
    """A panel of its own, see :func:`draw_map`."""
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    draw_map(figure.subplots(), points, groups, name)
    return figure


def draw_map(axes: Axes, points: np.ndarray, groups: np.ndarray, name: str) -> None:
    """Draw points (M, 2), each group (M,) with its colour and marker; group -1 as small grey crosses below the others.

    The groups are named in a legend where there are at most 8.
    """
    values = np.unique(groups)
    for group in values:
        chosen = points[groups == group]
        if group < 0:
            style: dict[str, Any] = {"marker": "x", "s": 9, "linewidths": 0.8, "color": OUTLIER_COLOUR, "zorder": 1}
        else:
            marker = MARKERS[int(group) // len(COLOURS) % len(MARKERS)]
            style = {
                "marker": marker,
                "s": 13,
                "linewidths": 0,
                "color": COLOURS[int(group) % len(COLOURS)],
                "zorder": 2,
            }
        # points as pixels, also within a vector graphic: thousands of them stay small
        axes.scatter(chosen[:, 0], chosen[:, 1], alpha=0.85, rasterized=True, label=f"{group}", **style)
    axes.set_title(
        f"{name}: {(values >= 0).sum():,}" + (", grey: outliers" if values[0] < 0 else ""), fontsize=11, loc="left"
    )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    if len(values) <= len(COLOURS):
        axes.legend(fontsize=8, framealpha=0.6, edgecolor="none", loc="best", title=name.lower(), title_fontsize=8)
