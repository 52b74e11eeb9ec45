"""What the sheets of images draw over a picture."""

from __future__ import annotations

from PIL import ImageDraw

SIDE = 17  # pixels


def draw_cross(
    draw: ImageDraw.ImageDraw, right: int, top: int, colour: tuple[int, int, int], paper: tuple[int, int, int]
) -> None:
    """A cross in a square whose upper right corner is given: this picture is wrong here."""
    box = [right - SIDE, top, right, top + SIDE]
    draw.rectangle(box, fill=paper)
    for start, end in (((4, 4), (14, 14)), ((14, 4), (4, 14))):
        draw.line([(box[0] + start[0], top + start[1]), (box[0] + end[0], top + end[1])], fill=colour, width=4)
