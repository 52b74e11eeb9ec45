"""Tables in Markdown, as GitHub shows them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fastreid_ice.report.tables.model import (
    METRICS,
    SETTINGS,
    SHORT,
    WITH_LABELS,
    Cell,
    Published,
    Row,
    Table,
    cost_columns,
    dataset_name,
    joined,
)
from fastreid_ice.report.tables.published import HEADING, show_score

NONE = "–"


def as_markdown(table: Table) -> str:
    """The table, a line on how to read it, and the published numbers in a table of their own below.

    With one test set each metric is a column; with several, a cell holds mAP / R1 / R5 / R10 of one test set.
    """
    blocks = []
    if table.rows:
        blocks += [_ours(table), _legend(table)]
    if table.published:
        blocks += [f"**{HEADING}** ({_order(table)}):", _published(table), _statuses(table)]
    return "\n\n".join(blocks) + "\n"


def _ours(table: Table) -> str:
    grouped = table.grouped and len({row.setting for row in table.rows}) > 1
    heads = [*table.columns, *["Labels used"] * grouped, "Epoch", "Seeds", *_score_heads(table.datasets)]
    heads += ["Images", "Steps", "Device", "Hours"]
    lines = []
    for index, row in enumerate(table.rows):
        cells = [row.cells[dataset] for dataset in table.datasets if dataset in row.cells]
        line = [_label(label) for label in row.labels] + [_short_setting(row.setting)] * grouped
        line += [row.epoch, joined(str(len(cell.runs)) for cell in cells)]
        for dataset in table.datasets:
            line += _scores(table, index, dataset, joined=len(table.datasets) > 1)
        lines.append(line + cost_columns(cells))
    text = [i for i, head in enumerate(heads) if head in (*table.columns, "Labels used", "Epoch", "Device")]
    return _pipe(heads, lines, text)


def _short_setting(setting: str) -> str:
    return dict(zip(SETTINGS, ("none", "cameras", "identities of a source", "identities")))[setting]


def _label(label: str | bool) -> str:
    if isinstance(label, bool):
        return "✓" if label else ""
    return escape(label)


def escape(text: str) -> str:
    """Text with the characters escaped that Markdown gives a meaning within a cell; underscores in a word have none.

    Example:
        >>> escape("PATTERN (?P<camera>c[0-9]+)*")
        'PATTERN (?P\\\\<camera>c\\\\[0-9]+)\\\\*'
    """
    return re.sub(r"(?<!\w)_|_(?!\w)|[\\`*<\[~$]", lambda match: "\\" + match.group(), text)


def _score_heads(datasets: Sequence[str]) -> list[str]:
    if len(datasets) > 1:
        return [dataset_name(dataset) for dataset in datasets]
    return [SHORT[metric] for metric in METRICS]


def _scores(table: Table, index: int, dataset: str, *, joined: bool) -> list[str]:
    cell = table.rows[index].cells.get(dataset)
    texts = [_score(cell, metric, table.marks.get((index, dataset, metric))) for metric in METRICS]
    if not joined:
        return texts
    return [" / ".join(texts) if cell else NONE]


def _score(cell: Cell | None, metric: str, mark: str | None) -> str:
    if cell is None or metric not in cell.scores:
        return NONE
    score = cell.scores[metric]
    text = f"**{score.mean:.1f}**" if mark == "best" else f"{score.mean:.1f}"
    return text if score.deviation is None else f"{text} ± {score.deviation:.1f}"


def _order(table: Table) -> str:
    if len(table.datasets) == 1:
        return f"{dataset_name(table.datasets[0])}, percent"
    return " / ".join(SHORT[metric] for metric in METRICS) + " in percent"


def _legend(table: Table) -> str:
    said = [f"{_order(table)}; mean ± sample standard deviation over the seeds"]
    if table.marks:
        protocols = len({row.protocol for row in table.rows}) > 1
        said.append("best mean of an epoch's rows" + " of one protocol" * protocols + " in bold")
        said[-1] += _but_identities(table.rows)
    said.append("the best epoch is chosen on the test set, as papers do")
    said.append("images, steps and hours are those of one training")
    return "; ".join(said) + "."


def _but_identities(rows: Sequence[Row]) -> str:
    return ", those trained with identities apart" if any(row.setting in WITH_LABELS for row in rows) else ""


def _published(table: Table) -> str:
    heads = ["Method", "Venue", "Backbone", "Labels used", *_score_heads(table.datasets), "Status", "Source"]
    lines = []
    for setting in SETTINGS:
        for entry in table.published:
            if entry.setting == setting:
                lines.append(_published_line(entry, table.datasets))
    text = [0, 1, 2, 3, len(heads) - 2, len(heads) - 1]
    return _pipe(heads, lines, text)


def _published_line(entry: Published, datasets: Sequence[str]) -> list[str]:
    line = [entry.method, entry.venue, entry.backbone, _short_setting(entry.setting)]
    for dataset in datasets:
        texts = []
        if dataset in entry.results:
            result = entry.results[dataset]
            texts = [text for metric in METRICS if (text := show_score(result, metric))]
        if len(datasets) > 1:
            line.append(" / ".join(texts) or NONE)
        else:
            line += texts + [NONE] * (len(METRICS) - len(texts))
    return [*line, _status(entry, datasets), _source(entry)]


def _status(entry: Published, datasets: Sequence[str]) -> str:
    """One word, or one per test set where they differ."""
    shown = {dataset: entry.results[dataset] for dataset in datasets if dataset in entry.results}
    texts = {dataset: row.status + ", rounded" * row.rounded for dataset, row in shown.items()}
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{dataset_name(dataset)} {text}" for dataset, text in texts.items())


def _source(entry: Published) -> str:
    source = entry.source
    if source.startswith("https://arxiv.org/abs/"):
        source = f"[arXiv {source.rsplit('/', 1)[-1]}]({source})"
    return source + f"; {entry.note}" * bool(entry.note)


def _statuses(table: Table) -> str:
    meanings = {
        "checked": "read in a public listing of the method's results",
        "from memory": "of the paper, not checked against its text",
        "hearsay": "what others report",
    }
    used = {result.status for entry in table.published for result in entry.results.values()}
    return "; ".join(f"*{status}*: {meaning}" for status, meaning in meanings.items() if status in used) + "."


def _pipe(heads: Sequence[str], lines: Sequence[Sequence[str]], text: Sequence[int]) -> str:
    """A table with aligned columns: those numbered in ``text`` to the left, numbers to the right."""
    cells = [[cell.replace("|", r"\|").replace("\n", " ") for cell in line] for line in (heads, *lines)]
    widths = [max(3, *(len(line[i]) for line in cells)) for i in range(len(heads))]

    def pad(line: Sequence[str]) -> str:
        padded = [c.ljust(w) if i in text else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))]
        return f"| {' | '.join(padded)} |"

    rule = [":" + "-" * (w - 1) if i in text else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([pad(cells[0]), f"| {' | '.join(rule)} |", *map(pad, cells[1:])])
