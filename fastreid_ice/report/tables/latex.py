"""Tables in LaTeX, with booktabs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from fastreid_ice.report.tables.model import (
    METRICS,
    SETTINGS,
    SHORT,
    Cell,
    Row,
    Table,
    cost_columns,
    dataset_name,
    joined,
)
from fastreid_ice.report.tables.published import HEADING, show_score

NONE = "--"
_COST = ("Images", "Steps", "Device", "Hours")
_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def as_latex(table: Table) -> str:
    """A ``tabular`` with the test sets side by side, the settings as groups and the published numbers under a double
    rule. The best mean of an epoch's rows is bold, the second best underlined; deviations are small.
    """
    lines = ["% needs \\usepackage{booktabs}" + (" and \\usepackage{amssymb}" if _has_marks(table) else "")]
    lines += [f"% {entry.method}: {'; '.join(filter(None, (entry.source, entry.note)))}" for entry in table.published]
    lines += [rf"\begin{{tabular}}{{{_format(table)}}}", r"\toprule", *_head(table)]
    lines += _ours(table) if table.rows else []
    lines += _published(table) if table.published else []
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def escape(text: str) -> str:
    """Text with the characters escaped that LaTeX gives a meaning.

    Example:
        >>> escape("MIN_SAMPLES 4 & 50 %")
        'MIN\\\\_SAMPLES 4 \\\\& 50 \\\\%'
    """
    return re.sub(r"[\\~^<>|&%$#_{}]", lambda match: _ESCAPES[match.group()], text)


def _has_marks(table: Table) -> bool:
    return any(isinstance(label, bool) for row in table.rows for label in row.labels)


def _labels(table: Table) -> list[str]:
    return [*table.columns, *["Venue"] * bool(table.published), "Epoch", *["Seeds"] * bool(table.rows)]


def _tail(table: Table) -> tuple[str, ...]:
    return _COST if table.rows else ("Status",)


def _width(table: Table) -> int:
    return len(_labels(table)) + len(METRICS) * len(table.datasets) + len(_tail(table))


def _format(table: Table) -> str:
    labels = " ".join("l" for _ in _labels(table))
    return f"{labels} *{{{len(table.datasets)}}}{{{'c' * len(METRICS)}}} {'r r l r' if table.rows else 'l'}"


def _head(table: Table) -> list[str]:
    """The line of the test sets, its partial rules, and the line of the columns."""
    first = len(_labels(table)) + 1
    sets, rules = [""] * len(_labels(table)), []
    for position, dataset in enumerate(table.datasets):
        left = first + len(METRICS) * position
        sets.append(rf"\multicolumn{{{len(METRICS)}}}{{c}}{{{escape(dataset_name(dataset))}}}")
        rules.append(rf"\cmidrule(lr){{{left}-{left + len(METRICS) - 1}}}")
    if table.rows:
        left = first + len(METRICS) * len(table.datasets)
        sets.append(rf"\multicolumn{{{len(_COST)}}}{{c}}{{One training}}")
        rules.append(rf"\cmidrule(lr){{{left}-{left + len(_COST) - 1}}}")
    else:
        sets.append("")
    heads = [escape(name) for name in _labels(table)]
    heads += [SHORT[metric] for metric in METRICS] * len(table.datasets) + list(_tail(table))
    return [_line(sets), " ".join(rules), _line(heads)]


def _line(cells: Sequence[str]) -> str:
    text = " & ".join(cells) + r" \\"
    return "{}" + text if text.startswith(("[", "*")) else text  # the line break before would take it for its argument


def _banner(table: Table, text: str) -> str:
    return _line([rf"\multicolumn{{{_width(table)}}}{{l}}{{{text}}}"])


def _ours(table: Table) -> Iterator[str]:
    setting = ""
    if not table.grouped:
        yield r"\midrule"
    for index, row in enumerate(table.rows):
        if table.grouped and row.setting != setting:
            setting = row.setting
            yield r"\midrule"
            yield _banner(table, rf"\emph{{{setting}}}")
        repeated = index > 0 and _is_same(table.rows[index - 1], row)
        labels = [""] * len(row.labels) if repeated else [_label(label) for label in row.labels]
        seeds = [str(len(row.cells[dataset].runs)) for dataset in table.datasets if dataset in row.cells]
        line = [*labels, *[""] * bool(table.published), row.epoch, joined(seeds)]
        for dataset in table.datasets:
            cell = row.cells.get(dataset)
            line += [_score(cell, metric, table.marks.get((index, dataset, metric))) for metric in METRICS]
        yield _line(line + ([""] * len(_COST) if repeated else _cost(row, table.datasets)))


def _is_same(before: Row, row: Row) -> bool:
    """Whether two rows show the same method at its best and at its last epoch."""
    return before.labels == row.labels and before.epoch != row.epoch and before.setting == row.setting


def _label(label: str | bool) -> str:
    if isinstance(label, bool):
        return r"$\checkmark$" if label else ""
    return escape(label)


def _score(cell: Cell | None, metric: str, mark: str | None) -> str:
    if cell is None or metric not in cell.scores:
        return NONE
    score = cell.scores[metric]
    command = {"best": r"\textbf", "second": r"\underline"}.get(mark or "")
    text = f"{command}{{{score.mean:.1f}}}" if command else f"{score.mean:.1f}"
    return text if score.deviation is None else rf"{text}{{\scriptsize$\,\pm\,${score.deviation:.1f}}}"


def _cost(row: Row, datasets: Sequence[str]) -> list[str]:
    return [escape(text) for text in cost_columns([row.cells[name] for name in datasets if name in row.cells])]


def _published(table: Table) -> Iterator[str]:
    if table.rows:
        yield r"\midrule"
    yield r"\midrule"
    yield _banner(table, rf"\textbf{{{HEADING}}}")
    for setting in SETTINGS:
        entries = [entry for entry in table.published if entry.setting == setting]
        if not entries:
            continue
        yield _banner(table, rf"\emph{{{setting}}}")
        for entry in entries:
            line = [entry.method, entry.backbone, entry.venue or NONE, entry.epoch or NONE, *[""] * bool(table.rows)]
            statuses = []
            for dataset in table.datasets:
                result = entry.results.get(dataset)
                line += [(show_score(result, metric) if result else "") or NONE for metric in METRICS]
                if result:
                    statuses.append(result.status + ", rounded" * result.rounded)
            text = joined(statuses)
            tail = rf"\multicolumn{{{len(_COST)}}}{{l}}{{{escape(text)}}}" if table.rows else escape(text)
            yield _line([*map(escape, line), tail])
