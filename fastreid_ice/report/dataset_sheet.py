"""A picture of somebody's own images: a row for each camera, or some of all where there are no cameras."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from fastreid_ice.files import replacing
from fastreid_ice.image_files import as_rgb
from fastreid_ice.report.contact_sheet import FAINT, GAP, HEADER, INK, PAPER

# Sizes in pixels.
THUMBNAIL = 128  # height
NARROWEST, WIDEST = 48, 240  # width
CAPTION = 148  # of the column with the rows' names
MOST_ROWS = 16
PER_ROW = 10


def dataset_sheet(
    groups: Mapping[str, Sequence[str | os.PathLike]], title: str, *, out_path: str | os.PathLike, aspect: float = 2.0
) -> Path:
    """Draw images of each group, evenly spaced over its files; images keep their shape.

    Args:
        groups: name -> image files that can be read, at least one; more than 16 groups are not shown, and counted. A
            single group fills several rows.
        title: first line.
        out_path: file to write; its ending chooses the format.
        aspect: typical height / width, for the width of a column.

    Returns:
        ``out_path``.

    Raises:
        ValueError: a group is empty, or there is none.
    """
    if not groups or not all(groups.values()):
        raise ValueError("There is a group without images to draw, or no group.")
    width = int(np.clip(round(THUMBNAIL / aspect), NARROWEST, WIDEST))
    rows = _rows(groups)
    size = (CAPTION + PER_ROW * (width + GAP), HEADER + len(rows) * (THUMBNAIL + GAP) + GAP)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    hidden = max(0, len(groups) - MOST_ROWS)
    below = f"the first {MOST_ROWS} of {len(groups)} cameras" if hidden else "evenly spaced over the files"
    draw.text((GAP, 8), title, fill=INK, font=ImageFont.load_default(19))
    draw.text((GAP, 36), below, fill=FAINT, font=ImageFont.load_default(13))
    for number, (name, note, paths) in enumerate(rows):
        top = HEADER + number * (THUMBNAIL + GAP)
        draw.text((GAP, top + 8), _short(name), fill=INK, font=ImageFont.load_default(15))
        draw.text((GAP, top + 32), note, fill=FAINT, font=ImageFont.load_default(13))
        for column, path in enumerate(paths):
            sheet.paste(_thumbnail(path, width), (CAPTION + column * (width + GAP), top))
    with replacing(out_path) as temporary:
        sheet.save(temporary)
    return Path(out_path)


def _rows(groups: Mapping[str, Sequence]) -> list[tuple[str, str, list]]:
    """(name, note, files) of each row."""
    if len(groups) > 1:
        chosen = list(groups.items())[:MOST_ROWS]
        return [(name, f"{len(paths):,} images", _spread(paths, PER_ROW)) for name, paths in chosen]
    ((name, paths),) = groups.items()
    shown = _spread(paths, 4 * PER_ROW)
    rows = [shown[start : start + PER_ROW] for start in range(0, len(shown), PER_ROW)]
    return [("" if i else name, "" if i else f"{len(paths):,} images", row) for i, row in enumerate(rows)]


def _spread(paths: Sequence, most: int) -> list:
    picks = np.linspace(0, len(paths) - 1, min(most, len(paths))).round().astype(int)
    return [paths[pick] for pick in picks]


def _short(name: str) -> str:
    return name if len(name) <= 17 else f"{name[:8]}...{name[-6:]}"


def _thumbnail(path: str | os.PathLike, width: int) -> Image.Image:
    with Image.open(path) as opened:
        image = as_rgb(opened)
    return ImageOps.pad(image, (width, THUMBNAIL), color=(240, 240, 242))
