"""The result of a sweep over eps and min_samples as a table and as a picture."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fastreid_ice.files import write_csv
from fastreid_ice.report.axes import COLOURS, save_figure, style_axes

# Title, unit, key of a row.
PANELS = (
    ("Clusters", "count", "clusters"),
    ("Outliers", "% of images", "outliers"),
    ("Silhouette", "cosine", "silhouette"),
    ("Stability: neighbouring eps", "ARI", "neighbour_stability"),
    ("Stability: parts of the images", "ARI", "subsample_stability"),
)
KNOWN, UNKNOWN = ("Agreement with true identities", "ARI", "ari"), ("Largest cluster", "% of images", "largest")


Row = Mapping[str, float]  # the values of a fastreid_ice.clustering.eps_sweep.SweepRow by their names


def write_sweep(rows: Sequence[Row], path: str | os.PathLike) -> None:
    """A line for each row, under the names of its values; undefined numbers are empty."""
    write_csv(path, rows[0], (["" if value != value else value for value in row.values()] for row in rows))


def markdown_table(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown; the column of the true identities only where they are known."""
    titles = ["eps", "min_samples", "clusters", "outliers %", "largest %", "silhouette", "stable: eps", "stable: parts"]
    known = any(row["ari"] == row["ari"] for row in rows)
    lines = [titles + ["ARI"] * known, ["--:"] * (len(titles) + known)]
    for row in rows:
        cells = [f"{row['eps']:g}", str(row["min_samples"]), str(row["clusters"])]
        cells += [f"{row['outliers']:.1f}", f"{row['largest']:.1f}"]
        stable = [row["neighbour_stability"], row["subsample_stability"]]
        numbers = [row["silhouette"], *stable] + [row["ari"]] * known
        lines.append(cells + ["" if number != number else f"{number:.3f}" for number in numbers])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def plot(rows: Sequence[Row], path: str | os.PathLike, title: str | None = None) -> Path:
    """Draw clusters, outliers, silhouette, stabilities and the ARI (if known, else the largest cluster) against eps.

    Args:
        rows: of a sweep.
        path: file to write; its ending chooses the format.
        title: drawn above.
    """
    figure = Figure(figsize=(10.5, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=12)
    last = KNOWN if any(row["ari"] == row["ari"] for row in rows) else UNKNOWN
    for axes, (name, unit, key) in zip(figure.subplots(2, 3).flat, (*PANELS, last)):
        _draw(axes, rows, name, unit, key)
    save_figure(figure, path)
    return Path(path)


def _draw(axes: Axes, rows: Sequence[Row], name: str, unit: str, key: str) -> None:
    for number, least in enumerate(sorted({row["min_samples"] for row in rows})):
        points = [(row["eps"], row[key]) for row in rows if row["min_samples"] == least]
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(*zip(*points), color=colour, label=str(least), linewidth=1.7, marker="o", markersize=3.5)
    style_axes(axes, name, "eps", unit)
    if all(row[key] != row[key] for row in rows):
        axes.text(0.5, 0.5, "not defined", transform=axes.transAxes, ha="center", va="center", color="#888888")
    elif unit in ("ARI", "% of images"):
        axes.set_ylim((-0.05, 1.05) if unit == "ARI" else (-5, 105))
    if key == "clusters":
        axes.set_ylim(bottom=0)
        axes.legend(title="min_samples", fontsize=8, title_fontsize=8, framealpha=0.6, edgecolor="none")
