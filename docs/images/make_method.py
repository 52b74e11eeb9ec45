"""Draws docs/images/method.png, the figure of the method in the README.

Usage: python docs/images/make_method.py [OUT]
"""

import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, FAINT = "#22252b", "#5d636e"
DATA, ENCODER, MOMENTUM, CLUSTER, MEMORY, LOSS = "#eef0f3", "#d7e6f6", "#dcefe2", "#fbead2", "#ece2f4", "#f8dcdc"
EDGES = {
    DATA: "#8b919c",
    ENCODER: "#2563a8",
    MOMENTUM: "#3a8f5c",
    CLUSTER: "#d08a2c",
    MEMORY: "#8a4f9e",
    LOSS: "#b83b42",
}


def box(axes, x, y, width, height, title, detail="", fill=DATA):
    """A rounded box with its lower left corner at (x, y)."""
    style = "round,pad=0,rounding_size=0.8"
    axes.add_patch(FancyBboxPatch((x, y), width, height, style, facecolor=fill, edgecolor=EDGES[fill], linewidth=1.4))
    middle = x + width / 2
    shift = (1.15 if "\n" not in detail else 1.9) if detail else 0
    axes.text(middle, y + height / 2 + shift, title, ha="center", va="center", color=INK, fontsize=10, weight="bold")
    if detail:
        low = y + height / 2 - (1.35 if "\n" not in detail else 1.2)
        axes.text(middle, low, detail, ha="center", va="center", color=FAINT, fontsize=8.5, linespacing=1.25)


def arrow(axes, points, colour=INK, dashed=False):
    """A polyline through points, with a head at its end."""
    for start, end in zip(points[:-2], points[1:-1]):
        axes.plot(*zip(start, end), color=colour, linewidth=1.4, linestyle="--" if dashed else "-")
    axes.add_patch(
        FancyArrowPatch(
            points[-2],
            points[-1],
            arrowstyle="-|>",
            mutation_scale=12,
            color=colour,
            linewidth=1.4,
            linestyle="--" if dashed else "-",
            shrinkA=0,
            shrinkB=0,
        )
    )


def draw_epoch(axes):
    """The upper half: clustering before an epoch."""
    axes.text(2, 58.2, "Before every epoch: cluster", fontsize=12, weight="bold", color=INK, va="center")
    box(axes, 2, 46, 15, 8, "All images", "weak view")
    box(axes, 22, 46, 18, 8, "Momentum encoder", "evaluation mode", MOMENTUM)
    box(axes, 45, 46, 20, 8, "Jaccard + DBSCAN", "k-reciprocal neighbours", CLUSTER)
    box(axes, 70, 46, 18, 8, "Pseudo labels", "\u22121 = outlier, left out", CLUSTER)
    box(axes, 93, 46, 25, 8, "Memory", "cluster centroids, camera proxies", MEMORY)
    for start, end in ((17, 22), (40, 45), (65, 70), (88, 93)):
        arrow(axes, [(start, 50), (end, 50)])


def draw_step(axes):
    """The lower half: one training step."""
    axes.text(11, 37.8, "Every step: contrast", fontsize=12, weight="bold", color=INK, va="center")
    box(axes, 2, 14, 13, 11, "Batch", "K images each of\nseveral clusters")
    for y, name in ((28, "Strong view 1"), (16.5, "Strong view 2"), (5, "Weak view")):
        box(axes, 21, y, 14, 6, name)
        arrow(axes, [(15, 19.5), (18, 19.5), (18, y + 3), (21, y + 3)])
    box(axes, 42, 27, 19, 8, "Online encoder", "learns by gradient", ENCODER)
    box(axes, 42, 5, 19, 17.5, "Momentum encoder", "no gradient", MOMENTUM)
    arrow(axes, [(35, 31), (42, 31)])
    arrow(axes, [(35, 19.5), (42, 19.5)])
    arrow(axes, [(35, 8), (42, 8)])
    arrow(axes, [(47, 27), (47, 22.5)], EDGES[MOMENTUM], dashed=True)
    axes.text(48, 24.75, "moving average (EMA)", fontsize=8.5, color=EDGES[MOMENTUM], va="center")
    for y, name, fill in ((28, "query", ENCODER), (16.5, "key", MOMENTUM), (5, "weak", MOMENTUM)):
        box(axes, 67, y, 9, 6, name, fill=fill)
        arrow(axes, [(61, y + 3), (67, y + 3)])


def draw_losses(axes):
    """The four losses, and what each of them sees."""
    losses = (
        (30.5, "Proxy-agnostic", "query \u2194 centroids"),
        (22.0, "Cross-camera proxy", "query \u2194 camera proxies of its cluster"),
        (13.5, "Hard instance", "query \u2194 least similar key of its cluster"),
        (5.0, "Soft instance", "query, key: as similar as the weak views"),
    )
    for y, name, detail in losses:
        box(axes, 89, y, 29, 7, name, detail, LOSS)
    colours = {"query": EDGES[ENCODER], "momentum": EDGES[MOMENTUM], "memory": EDGES[MEMORY]}
    # The query goes to all four losses.
    arrow(axes, [(76, 31), (80, 31), (80, 34.8), (89, 34.8)], colours["query"])
    for y in (26.0, 18.3, 9.9):
        arrow(axes, [(80, 34.8), (80, y), (89, y)], colours["query"])
    # Keys go to the instance losses, weak features to the soft one.
    arrow(axes, [(76, 19.5), (84, 19.5), (84, 16.2), (89, 16.2)], colours["momentum"])
    arrow(axes, [(84, 19.5), (84, 8.4), (89, 8.4)], colours["momentum"])
    arrow(axes, [(76, 7), (89, 7)], colours["momentum"])
    # The memory serves the proxy losses.
    arrow(axes, [(105.5, 46), (105.5, 41.5), (121.5, 41.5), (121.5, 34), (118, 34)], colours["memory"])
    arrow(axes, [(121.5, 41.5), (121.5, 25.5), (118, 25.5)], colours["memory"])
    # The pseudo labels choose the batch.
    arrow(axes, [(79, 46), (79, 41.5), (8.5, 41.5), (8.5, 25)], EDGES[CLUSTER])
    axes.text(44, 42.4, "sampled by pseudo label and camera", fontsize=8.5, color=EDGES[CLUSTER], ha="center")


def main(out):
    """Draw the figure into the file ``out``."""
    figure = Figure(figsize=(12.5, 6.2), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(-0.5, 124.5)
    axes.set_ylim(2, 61)
    axes.axis("off")
    axes.add_patch(
        FancyBboxPatch((0, 44), 120, 12, "round,pad=0,rounding_size=1", facecolor="#f8f9fa", edgecolor="none")
    )
    draw_epoch(axes)
    draw_step(axes)
    draw_losses(axes)
    figure.savefig(out, dpi=110, facecolor="white")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("method.png"))
