"""The rendered images as somebody's own: in plain folders, under names that tell nothing or something."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path


def parts(path: Path) -> tuple[int, int]:
    """(identity, camera) of a rendered file."""
    identity, camera = re.findall(r"^(\d+)_c(\d+)_", path.name)[0]
    return int(identity), int(camera)


def rendered(dataset: Path, part: str = "bounding_box_train") -> list[Path]:
    return sorted((dataset / part).glob("*.jpg"))


def put(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def plain(dataset: Path, folder: Path) -> list[tuple[int, int]]:
    """<folder>/cam1_00000.jpg ..., sorted; returns (identity, camera) of each."""
    found = sorted(((parts(path), path) for path in rendered(dataset)), key=lambda pair: (pair[0][1], pair[1].name))
    for number, ((_, camera), path) in enumerate(found):
        put(path, folder / f"cam{camera}_{number:05d}.jpg")
    return [facts for facts, _ in found]


def by_camera(dataset: Path, folder: Path) -> None:
    """<folder>/cam1/00000.jpg ..."""
    for number, path in enumerate(rendered(dataset)):
        put(path, folder / f"cam{parts(path)[1]}" / f"{number:05d}.jpg")


def tracks(dataset: Path, folder: Path) -> dict[str, int]:
    """<folder>/cam1/track_01/000007.jpg ...: each passage a track, which meets the one before it.

    Returns:
        name -> identity.
    """
    passages: dict[tuple[int, int], list[Path]] = {}
    for path in rendered(dataset):
        identity, camera = parts(path)
        passages.setdefault((camera, identity), []).append(path)
    names = {}
    for start, ((camera, identity), paths) in enumerate(sorted(passages.items())):
        for step, path in enumerate(paths):
            name = f"cam{camera}/track_{identity:02d}/{3 * start + 5 * step:06d}.jpg"
            put(path, folder / name)
            names[name] = identity
    return names


def labelled(dataset: Path, folder: Path) -> None:
    """<folder>/query and gallery: 0007_c2_0001.jpg, the gallery without the people who are nobody's answer."""
    for part, target in (("query", "query"), ("bounding_box_test", "gallery")):
        for number, path in enumerate(rendered(dataset, part)):
            identity, camera = parts(path)
            if identity > 0:
                put(path, folder / target / f"{identity:04d}_c{camera}_{number:04d}.jpg")


def table(path: Path, rows: list[dict]) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path
