"""What a csv file says about the images of a folder."""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("camera", "identity", "track", "frame", "score")
SHOWN = 3  # names in a message


def read_table(
    path: str | os.PathLike,
    folder: Path,
    names: Sequence[str],
    needed: Collection[str],
    known: Collection[str] = (),
) -> dict[str, tuple[str, ...]]:
    """Read ``path,camera[,identity][,track][,frame][,score]``, in any order of columns, one row per image.

    Args:
        path: the csv file, UTF-8, with a header. Its paths are relative to ``folder`` or to its own folder, or
            absolute. Further columns are left alone.
        folder: of the images.
        names: N images relative to the folder; each needs a row.
        needed: columns that must be there and filled; "track" for some of the images.
        known: further images that may have a row, which is not used.

    Returns:
        Those of the columns above that the file has -> N texts, in the order of ``names``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a csv file in UTF-8, lacks a column, names an unknown image, one twice, or not all.
    """
    path = Path(path)
    rows = _rows(path, needed)
    places = {os.path.abspath(folder / name): name for name in (*names, *known)}
    found: dict[str, dict[str, str]] = {}
    unknown = []
    for line, row in rows:
        tried = (os.path.abspath(base / row["path"]) for base in (folder, path.parent))
        name = next((places[place] for place in tried if place in places), None)
        if name is None:
            unknown.append(row["path"])
        elif name in found:
            raise ValueError(f"{path}, line {line}: the image {row['path']} has a row already.")
        else:
            found[name] = row
    if unknown:
        raise ValueError(f"{path} names images that are not in {folder}, {some(unknown, len(rows))}.")
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{path} has no row for {some(missing, len(names))}.")
    _check_filled(path, found, names, needed)
    columns = [column for column in COLUMNS if column in rows[0][1]]
    return {column: tuple(found[name][column] for name in names) for column in columns}


def columns(path: str | os.PathLike) -> list[str]:
    """The header of a csv file that :func:`read_table` can read."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        return next(csv.reader(file, skipinitialspace=True), [])


def _rows(path: Path, needed: Collection[str]) -> list[tuple[int, dict[str, str]]]:
    """(line, row) of all rows; there is at least one, with all needed columns."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no csv file at {path}.")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            header = reader.fieldnames or []
            lacking = [column for column in ("path", *needed) if column not in header]
            if lacking:
                raise ValueError(
                    f"{path} has the columns {', '.join(header) or '(none)'}; it lacks {', '.join(lacking)}."
                )
            rows = []
            for row in reader:
                if not any(text.strip() for text in _texts(row)):  # as spreadsheets leave them at the end
                    continue
                if None in row or None in row.values():
                    raise ValueError(f"{path}, line {reader.line_num}: not as many fields as in the header.")
                rows.append((reader.line_num, {column: text.strip() for column, text in row.items()}))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no csv file in UTF-8: {error}.") from error
    if not rows:
        raise ValueError(f"{path} has a header, but no row.")
    return rows


def _texts(row: dict[Any, Any]) -> Iterator[str]:
    """The fields of a row, those beyond the header too."""
    for value in row.values():
        yield from value if isinstance(value, list) else [value or ""]


def _check_filled(path: Path, found: dict[str, dict[str, str]], names: Sequence[str], needed: Collection[str]) -> None:
    for column in needed:
        empty = [name for name in names if not found[name][column]]
        if empty and not (column == "track" and len(empty) < len(names)):
            raise ValueError(f"{path} has no {column} for {some(empty, len(names))}.")


def some(names: Sequence[str], total: int) -> str:
    """A count and the first three names, for messages."""
    first = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"{len(names)} of {total} images: {first}"
