"""Pieces of a page: text made safe, tables, charts as vector graphics and thumbnails, all within the file."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from fastreid_ice.image_files import as_rgb
from fastreid_ice.report.axes import COLOURS

BOX = (80, 128)  # pixels into which a thumbnail fits
JPEG_QUALITY = 72
SHOT = '<figure class="shot'  # how a thumbnail begins

# Colours of the charts that follow the page's, which may be light or dark.
THEMED = {"#000000": "currentColor", "#ffffff": "var(--paper)", "#dddddd": "var(--line)", "#888888": "var(--faint)"}
THEMED.update({colour: f"var(--series-{i})" for i, colour in enumerate(COLOURS)})


def safe(value: Any) -> str:
    """Text as html shows it, also within an attribute.

    Example:
        >>> safe('<a "b">')
        '&lt;a &quot;b&quot;&gt;'
    """
    return html.escape(str(value), quote=True)


def number(value: Any) -> str:
    """A number for a table; a dash for none.

    Example:
        >>> number(1234), number(1234.56), number(None), number(True), number("text")
        ('1,234', '1,234.6', '–', 'True', 'text')
    """
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table that scrolls by itself where it is wider than the page; the first column names the row."""
    head = "".join(f'<th scope="col">{safe(name)}</th>' for name in header)
    lines = []
    for first, *others in rows:
        cells = "".join(f"<td>{safe(number(cell))}</td>" for cell in others)
        lines.append(f'<tr><th scope="row">{safe(number(first))}</th>{cells}</tr>')
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{safe(caption)}"><table>'
        f"<caption>{safe(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def details(summary: str, content: str) -> str:
    """What is folded away until somebody asks for it."""
    return f"<details><summary>{safe(summary)}</summary>{content}</details>"


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{safe(text)}</p>' if kind else f"<p>{safe(text)}</p>"


def chart(figure: Figure, name: str, label: str) -> str:
    """A figure as a vector graphic within the page, in the page's colours.

    Args:
        figure: drawn by matplotlib.
        name: unique within the page; it keeps the names in the graphic apart from those of others.
        label: what the chart shows, for those who do not see it.
    """
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = re.sub(r"<style.*?</style>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(
        r'^<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{safe(label)}">', text
    )
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    for colour, themed in THEMED.items():
        text = text.replace(colour, themed)
    return f'<div class="chart">{text}</div>'


class Pictures:
    """Thumbnails for a page, or nothing where it is made without people's pictures.

    Args:
        shown: whether there are any.

    Attributes:
        amount: how many were made.
    """

    def __init__(self, shown: bool = True):
        self.shown = shown
        self.amount = 0

    def strip(self, shots: Iterable[str]) -> str:
        """A row of what :meth:`shot` gave."""
        items = "".join(f"<li>{shot}</li>" for shot in shots)
        return f'<ul class="shots">{items}</ul>' if self.shown else ""

    def shot(self, path: str, alt: str, caption: str, kind: str = "") -> str:
        """A thumbnail with a line below it.

        Args:
            path: image file.
            alt: what it shows, for those who do not see it.
            caption: text below.
            kind: "right", "wrong" or nothing; a sign before the caption and the border say it.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it cannot be read as an image.
        """
        if not self.shown:
            return ""
        self.amount += 1
        data, (width, height) = _jpeg(Path(path))
        sign = {"right": "✓ ", "wrong": "✗ "}.get(kind, "")
        uri = base64.b64encode(data).decode("ascii")
        return (
            f'{SHOT} {kind}"><img src="data:image/jpeg;base64,{uri}" width="{width}" height="{height}" '
            f'alt="{safe(alt)}"><figcaption>{sign}{safe(caption)}</figcaption></figure>'
        )


def _jpeg(path: Path) -> tuple[bytes, tuple[int, int]]:
    advice = "Make the report without pictures, or from where its images are."
    try:
        with Image.open(path) as opened:
            image = as_rgb(opened)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: the report needs this image, and it is not there. {advice}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}). {advice}") from error
    image = ImageOps.contain(image, BOX, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return buffer.getvalue(), image.size
