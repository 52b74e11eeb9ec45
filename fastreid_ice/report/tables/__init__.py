"""Tables from runs: read, aggregate over seeds, arrange as methods x test sets, write in several formats."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence

from fastreid_ice.files import write_text
from fastreid_ice.report.tables.build import build_table, differing_keys, group_runs
from fastreid_ice.report.tables.delimited import as_delimited
from fastreid_ice.report.tables.latex import as_latex
from fastreid_ice.report.tables.markdown import as_markdown
from fastreid_ice.report.tables.model import ALL_EPOCHS, EPOCHS, Cell, Published, Row, Run, Statistic, Table, aggregate
from fastreid_ice.report.tables.published import PUBLISHED, read_published
from fastreid_ice.report.tables.runs import find_runs, read_run, read_runs
from fastreid_ice.report.tables.zoo import metafile, model_index

__all__ = [
    "FORMATS",
    "Cell",
    "Published",
    "Row",
    "Run",
    "Statistic",
    "Table",
    "aggregate",
    "benchmark_table",
    "build_table",
    "find_runs",
    "read_published",
    "read_run",
    "read_runs",
]

FORMATS: dict[str, Callable[[Table], str]] = {
    "markdown": as_markdown,
    "latex": as_latex,
    "csv": as_delimited,
    "metafile": metafile,
    "model-index": model_index,
}


def benchmark_table(
    runs: Iterable[str | os.PathLike] = (),
    *,
    format: str = "markdown",
    output: str | os.PathLike | None = None,
    published: bool | str | os.PathLike = False,
    ablation: bool | None = False,
    epochs: Sequence[str] = EPOCHS,
    unfinished: bool = False,
    names: Mapping[str, str] | None = None,
) -> str:
    """Make a table from the folders of runs.

    Args:
        runs: folders of runs, their ``run.json``, or folders that are searched for such. None is fine with
            ``published``.
        format: one of ``FORMATS``.
        output: file to write as well; it appears whole or not at all.
        published: also show published numbers, those of the package (True) or of a file.
        ablation: what differs between the runs becomes the columns; None: if anything does.
        epochs: which of "start" (the initial weights, where they were evaluated), "best" and "last" get a row.
        unfinished: show runs that have not come to their end, marked as such.
        names: name of the method per folder.

    Returns:
        The table as text.

    Raises:
        FileNotFoundError, ValueError: one line that says which file or option is wrong, and how.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; choose one of {', '.join(FORMATS)}")
    unknown = [epoch for epoch in epochs if epoch not in ALL_EPOCHS]
    if unknown or not epochs:
        raise ValueError(f"epochs are {list(epochs)}; choose of {', '.join(ALL_EPOCHS)}")
    others: list[Published] = []
    if published is not False:
        others = read_published(PUBLISHED if published is True else published)
    paths = list(runs)
    read = read_runs(paths, names=names, unfinished=unfinished) if paths else []
    if ablation is None:
        ablation = bool(differing_keys(group_runs(read)))
    text = FORMATS[format](build_table(read, published=others, ablation=ablation, epochs=epochs))
    if output is not None:
        write_text(output, text)
    return text
