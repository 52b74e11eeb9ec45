"""A search index as a folder: the vectors, the images, and what they were made with.

index.faiss    the vectors
images.csv     path, size in bytes, time of the last change in ns (both -1 where unknown), number of the vector
index.json     format, counts, settings, the model's fingerprint
"""

from __future__ import annotations

import csv
import glob
import json
import os
import secrets
import shutil
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import faiss

from fastreid_ice.files import TEMPORARY
from fastreid_ice.search.vectors import Vectors

FORMAT = 1
VECTORS, IMAGES, HEADER = "index.faiss", "images.csv", "index.json"
FILES = {VECTORS, IMAGES, HEADER}
A_DAY = 24 * 60 * 60  # seconds
COLUMNS = ["path", "size", "mtime_ns", "number"]


@dataclass(frozen=True)
class Entry:
    """An image of the index: its path, its file's state when its features were made, the number of its vector."""

    path: str
    size: int
    mtime_ns: int
    number: int


@dataclass(frozen=True)
class Header:
    """What ``index.json`` says beside the format.

    Attributes:
        images: number of images.
        dimensions: of a vector.
        kind: "auto", "exact" or "ivf", as it was asked for.
        vectors: of :class:`Vectors`: ``kind``, ``cells_probed``, ``recall``, ``trained_on``.
        vector_bytes: size of ``index.faiss``.
        next_number: for the next image that is added.
        root: folder to which the paths are relative.
        model_sha256: of the model that made the features, "" if unknown.
        input_size: (height, width) that it saw, or None.
    """

    images: int
    dimensions: int
    kind: str
    vectors: dict
    vector_bytes: int
    next_number: int
    root: str
    model_sha256: str
    input_size: list[int] | None


def write_folder(folder: Path, header: dict, vectors: Vectors, entries: list[Entry]) -> None:
    """Write an index beside its place, then put it there: a reader sees the older one or this one, whole.

    Where one is replaced, there is none for the moment between two renames.

    Args:
        folder: its place; replaced if it holds an index.
        header: fields of :class:`Header` but those that follow from the other arguments.
        vectors: the vectors of the entries.
        entries: the images.

    Raises:
        ValueError: the folder holds something else, which would be lost, or is a mount point.
        OSError: it cannot be written.
    """
    folder = Path(os.path.realpath(folder))  # of a link, what it leads to is replaced
    check_place(folder)
    check_no_mount(folder)
    _remove_leftovers(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{secrets.token_hex(4)}.{folder.name}")
    try:
        temporary.mkdir()
        with open(temporary / VECTORS, "wb") as vector_file:  # faiss itself knows paths in UTF-8 only
            faiss.write_index(vectors.index, faiss.PyCallbackIOWriter(vector_file.write))  # type: ignore[attr-defined]
        with open(temporary / IMAGES, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows((e.path, e.size, e.mtime_ns, e.number) for e in entries)
        state = {key: getattr(vectors, key) for key in ("kind", "cells_probed", "recall", "trained_on")}
        size = (temporary / VECTORS).stat().st_size
        whole = Header(images=len(entries), vectors=state, vector_bytes=size, **header)
        (temporary / HEADER).write_text(json.dumps({"format": FORMAT, **asdict(whole)}, indent=1), encoding="utf-8")
        _put(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_place(folder: Path) -> None:
    """Refuse a place where writing an index would destroy something else.

    Raises:
        ValueError: there is a file, or a folder with other contents than an index.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"The search index would take the place of the file {folder}. Name another folder (--index).")
    others = sorted(entry.name for entry in folder.iterdir() if entry.name not in FILES and not _is_litter(entry.name))
    if others:
        raise ValueError(
            f"{folder} is no search index: it holds {others[0]!r}, which would be lost. Name another folder (--index)."
        )


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed writers have left beside an index; of the last day's, one may be at work."""
    for path in folder.parent.glob(f".*.{glob.escape(folder.name)}"):
        if not TEMPORARY.fullmatch(path.name) or not path.is_dir() or path.is_symlink():
            continue
        with suppress(OSError):
            inside = {entry.name: entry.stat().st_mtime for entry in path.iterdir()}
            newest = max([path.stat().st_mtime, *inside.values()])
            if inside.keys() <= FILES and time.time() - newest > A_DAY:
                shutil.rmtree(path)


def check_no_mount(folder: Path) -> None:
    """Refuse a folder that nothing can take the place of.

    Raises:
        ValueError: a disk is mounted there.
    """
    if os.path.ismount(folder):
        raise ValueError(
            f"The search index cannot be written as {folder}, where a disk is mounted: it is replaced as a whole. "
            f"Name a folder inside (--index {folder / 'index'})."
        )


def _is_litter(name: str) -> bool:
    """What file managers leave in any folder that they have shown."""
    return name in (".DS_Store", "Thumbs.db", "desktop.ini") or name.startswith("._")


def _put(temporary: Path, folder: Path) -> None:
    if not folder.exists():
        os.rename(temporary, folder)
        return
    older = folder.with_name(f".{secrets.token_hex(4)}.{folder.name}")
    os.rename(folder, older)
    try:
        os.rename(temporary, folder)
    except OSError:
        os.rename(older, folder)
        raise
    shutil.rmtree(older)


def read_folder(folder: Path) -> tuple[Header, Vectors, list[Entry]]:
    """Read what :func:`write_folder` wrote.

    Raises:
        FileNotFoundError: there is no index.
        ValueError: it is damaged, or of another format.
    """
    header = read_header(folder)
    path = folder / VECTORS
    size = path.stat().st_size if path.exists() else 0
    if size != header.vector_bytes:
        raise ValueError(_damaged(folder, f"{VECTORS} has {size:,} bytes, {header.vector_bytes:,} were written"))
    try:
        with open(path, "rb") as vector_file:
            read = faiss.PyCallbackIOReader(vector_file.read)  # type: ignore[attr-defined]
            vectors = Vectors(faiss.read_index(read), **header.vectors)
        entries = _read_entries(folder / IMAGES)
    except (RuntimeError, OSError, ValueError, TypeError, csv.Error) as error:
        raise ValueError(_damaged(folder, str(error).splitlines()[0])) from error
    if not len(vectors) == len(entries) == header.images:
        found = f"{len(vectors)} vectors and {len(entries)} paths for {header.images} images"
        raise ValueError(_damaged(folder, found))
    return header, vectors, entries


def read_header(folder: Path) -> Header:
    """What ``index.json`` says.

    Raises:
        FileNotFoundError: there is no index.
        ValueError: it is damaged, or of another format.
    """
    path = folder / HEADER
    if not path.is_file():
        raise FileNotFoundError(f"There is no search index at {folder} (no {HEADER}).")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        found = fields.pop("format")
        if found == FORMAT:
            return Header(**fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(_damaged(folder, f"{HEADER}: {error}")) from error
    raise ValueError(
        f"The search index {folder} has format {found}, {FORMAT} is needed. Remove the folder to build it anew."
    )


def _read_entries(path: Path) -> list[Entry]:
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = csv.reader(file)
        if next(rows, None) != COLUMNS:
            raise ValueError(f"{IMAGES} does not begin with {','.join(COLUMNS)}")
        return [Entry(name, int(size), int(mtime), int(number)) for name, size, mtime, number in rows]


def _damaged(folder: Path, how: str) -> str:
    return f"The search index {folder} is damaged: {how}. Remove the folder to build it anew."
