"""A picture of the clusters found: one row of thumbnails per cluster."""

from __future__ import annotations

import colorsys
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastreid_ice.files import replacing
from fastreid_ice.image_files import as_rgb
from fastreid_ice.report.marks import draw_cross
from fastreid_ice.report.wording import count, percent

logger = logging.getLogger(__name__)

OUTLIER = -1
PHOTOS = (".jpg", ".jpeg", ".pdf", ".png", ".webp")  # endings of a sheet's file
MOST_PIXELS = {".webp": 16383, ".jpg": 65500, ".jpeg": 65500}  # a side, as Pillow writes them
ORDERS = ("largest", "mixed")

# Sizes in pixels.
THUMBNAIL = (64, 128)
FRAME = 4
GAP = 6
LEFT = 132  # of the column with the rows' captions
HEADER = 64
ROW = THUMBNAIL[1] + 2 * FRAME + GAP
COLUMN = THUMBNAIL[0] + 2 * FRAME + GAP

PAPER, INK, FAINT, WRONG = (255, 255, 255), (32, 34, 40), (120, 124, 132), (214, 30, 40)
UNKNOWN_FRAME = (176, 180, 188)


@dataclass(frozen=True)
class Row:
    """Images of one cluster, or of the outliers.

    Attributes:
        label: of the cluster, -1 for the outliers.
        members: (M,) int64, all its images: those of the majority first, then by identity and camera.
        shown: (k,) int64, k of these, evenly spaced, so that mistakes are not hidden behind the first few.
        majority: true identity of most members (the smallest number among equally many); None where the identities
            are unknown, and for the outliers.
        wrong: number of members of another identity than the majority; None where there is no majority.
    """

    label: int
    members: np.ndarray
    shown: np.ndarray
    majority: int | None
    wrong: int | None


def check_size(size: tuple[int, int], out_path: str | os.PathLike, what: str) -> None:
    """Raise ValueError for a picture of (width, height) pixels that its format cannot hold; ``what`` could be fewer."""
    limit = MOST_PIXELS.get(Path(out_path).suffix.lower())
    if limit is not None and max(size) > limit:
        raise ValueError(
            f"{out_path} would be {size[0]} x {size[1]} pixels, but its format ends at {limit}: write a .png, or show "
            f"fewer {what}"
        )


def contact_sheet(
    image_paths: Sequence[str | os.PathLike],
    labels: Sequence[int],
    true_ids: Sequence[int] | None = None,
    camids: Sequence[int] | None = None,
    *,
    out_path: str | os.PathLike,
    max_clusters: int = 12,
    per_cluster: int = 8,
    order: str = "largest",
) -> Path:
    """Draw the largest or the most mixed clusters, one row each, and the outliers in a last row.

    Where true identities are known, the colour of a frame stands for the identity, and members who are not of their
    cluster's majority wear a red cross in the corner. A row shows its cluster in proportion: evenly spaced over the
    members, sorted by identity (majority first) and camera, so that its mistakes are not hidden behind the first few.

    Args:
        image_paths: N files.
        labels: N pseudo labels; -1 is an outlier.
        true_ids: N identities, or None when they are unknown.
        camids: N camera numbers, shown as they are, or None.
        out_path: file to write; its ending chooses the format.
        max_clusters: number of rows for clusters.
        per_cluster: number of thumbnails in a row.
        order: "largest" or "mixed" first, see :func:`choose_rows`.

    Returns:
        ``out_path``.

    Raises:
        ValueError: lengths differ, there is nothing to draw, the order is unknown or needs identities, or the picture
            is too large for its format.
        FileNotFoundError: an image to be shown is missing.
    """
    _check_lengths(image_paths, labels=labels, true_ids=true_ids, camids=camids)
    clusters = np.asarray(labels)
    identities = None if true_ids is None else np.asarray(true_ids)
    cameras = None if camids is None else np.asarray(camids)
    rows = choose_rows(clusters, identities, cameras, max_clusters=max_clusters, per_cluster=per_cluster, order=order)
    size = (LEFT + per_cluster * COLUMN + GAP, HEADER + len(rows) * ROW + GAP)
    check_size(size, out_path, "clusters or images of each")
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    _draw_header(draw, clusters, identities, rows, order)
    for number, row in enumerate(rows):
        top = HEADER + number * ROW
        _draw_caption(draw, top, row, identities)
        for column, index in enumerate(row.shown):
            corner = (LEFT + column * COLUMN, top)
            identity = None if identities is None else int(identities[index])
            camera = None if cameras is None else int(cameras[index])
            _draw_thumbnail(sheet, draw, corner, Path(image_paths[index]), identity, camera, row.majority)
    with replacing(out_path) as temporary:
        sheet.save(temporary)
    path = Path(out_path)
    logger.info("Wrote a contact sheet of %d of %d clusters to %s", *_shown(rows, clusters), path)
    return path


def identity_colour(identity: int) -> tuple[int, int, int]:
    """A colour for the frame of an identity; neighbouring numbers get colours far apart."""
    hue = identity * 0.61803398875 % 1.0  # the golden ratio spreads any run of numbers evenly
    value = (0.92, 0.62, 0.78)[identity % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _check_lengths(image_paths: Sequence, **others: Sequence | None) -> None:
    if len(image_paths) == 0:
        raise ValueError("There are no images to draw: image_paths is empty.")
    for name, values in others.items():
        if values is not None and len(values) != len(image_paths):
            raise ValueError(f"{name} has {len(values)} entries, but there are {len(image_paths)} image_paths.")


def _shown(rows: list[Row], labels: np.ndarray) -> tuple[int, int]:
    return sum(row.label != OUTLIER for row in rows), len(set(labels.tolist()) - {OUTLIER})


def choose_rows(
    labels: np.ndarray,
    identities: np.ndarray | None = None,
    cameras: np.ndarray | None = None,
    *,
    max_clusters: int,
    per_cluster: int,
    order: str = "largest",
) -> list[Row]:
    """Which clusters to show, which of their images, and in which order; the outliers come last.

    Args:
        labels: (N,) pseudo labels; -1 is an outlier.
        identities: (N,) true identities, or None.
        cameras: (N,) camera numbers, or None; they only sort the images of a row.
        max_clusters, per_cluster: how many clusters, and images of each, to show at most.
        order: "largest": by size; "mixed": by the number of images that are not of the cluster's majority, then by
            their share. What is equal comes in the order of the labels.

    Raises:
        ValueError: another order, "mixed" without identities, or a number below 1.
    """
    if max_clusters < 1 or per_cluster < 1:
        raise ValueError(f"max_clusters ({max_clusters}) and per_cluster ({per_cluster}) must be at least 1.")
    if order not in ORDERS:
        raise ValueError(f"order is {order!r}; choose one of {', '.join(ORDERS)}.")
    if order == "mixed" and identities is None:
        raise ValueError(
            "The most mixed clusters cannot be found: the true identities of these images are not known. "
            "Show the largest first."
        )
    chosen = _ordered(labels, identities, order)[:max_clusters]
    if (labels == OUTLIER).any():
        chosen.append(OUTLIER)
    return [_row(label, np.flatnonzero(labels == label), identities, cameras, per_cluster) for label in chosen]


def _ordered(labels: np.ndarray, identities: np.ndarray | None, order: str) -> list[int]:
    """All clusters, those to be seen first in front."""
    sizes = Counter(labels[labels != OUTLIER].tolist())
    if order == "largest" or identities is None:
        return sorted(sizes, key=lambda label: (-sizes[label], label))
    wrong = {label: sizes[label] - _most(identities[labels == label])[1] for label in sizes}
    return sorted(sizes, key=lambda label: (-wrong[label], sizes[label], label))


def _row(
    label: int, members: np.ndarray, identities: np.ndarray | None, cameras: np.ndarray | None, per_cluster: int
) -> Row:
    majority = wrong = None
    if identities is not None and label != OUTLIER:
        majority, count = _most(identities[members])
        wrong = len(members) - count
    members = _in_order(members, majority, identities, cameras)
    picks = np.linspace(0, len(members) - 1, min(per_cluster, len(members))).round().astype(int)
    return Row(label, members, members[picks], majority, wrong)


def _most(identities: np.ndarray) -> tuple[int, int]:
    """The most frequent identity, the smallest number among equally frequent ones; and how often it is there."""
    values, counts = np.unique(identities, return_counts=True)
    return int(values[counts.argmax()]), int(counts.max())


def _in_order(
    members: np.ndarray, majority: int | None, identities: np.ndarray | None, cameras: np.ndarray | None
) -> np.ndarray:
    """Majority first, then by identity and camera, so far as these are known."""
    keys = [members]
    if cameras is not None:
        keys.append(cameras[members])
    if identities is not None:
        keys += [identities[members], identities[members] != majority]
    return members[np.lexsort(keys)]


def _draw_header(
    draw: ImageDraw.ImageDraw, labels: np.ndarray, identities: np.ndarray | None, rows: list[Row], order: str
) -> None:
    shown, clusters = _shown(rows, labels)
    outliers = int((labels == OUTLIER).sum())
    first = ", ".join((count(clusters, "cluster"), count(outliers, "outlier"), count(len(labels), "image")))
    which = "largest" if order == "largest" else "most mixed"
    second = f"{shown} {which} clusters" if shown < clusters else f"all clusters, {which} first"
    if identities is not None:
        first += f"; {count(len(set(identities.tolist())), 'true identity', 'true identities')}"
        second += "; frame colour = true identity; red cross = not the cluster's majority"
    draw.text((GAP, 8), first, fill=INK, font=ImageFont.load_default(19))
    draw.text((GAP, 36), second, fill=FAINT, font=ImageFont.load_default(13))


def _draw_caption(draw: ImageDraw.ImageDraw, top: int, row: Row, identities: np.ndarray | None) -> None:
    title = "outliers" if row.label == OUTLIER else f"cluster {row.label}"
    lines = [count(len(row.members), "image")]
    if row.wrong is not None and identities is not None:
        lines.append(count(len(set(identities[row.members].tolist())), "identity", "identities"))
        lines.append(f"{percent(1 - row.wrong / len(row.members))} pure")
    draw.text((GAP, top + 8), title, fill=INK, font=ImageFont.load_default(17))
    for number, line in enumerate(lines):
        draw.text((GAP, top + 34 + 19 * number), line, fill=FAINT, font=ImageFont.load_default(14))


def _draw_thumbnail(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    path: Path,
    identity: int | None,
    camera: int | None,
    majority: int | None,
) -> None:
    left, top = corner
    right, bottom = left + THUMBNAIL[0] + 2 * FRAME - 1, top + THUMBNAIL[1] + 2 * FRAME - 1
    colour = UNKNOWN_FRAME if identity is None else identity_colour(identity)
    draw.rectangle([left, top, right, bottom], fill=colour)
    with Image.open(path) as image:
        sheet.paste(as_rgb(image).resize(THUMBNAIL, Image.Resampling.BICUBIC), (left + FRAME, top + FRAME))
    if camera is not None:
        _draw_tag(draw, left + FRAME, bottom - FRAME, f"c{camera}")
    if majority is not None and identity != majority:
        draw_cross(draw, right - FRAME, top + FRAME, WRONG, PAPER)


def _draw_tag(draw: ImageDraw.ImageDraw, left: int, bottom: int, text: str) -> None:
    font = ImageFont.load_default(12)
    width = int(draw.textlength(text, font=font)) + 6
    draw.rectangle([left, bottom - 15, left + width, bottom], fill=INK)
    draw.text((left + 3, bottom - 15), text, fill=PAPER, font=font)
