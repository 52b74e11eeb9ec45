"""Discovered identities as folders of images: one per identity, or laid out as Market-1501.

Needs numpy and Pillow only. A folder appears whole or not at all. Both hold pictures of people (or of vehicles with
their plates): a note in them says so.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fastreid_ice.image_files import as_rgb

TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"
# What fastreid's class Market1501 asserts.
MOST_IDENTITIES, MOST_CAMERAS = 1501, 6
JPEG_QUALITY = 95
NOTE = (
    "The pictures in this folder show people, sorted by who they are taken for. Numbers of identities are those of a\n"
    "clustering and may be wrong. Keep, share and delete the folder as the law and your promises ask for.\n"
)


@dataclass(frozen=True)
class MarketFolder:
    """What :func:`write_market_folder` wrote.

    Attributes:
        folder: with the three folders of Market-1501.
        train: number of images to train on.
        query: number of queries.
        gallery: number of images to search in.
        identities: number of identities, those of queries and gallery included.
        test_identities: number of identities in queries and gallery.
        names: N names relative to ``folder``, None for images left out.
    """

    folder: Path
    train: int
    query: int
    gallery: int
    identities: int
    test_identities: int
    names: tuple[str | None, ...]


def write_market_folder(
    folder: str | os.PathLike,
    paths: Sequence[str],
    labels: np.ndarray,
    cameras: np.ndarray,
    *,
    test_share: float | None = None,
    seed: int = 0,
) -> MarketFolder:
    """Copy labelled images into Market-1501's layout, on which stock fastreid trains.

    Files are named ``<identity>_c<camera>s1_<number>_00.jpg``: identity and camera from 1 on, number of the image in
    the order of ``paths``. Images that are no JPEG are encoded as such. Outliers are left out.

    Args:
        folder: to write; it must not exist, or be empty.
        paths: N image files.
        labels: (N,) int64 identities, -1 = outlier.
        cameras: (N,) int64 cameras from 0 on.
        test_share: share that becomes queries and gallery instead of training images of the identities that several
            cameras have seen, one of them more than once: one query for each camera, the first image, the rest gallery.
            None: a quarter, or none where there are fewer than two such identities.
        seed: of the draw.

    Raises:
        FileExistsError: the folder is there and holds something.
        ValueError: nothing to write, a share that is not possible, or more identities or cameras than fastreid's class
            Market1501 reads.
        OSError: an image cannot be read, or the folder cannot be written.
    """
    _check_market(labels, cameras)
    names = market_names(labels, cameras, _test_identities(labels, cameras, test_share, seed))
    with new_folder(folder) as temporary:
        for part in (TRAIN, QUERY, GALLERY):
            (temporary / part).mkdir()
        for path, name in zip(paths, names):
            if name is not None:
                _copy_as_jpeg(path, temporary / name)
    count = {part: sum(name is not None and name.startswith(f"{part}/") for name in names) for part in (TRAIN, QUERY)}
    written = sum(name is not None for name in names)
    tested = {name.split("/")[1][:4] for name in names if name is not None and not name.startswith(TRAIN)}
    return MarketFolder(
        Path(folder),
        count[TRAIN],
        count[QUERY],
        written - count[TRAIN] - count[QUERY],
        len(np.unique(labels[labels >= 0])),
        len(tested),
        tuple(names),
    )


def market_names(labels: np.ndarray, cameras: np.ndarray, tested: np.ndarray) -> list[str | None]:
    """The names that images get in Market-1501's layout, relative to its folder; None for outliers.

    Args:
        labels: (N,) int64, -1 = outlier.
        cameras: (N,) int64.
        tested: labels whose images become queries and gallery.

    Example:
        >>> market_names(np.array([0, -1, 1, 1]), np.array([0, 0, 2, 2]), np.array([1]))
        ['bounding_box_train/0001_c1s1_000000_00.jpg', None, 'query/0002_c3s1_000002_00.jpg', \
'bounding_box_test/0002_c3s1_000003_00.jpg']
    """
    asked: set[tuple[int, int]] = set()
    names: list[str | None] = []
    for number, (label, camera) in enumerate(zip(labels.tolist(), cameras.tolist())):
        if label < 0:
            names.append(None)
            continue
        part = TRAIN
        if label in tested:
            part = GALLERY if (label, camera) in asked else QUERY
            asked.add((label, camera))
        names.append(f"{part}/{label + 1:04d}_c{camera + 1}s1_{number:06d}_00.jpg")
    return names


def _check_market(labels: np.ndarray, cameras: np.ndarray) -> None:
    if not (labels >= 0).any():
        raise ValueError("There is no identity to write: all images are outliers.")
    _check_limit(int(labels.max()) + 1, MOST_IDENTITIES, "identities")
    check_market_cameras(cameras)


def check_market_cameras(cameras: np.ndarray) -> None:
    """Raise ValueError if the (N,) int64 cameras, from 0 on, are more than fastreid's class Market1501 reads."""
    _check_limit(int(cameras.max()) + 1, MOST_CAMERAS, "cameras")


def check_test_share(share: float | None) -> None:
    """Raise ValueError if it is no share of identities that leaves some to train on."""
    if share is not None and not 0 <= share < 1:
        raise ValueError(f"The share of identities to test with is {share}; it must be in [0, 1).")


def _check_limit(found: int, limit: int, what: str) -> None:
    if found > limit:
        raise ValueError(
            f"There are {found} {what}, but fastreid's class Market1501 reads at most {limit}. Use the table "
            "or the folders of links instead, or fewer images."
        )


def _test_identities(labels: np.ndarray, cameras: np.ndarray, share: float | None, seed: int) -> np.ndarray:
    check_test_share(share)
    kept = np.stack([labels, cameras])[:, labels >= 0]
    identities, images = np.unique(kept[0], return_counts=True)
    seen_by = np.unique(np.unique(kept, axis=1)[0], return_counts=True)[1]
    possible = identities[(seen_by > 1) & (images > seen_by)]  # the queries leave something to find
    if share == 0 or (share is None and len(possible) < 2):
        return possible[:0]
    wanted = max(1, round((0.25 if share is None else share) * len(possible)))
    if wanted > len(possible) or wanted >= len(identities):
        raise ValueError(
            f"{wanted} of {len(identities)} identities cannot be tested with: several cameras, and one of them more "
            f"than once, have seen {len(possible)}, and one must remain to train on. Lower the share; 0 puts all into "
            "the training images."
        )
    return np.sort(np.random.default_rng(seed).permutation(possible)[:wanted])


def write_identity_folders(
    folder: str | os.PathLike, paths: Sequence[str], labels: np.ndarray, *, copy: bool = False
) -> Path:
    """A folder for each identity (``identity_0000``) and one for the outliers, with links to the images or copies.

    A file keeps its name, with a number in front so that names that occur twice do not clash.

    Args:
        folder: to write; it must not exist, or be empty.
        paths: N image files.
        labels: (N,) int64, -1 = outlier.
        copy: copies instead of symbolic links.

    Raises:
        FileExistsError: the folder is there and holds something.
        OSError: an image cannot be read, or the folder cannot be written.
    """
    with new_folder(folder) as temporary:
        for number, (path, label) in enumerate(zip(paths, labels.tolist())):
            part = temporary / ("outliers" if label < 0 else f"identity_{label:04d}")
            part.mkdir(exist_ok=True)
            target = part / f"{number:06d}_{Path(path).name}"
            if copy:
                shutil.copyfile(path, target)
            else:
                target.symlink_to(os.path.abspath(path))
    return Path(folder)


def check_new_folder(folder: str | os.PathLike) -> None:
    """Raise FileExistsError if the folder is there and holds something, or is a file."""
    path = Path(folder)
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{path} is there already; name a new folder, or remove it")


@contextmanager
def new_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``folder``, with a note in it, when the block ends without an error."""
    path = Path(folder)
    check_new_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    temporary.mkdir()
    try:
        yield temporary
        (temporary / "README.txt").write_text(NOTE, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy_as_jpeg(path: str, target: Path) -> None:
    """The bytes of a JPEG file that fastreid reads as we do, or the picture encoded as one."""
    with Image.open(path) as image:
        if image.format != "JPEG" or image.mode not in ("RGB", "L"):
            as_rgb(image).save(target, quality=JPEG_QUALITY)
            return
    shutil.copyfile(path, target)
