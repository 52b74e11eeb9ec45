"""Somebody's own images: which there are in a folder, and what its names or a csv file say about them.

Needs numpy and Pillow only.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fastreid_ice.data.folder_table import read_table, some
from fastreid_ice.data.numbering import natural_key, number_names
from fastreid_ice.files import printable
from fastreid_ice.image_files import IMAGE_EXTENSIONS, find_images, find_unreadable

__all__ = ["IMAGE_EXTENSIONS", "FolderScan", "find_unreadable", "number_names", "scan_folder"]

logger = logging.getLogger(__name__)

SOURCES = ("none", "folder", "pattern", "csv")
GROUPS = ("camera", "identity", "track", "frame", "score")
LISTED = 10  # files that cannot be read, in a message
LARGEST = 2**63 - 1  # number of a frame


@dataclass(frozen=True)
class FolderScan:
    """The images of a folder; what is not known about them is None.

    Attributes:
        folder: as it was given.
        names: N names relative to the folder, with "/" between folders, sorted.
        camera_names: N texts.
        identity_names: N texts.
        track_names: N texts, "" for an image of no track. Tracks of the same name under different cameras are
            different tracks.
        frames: (N,) int64 numbers of the frames from which the images were cut.
        scores: (N,) float64 scores of the detections.
        skipped: (path, reason) of the files that cannot be read and were left out.
    """

    folder: Path
    names: tuple[str, ...]
    camera_names: tuple[str, ...] | None = None
    identity_names: tuple[str, ...] | None = None
    track_names: tuple[str, ...] | None = None
    frames: np.ndarray | None = None
    scores: np.ndarray | None = None
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def paths(self) -> tuple[str, ...]:
        """N files."""
        return tuple(str(self.folder / name) for name in self.names)

    @property
    def cameras(self) -> np.ndarray | None:
        """(N,) int64 cameras, numbered 0..n-1 in the order of their names."""
        return None if self.camera_names is None else number_names(self.camera_names)

    @property
    def identities(self) -> np.ndarray | None:
        """(N,) int64 identities, numbered 0..n-1 in the order of their names."""
        return None if self.identity_names is None else number_names(self.identity_names)

    @property
    def tracks(self) -> np.ndarray | None:
        """(N,) int64 tracks, numbered 0..n-1 in the order of their cameras' and their own names; -1: of no track."""
        if self.track_names is None:
            return None
        names: Sequence[Any] = self.track_names
        if self.camera_names is not None:
            names = list(zip(map(natural_key, self.camera_names), map(natural_key, self.track_names)))
        known = [place for place, name in enumerate(self.track_names) if name]
        tracks = np.full(len(names), -1, dtype=np.int64)
        tracks[known] = number_names([names[place] for place in known])
        return tracks


def scan_folder(
    path: str | os.PathLike,
    *,
    camera_from: str = "none",
    identity_from: str = "none",
    track_from: str = "none",
    pattern: str | None = None,
    csv: str | os.PathLike | None = None,
    with_scores: bool = False,
    extensions: Sequence[str] = IMAGE_EXTENSIONS,
    verify: bool = True,
    skip_unreadable: bool = False,
    workers: int | None = None,
) -> FolderScan:
    """Find the images of a folder and read from names or a csv file what is known about them.

    "folder" means for the camera the first folder below ``path``, for identity and track the folder that holds the
    image. "pattern" searches the regular expression in the image's name relative to ``path`` for its named groups
    ``camera``, ``identity``, ``track``. "csv" looks into the columns of these names. Frame and score come from the
    pattern's groups or else the csv's columns ``frame`` and ``score``, if they are there; they must be numbers where
    there are tracks, or ``with_scores``.

    Args:
        path: folder of images, at any depth.
        camera_from: "none", "folder", "pattern" or "csv".
        identity_from: likewise.
        track_from: likewise.
        pattern: regular expression with named groups, such as ``(?P<camera>c[0-9]+)_(?P<frame>[0-9]+)``.
        csv: file with the header ``path`` and any of ``camera, identity, track, frame, score``; its paths are
            relative to ``path`` or to its own folder, or absolute. An empty track is none: a detection by itself.
        with_scores: the scores of the detections are needed.
        extensions: endings of the images.
        verify: decode every image; about a second per 3,000 images of 128 x 64 and processor.
        skip_unreadable: leave out images that cannot be decoded, else they are an error.
        workers: threads that decode, None: one per processor.

    Raises:
        FileNotFoundError: no such folder or csv, or no image.
        ValueError: contradicting arguments; a pattern or csv that does not fit the images; images that cannot be read.
    """
    sources = {"camera": camera_from, "identity": identity_from, "track": track_from}
    expression = _check_sources(sources, pattern, csv)
    folder = Path(path)
    names = find_images(folder, extensions)
    names, skipped = _readable(folder, names, skip_unreadable, workers) if verify else (names, ())
    found: dict[str, tuple[str, ...]] = {}
    if csv is not None:
        needed = [what for what, source in sources.items() if source == "csv"]
        table = read_table(csv, folder, names, needed, known={name for name, _ in skipped})
        found = {what: table[what] for what in table if what in needed or what in ("frame", "score")}
    if expression is not None:
        found.update(_from_pattern(expression, names, sources))
    for what, source in sources.items():
        if source == "folder":
            found[what] = _from_folders(names, what, folder, sources)
    return FolderScan(
        folder,
        tuple(names),
        camera_names=found.get("camera"),
        identity_names=found.get("identity"),
        track_names=found.get("track"),
        frames=_numbers(found, "frame", names, np.int64, csv, needed=track_from != "none"),
        scores=_numbers(found, "score", names, np.float64, csv, needed=with_scores),
        skipped=tuple((str(folder / name), why) for name, why in skipped),
    )


def _check_sources(
    sources: Mapping[str, str], pattern: str | None, csv: str | os.PathLike | None
) -> re.Pattern[str] | None:
    """The compiled pattern, if there is one and everything fits together."""
    for what, source in sources.items():
        if source not in SOURCES:
            raise ValueError(f"{what}_from is {source!r}; choose one of {', '.join(SOURCES)}.")
        for needed, given in (("pattern", pattern), ("csv", csv)):
            if source == needed and given is None:
                raise ValueError(f"{what}_from is {needed!r}, but there is no {needed}: give one.")
    if sources["identity"] == sources["track"] == "folder":
        raise ValueError("identity_from and track_from are both 'folder': a folder is one of both.")
    if pattern is None:
        return None
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"The pattern {pattern!r} is no regular expression: {error}.") from error
    for what, source in sources.items():
        if source == "pattern" and what not in expression.groupindex:
            raise ValueError(f"The pattern {pattern!r} has no group (?P<{what}>...), which {what}_from needs.")
    strange = sorted(set(expression.groupindex) - set(GROUPS))
    if strange:
        raise ValueError(f"The pattern {pattern!r} has a group {strange[0]!r}; known are {', '.join(GROUPS)}.")
    return expression


def _readable(
    folder: Path, names: list[str], skip: bool, workers: int | None
) -> tuple[list[str], tuple[tuple[str, str], ...]]:
    by_path = {str(folder / name): name for name in names}
    bad = [(by_path[path], why) for path, why in find_unreadable(list(by_path), workers)]
    if not bad:
        return names, ()
    listed = "; ".join(f"{printable(name)}: {why}" for name, why in bad[:LISTED])
    listed += "; ..." if len(bad) > LISTED else ""
    if not skip:
        raise ValueError(
            f"{len(bad)} of {len(names)} images in {folder} cannot be read: {listed}. Remove them, or skip them "
            "(skip_unreadable)."
        )
    if len(bad) == len(names):
        raise ValueError(f"None of the {len(names)} images in {folder} can be read; first: {': '.join(bad[0])}.")
    logger.warning("Left out %d of %d images in %s that cannot be read: %s.", len(bad), len(names), folder, listed)
    refused = {name for name, _ in bad}
    return [name for name in names if name not in refused], tuple(bad)


def _from_pattern(
    expression: re.Pattern[str], names: Sequence[str], sources: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    wanted = [what for what in expression.groupindex if sources.get(what, "pattern") == "pattern"]
    matches = [(name, expression.search(name)) for name in names]
    # A group may be optional in the pattern; a value is needed of every image all the same.
    missing = [name for name, match in matches if match is None or any(not match[what] for what in wanted)]
    if missing:
        raise ValueError(f"The pattern {expression.pattern!r} does not fit {some(missing, len(names))}.")
    return {what: tuple(match[what] for _, match in matches if match is not None) for what in wanted}


def _from_folders(names: Sequence[str], what: str, folder: Path, sources: Mapping[str, str]) -> tuple[str, ...]:
    """The first folder for the camera, the last one's name for an identity, its whole path for a track."""
    parents = [PurePosixPath(name).parent for name in names]
    levels = 1 if what == "camera" or sources["camera"] != "folder" else 2
    outside = [name for name, parent in zip(names, parents) if len(parent.parts) < levels]
    if outside:
        where = f"below {folder}" if levels == 1 else f"below its camera's folder in {folder}"
        raise ValueError(f"{what}_from is 'folder', but no folder {where} holds {some(outside, len(names))}.")
    if what == "camera":
        return tuple(parent.parts[0] for parent in parents)
    return tuple(str(parent) if what == "track" else parent.name for parent in parents)


def _numbers(
    found: Mapping[str, Sequence[str]],
    what: str,
    names: Sequence[str],
    dtype: type,
    csv: str | os.PathLike | None,
    needed: bool,
) -> np.ndarray | None:
    """The texts as numbers, (N,), or None where there are none, or where nobody needs them and one is no number."""
    if what not in found:
        return None
    number, kind = (_whole, "whole number") if dtype is np.int64 else (_finite, "number")
    values: list[float] = []
    tracks = found.get("track", names) if what == "frame" else names
    for name, text, track in zip(names, found[what], tracks):
        if not text and not track:  # the frame of an image of no track
            values.append(0)
            continue
        try:
            values.append(number(text))
        except ValueError:
            if not needed:
                return None
            where = f" ({csv}, or the pattern)" if csv is not None else ""
            raise ValueError(f"The {what} of {name} is {text!r}; a {kind} is needed{where}.") from None
        if abs(values[-1]) > LARGEST:
            if not needed:
                return None
            raise ValueError(
                f"The {what} of {name} is {text!r}, more than {LARGEST}: take fewer of its digits, such as "
                f"(?P<{what}>[0-9]{{18}}) for the last 18 of a pattern that ends with them."
            )
    return np.array(values, dtype=dtype)


def _whole(text: str) -> int:
    """12 of "12", and of "12.0", as a table with gaps is often written."""
    whole, point, rest = text.strip().partition(".")
    if point and rest.strip("0"):
        raise ValueError
    return int(whole)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def count_names(names: Sequence[str]) -> dict[str, int]:
    """How often each name occurs, in the order of the names, numbers within names by size."""
    counts = Counter(names)
    return {name: counts[name] for name in sorted(counts, key=natural_key)}
