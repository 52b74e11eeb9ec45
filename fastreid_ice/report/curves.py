"""Curves of a training run, epoch by epoch."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fastreid_ice.report.axes import COLOURS, save_figure, style_axes

logger = logging.getLogger(__name__)

Lines = tuple[tuple[str, str], ...]  # key of a record, name in the legend

# Panel: title, unit of the vertical axis, lines. Every other ``loss_*`` of the records joins the panel of the losses.
AGREEMENT, LOSSES = "Agreement of the clusters", "Losses"
PANELS: tuple[tuple[str, str, Lines], ...] = (
    ("Retrieval", "%", (("mAP", "mAP"), ("Rank-1", "Rank-1"))),
    ("Clusters", "count", (("clusters", "clusters"), ("outliers", "outliers"))),
    (AGREEMENT, "", (("nmi", "NMI"), ("ari", "ARI"), ("stability", "ARI with those before"))),
    (
        LOSSES,
        "",
        (
            ("loss_agnostic", "agnostic"),
            ("loss_cross_camera", "cross-camera"),
            ("loss_hard_instance", "hard instance"),
            ("loss_soft_instance", "soft instance"),
        ),
    ),
)
# With the second round of COLOURS the lines are dashed, and so on.
DASHES = ("-", "--", ":", "-.")


def training_curves(
    records: Sequence[Mapping[str, float]],
    out_path: str | os.PathLike,
    *,
    true_identities: int | None = None,
    title: str | None = None,
) -> Path:
    """Draw accuracy, clusters, agreement with the truth, and losses against the epoch.

    Args:
        records: one mapping per epoch with ``epoch`` and any of the keys in ``PANELS`` and ``loss_<name>`` of other
            losses, in any order. A key that is missing in some epochs leaves the line unbroken between the others;
            one that is missing in all leaves the line out. mAP and Rank-1 in percent. Records of clusters without
            nmi and ari, and no ``true_identities``, mean that the identities are unknown.
        out_path: file to write; its ending chooses the format.
        true_identities: drawn as a dashed line beside the clusters.
        title: drawn above the panels.

    Returns:
        ``out_path``.

    Raises:
        ValueError: no records, or one without ``epoch``.
    """
    if len(records) == 0:
        raise ValueError("There are no records to draw: records is empty.")
    for record in records:
        if "epoch" not in record:
            raise ValueError(f"A record has the keys {sorted(record)}, but needs 'epoch' as well.")
    figure = build_figure(records, true_identities, title)
    save_figure(figure, out_path)
    path = Path(out_path)
    logger.info("Wrote the curves of %d epochs to %s", sum(record["epoch"] > 0 for record in records), path)
    return path


def build_figure(
    records: Sequence[Mapping[str, float]], true_identities: int | None = None, title: str | None = None
) -> Figure:
    """The figure of :func:`training_curves`, without pyplot and its global state."""
    figure = Figure(figsize=(9.0, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=12)
    for axes, (name, unit, lines) in zip(figure.subplots(2, 2).flat, PANELS):
        _style(axes, name, unit)
        if name == LOSSES:
            lines += _other_losses(records)
        for position, (key, label) in enumerate(lines):
            epochs, values = _series(records, key)
            if epochs:
                colour, dash = COLOURS[position % len(COLOURS)], DASHES[position // len(COLOURS) % len(DASHES)]
                axes.plot(epochs, values, dash, color=colour, label=label, linewidth=1.8, marker="o", markersize=3.5)
        if name == "Clusters" and true_identities is not None:
            axes.axhline(true_identities, color="#555555", linestyle="--", linewidth=1.2, label="true identities")
        unknown = name == AGREEMENT and true_identities is None and bool(_series(records, "clusters")[0])
        _finish(axes, "identities unknown" if unknown else "not recorded")
    return figure


def _other_losses(records: Sequence[Mapping[str, float]]) -> Lines:
    """Losses of the records that are not ICE's own, as they first appear."""
    own = {key for _, _, lines in PANELS for key, _ in lines}
    keys = dict.fromkeys(key for record in records for key in record if key.startswith("loss_") and key not in own)
    return tuple((key, key[len("loss_") :].replace("_", " ")) for key in keys)


def _series(records: Sequence[Mapping[str, float]], key: str) -> tuple[list[float], list[float]]:
    """Epochs and finite values of a key, in the order of the epochs."""
    points = sorted((r["epoch"], float(r[key])) for r in records if r.get(key) is not None)
    points = [(epoch, value) for epoch, value in points if math.isfinite(value)]
    return [epoch for epoch, _ in points], [value for _, value in points]


def _style(axes: Axes, name: str, unit: str) -> None:
    style_axes(axes, name, "epoch", unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _finish(axes: Axes, empty: str) -> None:
    """Legend of a panel, or the text ``empty`` where it has no line."""
    drawn = len(axes.get_legend_handles_labels()[0])
    if drawn:
        # Many names would cover the lines: they go beside them.
        place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if drawn > 5 else {"loc": "best"}
        axes.legend(fontsize=8, framealpha=0.6, edgecolor="none", handlelength=2.8, **place)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    else:
        axes.text(0.5, 0.5, empty, transform=axes.transAxes, ha="center", va="center", color="#888888")
        axes.set_xticks([])
        axes.set_yticks([])
