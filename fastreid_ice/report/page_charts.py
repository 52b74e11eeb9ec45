"""Charts of a report, each a figure of its own, so that they fit a narrow screen below each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from fastreid_ice.report.curves import PANELS, build_figure

SIZE = (4.6, 3.1)  # inches, of a chart


def single(draw: Callable[[Axes], None]) -> Figure:
    """A figure with one panel that ``draw`` fills."""
    figure = Figure(figsize=SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure.subplots())
    return figure


def curve_figures(records: Sequence[Mapping[str, Any]], true_identities: int | None = None) -> dict[str, Figure]:
    """The panels of :func:`fastreid_ice.report.curves.build_figure` by their titles, each alone."""
    figures = {}
    for position, (title, _, _) in enumerate(PANELS):
        figure = build_figure(records, true_identities)
        panels = list(figure.axes)
        for axes in panels:
            if axes is not panels[position]:
                axes.remove()
        panels[position].set_subplotspec(GridSpec(1, 1, figure=figure)[0])
        figure.set_size_inches(*SIZE)
        figures[title] = figure
    return figures
