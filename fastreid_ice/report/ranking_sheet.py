"""A picture of ranking lists: a query on the left, what was found for it on the right."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Union

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from fastreid_ice.files import replacing
from fastreid_ice.image_files import as_rgb
from fastreid_ice.report.contact_sheet import (
    FAINT,
    FRAME,
    GAP,
    HEADER,
    INK,
    PAPER,
    UNKNOWN_FRAME,
    WRONG,
    check_size,
)
from fastreid_ice.report.marks import draw_cross

logger = logging.getLogger(__name__)

# Sizes in pixels.
HEIGHT = 128  # of a thumbnail
NARROWEST, WIDEST = 48, 224  # of a thumbnail
CAPTION = 46  # below a thumbnail: similarity, and two lines of name
LEAST_COLUMN = 112  # for a readable name
MARGIN = 18  # between the query and what was found
SMALL = 11

RIGHT = (34, 150, 84)
JUNK_FRAME, QUERY_FRAME = UNKNOWN_FRAME, INK
FRAMES = {"right": RIGHT, "wrong": WRONG, "junk": JUNK_FRAME, "unknown": UNKNOWN_FRAME}
MARKS = tuple(FRAMES)

Lists = Union[Sequence[Sequence], np.ndarray]  # one list per query


def ranking_sheet(
    queries: Sequence[str | os.PathLike],
    found: Sequence[Sequence[str | os.PathLike]],
    similarities: Sequence[Sequence[float]] | np.ndarray | None = None,
    *,
    out_path: str | os.PathLike,
    marks: Sequence[Sequence[str]] | np.ndarray | None = None,
    title: str | None = None,
) -> Path:
    """Draw one row per query: the query, then what was found, the most similar first, with file names.

    Images keep their aspect ratio: thumbnails are as wide as the median query needs, and an image of another shape is
    padded.

    Args:
        queries: Q image files.
        found: for each query its k image files, in their order; lists may differ in length.
        similarities: for each file of ``found`` its similarity, written below it, or None.
        out_path: file to write; its ending chooses the format.
        marks: for each file of ``found`` "right" (green frame), "wrong" (red frame and cross), "junk" (grey frame,
            pale) or "unknown" (grey frame); None: all unknown. :func:`ranking_marks` makes them from identities.
        title: first line of the picture, or None for a count.

    Returns:
        ``out_path``.

    Raises:
        ValueError: there is no query, lengths differ, a mark is none of these, or the picture is too large for its
            format.
        FileNotFoundError: an image to be shown is missing.
    """
    rows = _rows(queries, found, similarities, marks)
    width = _thumbnail_width([row.query for row in rows])
    column = max(width + 2 * FRAME, LEAST_COLUMN) + 2 * GAP
    height = HEIGHT + 2 * FRAME + CAPTION + GAP
    most = max(len(row.found) for row in rows)
    size = (GAP + column * (1 + most) + MARGIN, HEADER + len(rows) * height + GAP)
    check_size(size, out_path, "queries or images")
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    _draw_header(draw, rows, title)
    for number, row in enumerate(rows):
        top = HEADER + number * height
        _draw_image(sheet, draw, (GAP, top), width, row.query, QUERY_FRAME, "query")
        for rank, (path, mark, similarity) in enumerate(zip(row.found, row.marks, row.similarities)):
            caption = f"{rank + 1}." if similarity is None else f"{rank + 1}.  {similarity:.3f}"
            left = GAP + column * (1 + rank) + MARGIN
            _draw_image(sheet, draw, (left, top), width, path, FRAMES[mark], caption, mark)
    with replacing(out_path) as temporary:
        sheet.save(temporary)
    logger.info("Wrote the ranking lists of %d queries to %s", len(rows), out_path)
    return Path(out_path)


def ranking_marks(
    query_ids: Sequence[int] | np.ndarray,
    found_ids: Sequence[Sequence[int]] | np.ndarray,
    query_cams: Sequence[int] | np.ndarray | None = None,
    found_cams: Sequence[Sequence[int]] | np.ndarray | None = None,
) -> list[list[str]]:
    """What the field's protocol says about each entry of ranking lists.

    "junk" is an entry of identity -1 (a bad detection) and, where cameras are given, one of the query's identity seen
    by the query's camera: the protocol leaves both out.

    Args:
        query_ids: Q identities.
        found_ids: for each query the identities of what was found.
        query_cams: Q cameras, or None.
        found_cams: for each query the cameras of what was found; given if ``query_cams`` is.

    Returns:
        For each query a list of "right", "wrong" or "junk", for :func:`ranking_sheet`.

    Raises:
        ValueError: lengths differ, or cameras are given on one side only.

    Example:
        >>> ranking_marks([5], [[5, 5, 7, -1]], [1], [[1, 2, 2, 2]])
        [['junk', 'right', 'wrong', 'junk']]
    """
    if (query_cams is None) != (found_cams is None):
        raise ValueError("Cameras are needed on both sides or on none: query_cams and found_cams.")
    _same_length(query_ids, found_ids=found_ids, query_cams=query_cams, found_cams=found_cams)
    marks = []
    for query, identity in enumerate(query_ids):
        found = np.asarray(found_ids[query])
        same_camera = np.zeros(len(found), bool)
        if query_cams is not None and found_cams is not None:
            cameras = np.asarray(found_cams[query])
            _same_length(found, **{f"found_cams[{query}]": cameras})
            same_camera = cameras == query_cams[query]
        same = found == identity
        marks.append(np.select([(found == -1) | (same & same_camera), same], ["junk", "right"], "wrong").tolist())
    return marks


@dataclass(frozen=True)
class _Row:
    """One query and its list."""

    query: Path
    found: list[Path]
    similarities: list[float | None]
    marks: list[str]


def _rows(queries: Sequence, found: Sequence, similarities: Lists | None, marks: Lists | None) -> list[_Row]:
    if len(queries) == 0:
        raise ValueError("There are no queries to draw: queries is empty.")
    _same_length(queries, found=found, similarities=similarities, marks=marks)
    rows = []
    for number, (query, paths) in enumerate(zip(queries, found)):
        values = None if similarities is None else similarities[number]
        kinds = None if marks is None else [str(mark) for mark in marks[number]]
        _same_length(paths, **{f"similarities[{number}]": values, f"marks[{number}]": kinds})
        strange = [] if kinds is None else [mark for mark in kinds if mark not in FRAMES]
        if strange:
            raise ValueError(f"There is no mark {strange[0]!r}; choose among {', '.join(MARKS)}.")
        shown: list[float | None] = [None] * len(paths)
        if values is not None:
            shown = [float(value) for value in values]
        rows.append(_Row(Path(query), [Path(path) for path in paths], shown, kinds or ["unknown"] * len(paths)))
    return rows


def _same_length(first: Sequence | np.ndarray, **others: Sequence | np.ndarray | None) -> None:
    for name, values in others.items():
        if values is not None and len(values) != len(first):
            raise ValueError(f"{name} has {len(values)} entries, {len(first)} are needed.")


def _thumbnail_width(queries: list[Path]) -> int:
    """For a height of 128, in pixels."""
    ratios = []
    for path in queries:
        with Image.open(path) as image:
            ratios.append(image.width / image.height)
    return int(np.clip(round(HEIGHT * float(np.median(ratios))), NARROWEST, WIDEST))


def _draw_header(draw: ImageDraw.ImageDraw, rows: list[_Row], title: str | None) -> None:
    count = f"{len(rows):,} {'query' if len(rows) == 1 else 'queries'}, most similar first"
    draw.text((GAP, 8), title or count, fill=INK, font=ImageFont.load_default(19))
    seen = {mark for row in rows for mark in row.marks}
    words = {
        "right": "green = right",
        "wrong": "red with cross = wrong",
        "junk": "pale = left out (same camera, or junk)",
    }
    legend = [text for mark, text in words.items() if mark in seen]
    if any(similarity is not None for row in rows for similarity in row.similarities):
        legend.insert(0, "number = cosine similarity")
    draw.text((GAP, 36), ", ".join(legend), fill=FAINT, font=ImageFont.load_default(13))


def _draw_image(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    width: int,
    path: Path,
    frame: tuple[int, int, int],
    caption: str,
    mark: str = "unknown",
) -> None:
    left, top = corner
    right, bottom = left + width + 2 * FRAME - 1, top + HEIGHT + 2 * FRAME - 1
    draw.rectangle([left, top, right, bottom], fill=frame)
    with Image.open(path) as opened:
        image = as_rgb(opened)
        picture = ImageOps.pad(image, (width, HEIGHT), Image.Resampling.BICUBIC, color=PAPER)
    if mark == "junk":
        picture = Image.blend(picture, Image.new("RGB", picture.size, PAPER), 0.6)
    sheet.paste(picture, (left + FRAME, top + FRAME))
    if mark == "wrong":
        draw_cross(draw, right - FRAME, top + FRAME, WRONG, PAPER)
    draw.text((left, bottom + 3), caption, fill=INK, font=ImageFont.load_default(13))
    font = ImageFont.load_default(SMALL)
    for number, line in enumerate(name_lines(path.name, max(width + 2 * FRAME, LEAST_COLUMN), font)):
        draw.text((left, bottom + 19 + 13 * number), line, fill=FAINT, font=font)


def name_lines(name: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """A file's name on at most two lines of ``width`` pixels; of a longer one the middle is left out."""
    first = _fitting(name, width, font)
    rest = name[first:]
    if font.getlength(rest) > width:
        last = _fitting(rest[::-1], width - int(font.getlength("...")), font)
        rest = "..." + rest[len(rest) - last :]
    return [name[:first], rest] if rest else [name]


def _fitting(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    """How many of the first characters are at most ``width`` pixels wide; at least one."""
    count = 1
    while count < len(text) and font.getlength(text[: count + 1]) <= width:
        count += 1
    return count
