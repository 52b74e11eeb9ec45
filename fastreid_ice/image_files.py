"""Image files of a folder: which there are, whether they can be read, and which show the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from fastreid_ice.cores import usable_cores
from fastreid_ice.files import walk_folders

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp")


def find_images(folder: str | os.PathLike, extensions: Sequence[str] = IMAGE_EXTENSIONS) -> list[str]:
    """Names of all images under a folder, at any depth, relative to it, with "/" between folders, sorted.

    Hidden files and folders (".name") are left out. Links are followed; a folder that links to one of its parents
    is entered once.

    Args:
        folder: where to look.
        extensions: endings of the files to take, without the dot; capital and small letters are the same.

    Raises:
        FileNotFoundError: there is no such folder, or it holds no such image.
        NotADirectoryError: it is a file.
        PermissionError: a folder below cannot be listed.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"There is no folder of images at {folder}.")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; a folder of images is needed.")
    endings = tuple("." + extension.lower().lstrip(".") for extension in extensions)
    names = []
    for path, files in walk_folders(folder):
        prefix = "" if path == folder else path.relative_to(folder).as_posix() + "/"
        names += [prefix + file for file in files if file.lower().endswith(endings) and not file.startswith(".")]
    if not names:
        raise FileNotFoundError(f"The folder {folder} holds no image ({', '.join(extensions)}), at any depth.")
    return sorted(names)


def first_of_twins(paths: Sequence[str]) -> str | None:
    """The first of the paths that is, links followed, a file that another before it is; None where there is none."""
    seen: set[str] = set()
    folders: dict[str, str] = {}  # and what they are, links followed
    for given in paths:
        folder, name = os.path.split(os.path.abspath(given))
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        path = os.path.join(folders[folder], name)
        if os.path.islink(path):
            path = os.path.realpath(path)
        if path in seen:
            return given
        seen.add(path)
    return None


def as_rgb(opened: Image.Image) -> Image.Image:
    """Turned as its camera says (EXIF), and three colours of a byte each: palettes and grey, too; opacity is left out.

    Raises:
        ValueError: its numbers do not fit into a byte; Pillow would cut them off.
    """
    if opened.mode.startswith(("I", "F")):
        raise ValueError(f"its pixels are of Pillow's mode {opened.mode}, more than a byte each: convert it to 8 bits")
    turned = opened
    with suppress(Exception):  # a damaged EXIF; as upstream. A damaged picture fails below
        turned = ImageOps.exif_transpose(opened)
    return turned.convert("RGB")


@dataclass(frozen=True)
class ImageFacts:
    """What decoding a file tells.

    Attributes:
        path: as it was given.
        width: in pixels, 0 where the file cannot be read.
        height: likewise.
        digest: the same for images that show the same pixels, whatever their format; "" where it cannot be read.
        problem: why it cannot be read, or None.
    """

    path: str
    width: int
    height: int
    digest: str
    problem: str | None


def inspect_image(path: str | os.PathLike) -> ImageFacts:
    """Decode a file completely, turned as its camera says (EXIF)."""
    try:
        with Image.open(path) as opened:
            image = as_rgb(opened)
    except Exception as error:  # Pillow raises a dozen kinds for damaged files
        return ImageFacts(str(path), 0, 0, "", _reason(error))
    content = hashlib.sha256(repr(image.size).encode())
    content.update(image.tobytes())
    return ImageFacts(str(path), image.width, image.height, content.hexdigest(), None)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if "cannot identify image file" in str(error):
        return "not an image that can be read"
    return str(error) or type(error).__name__


def inspect_images(paths: Sequence[str | os.PathLike], workers: int | None = None) -> list[ImageFacts]:
    """:func:`inspect_image` of all files in their order, by ``workers`` threads (None: one per processor)."""
    with ThreadPoolExecutor(workers or usable_cores()) as pool:
        return list(pool.map(inspect_image, paths))


def find_unreadable(paths: Sequence[str | os.PathLike], workers: int | None = None) -> list[tuple[str, str]]:
    """The files that cannot be decoded completely, each with the reason."""
    return [(facts.path, facts.problem) for facts in inspect_images(paths, workers) if facts.problem is not None]


def same_pixels(images: Iterable[ImageFacts]) -> list[tuple[str, ...]]:
    """Groups of at least two images with the same digest, in the order of their first members.

    A copy of a file is found, and so is the same picture in another lossless format. Files that cannot be read are
    in no group.
    """
    groups: dict[str, list[str]] = {}
    for image in images:
        if image.problem is None:
            groups.setdefault(image.digest, []).append(image.path)
    return [tuple(group) for group in groups.values() if len(group) > 1]
