"""The look that all charts share."""

from __future__ import annotations

import os
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastreid_ice.files import replacing

# Told apart by the colour-blind, and in print.
COLOURS = ("#2563a8", "#d9772b", "#3a8f5c", "#8a4f9e", "#b03a48", "#3fa7b5", "#8c6d1f", "#555555")


def style_axes(axes: Axes, title: str, x: str, y: str, grid: Literal["both", "x", "y"] = "both") -> None:
    """Title at the left, small labels, a faint grid behind the data, no frame at the top and the right.

    Args:
        axes: changed in place.
        title: of the panel.
        x: what the horizontal axis shows.
        y: likewise the vertical one.
        grid: "x", "y" or "both": the axes whose lines are drawn.
    """
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=9)
    axes.grid(axis=grid, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write a chart as a file of its own, whole or not at all; the ending of ``path`` chooses the format."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, facecolor="white")
