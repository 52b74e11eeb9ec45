"""Files: no reader sees half of one; refused before the work begins; told apart by digests. And claims of folders."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "training.lock"


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` that takes its place when the block ends without an error.

    The temporary name ends as ``path`` does, since writers choose the format by it. When the block fails, an older
    file at ``path`` stays as it was and the temporary one is removed. A missing folder is made. Where ``path`` is a
    link, the file that it leads to is replaced.
    """
    path = Path(os.path.realpath(path) if os.path.islink(path) else path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def printable(path: str | os.PathLike) -> str:
    """A path as text that every log and screen takes: bytes of its name that are no UTF-8 become ``\\xNN``."""
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")


# The temporary names of this package: eight hexadecimal digits before the final one.
TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.(?P<name>.+)")


def remove_leftovers(folder: str | os.PathLike, patterns: Iterable[str], older_than: float = 0.0) -> list[Path]:
    """Remove the temporary files of :func:`replacing` that a killed process has left in a folder.

    Call it before this process writes there, and only where no other one does, or with an age.

    Args:
        folder: that may be missing.
        patterns: of the final names, as of a shell; the temporary files of others stay.
        older_than: seconds since the last write, where other processes may be writing.

    Returns:
        What was removed.
    """
    patterns = tuple(patterns)
    removed = []
    for path in Path(folder).glob(".*"):
        matched = TEMPORARY.fullmatch(path.name)
        if not matched or not any(fnmatchcase(matched["name"], pattern) for pattern in patterns):
            continue
        try:
            if path.is_file() and time.time() - path.stat().st_mtime >= older_than:
                path.unlink()
                removed.append(path)
        except FileNotFoundError:  # it was put into its place meanwhile
            continue
    return removed


def flush_to_disk(path: str | os.PathLike) -> None:
    """Return when a file's content is on the disk, so that a rename after it never shows half of it."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: Any, allow_nan: bool = True) -> None:
    """Write a value as json, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, allow_nan=allow_nan) + "\n")


def write_csv(path: str | os.PathLike, names: Iterable[Any], rows: Iterable[Sequence[Any]]) -> None:
    """Write rows under a header as comma-separated UTF-8, whole or not at all.

    Names of files that are no UTF-8 keep their bytes: read them with ``errors="surrogateescape"``.
    """
    with replacing(path) as temporary:
        with open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(names)
            writer.writerows(rows)


def sha256(path: str | os.PathLike) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def walk_folders(folder: Path) -> Iterable[tuple[Path, list[str]]]:
    """A folder and each one below with its files; through links too, but never round in a circle, nor into hidden ones.

    Raises:
        OSError: one of them cannot be read.
    """
    above: dict[Path, tuple[str, ...]] = {folder: (os.path.realpath(folder),)}
    for name, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        path = Path(name)
        parents = above.pop(path)
        entered = []
        for sub in folders:
            real = os.path.realpath(path / sub)
            if not sub.startswith(".") and real not in parents:
                above[path / sub] = (*parents, real)
                entered.append(sub)
        folders[:] = entered
        yield path, files


def _raise(error: OSError) -> None:
    raise error


def check_output(path: str | os.PathLike, endings: Collection[str] = ()) -> None:
    """Refuse a file that could not be written at the end, before the work begins.

    Args:
        path: file to write later; missing folders will be made.
        endings: with the dot, in small letters, that are possible; none: any.

    Raises:
        ValueError: another ending.
        IsADirectoryError: it is a folder.
        NotADirectoryError, PermissionError: its folder is a file, or may not be written.
    """
    path = Path(path)
    if endings and path.suffix.lower() not in endings:
        raise ValueError(f"{path} cannot be written: its name must end in one of {', '.join(sorted(endings))}.")
    if path.is_dir():
        raise IsADirectoryError(f"{path} cannot be written: it is a folder.")
    _check_writable(path, str(path), path.absolute().parents)


def check_folder_for_output(folder: str | os.PathLike, option: str) -> None:
    """Refuse a folder into which nothing could be written at the end, before the work begins.

    Args:
        folder: to write into; made then where it is missing.
        option: of the command line that names it, for the message.

    Raises:
        NotADirectoryError, PermissionError: it, or one above it, is a file, or may not be written.
    """
    path = Path(folder).absolute()
    _check_writable(path, f"{option} {folder}", (path, *path.parents))


class Claim:
    """Holds a lock on a file until it is closed, forgotten, or the process ends.

    Args:
        path: of the file; made where it is missing, in a folder that is there.

    Raises:
        BlockingIOError: another process holds it.
    """

    def __init__(self, path: Path):
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                self.close()
                raise BlockingIOError(error.errno, "locked", str(path)) from None

    def close(self) -> None:
        """Let others have it."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()


def claim_folder(folder: str | os.PathLike) -> Claim:
    """Keep other processes from claiming a folder, until this one ends, however it ends.

    Where the file system, or the operating system, has no locks, nothing is kept. A process may claim a folder again.

    Args:
        folder: made where it is missing; gets a file LOCK, which stays.

    Raises:
        RuntimeError: another process has it.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    try:
        return Claim(Path(folder) / LOCK)
    except BlockingIOError:
        raise RuntimeError(
            f"Another training is writing into {folder} (OUTPUT_DIR). Wait for its end, end it, or name another folder."
        ) from None


def check_outside(path: str | os.PathLike, folders: Iterable[str | os.PathLike], option: str) -> None:
    """Refuse to write pictures into one of the folders of images, of which they would be a part from then on.

    Args:
        path: file or folder to write later.
        folders: of the images.
        option: of the command line that names ``path``, for the message.

    Raises:
        ValueError: ``path`` is one of the folders or lies in it.
    """
    place = Path(path).resolve()
    within = {place, *place.parents}
    for folder in folders:
        if Path(folder).resolve() in within:
            raise ValueError(
                f"{option} {path} lies in the folder of the images, {folder}: its pictures would be images of it from "
                "then on. Name another place."
            )


def _check_writable(path: Path, name: str, above: Iterable[Path]) -> None:
    nearest = next(folder for folder in above if folder.exists())
    if not nearest.is_dir():
        what = "it" if nearest == path else str(nearest)
        raise NotADirectoryError(f"{name} cannot be written: {what} is a file.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(f"{name} cannot be written: the folder {nearest} is read-only for you.")
