"""What a grid of runs is: axes and their values on a command line, or axes and named rows in a file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastreid_ice.report.reading import read_yaml

CONFIG = "config"  # key of a row that names its config file
OWN_KEYS = {"SEED": "--seeds", "OUTPUT_DIR": "--output"}  # that the grid sets itself
_PAIRS = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class GridFile:
    """What a grid file says; see :func:`read_grid`.

    Attributes:
        axes: config keys and their values, every combination of which is a setting; none if there are rows.
        rows: settings by name, each its config keys and values, and under ``CONFIG`` its config file if it has its own.
        options: config keys and values of all runs.
        seeds: of each setting; none if the file leaves that open.
    """

    axes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    rows: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    seeds: Sequence[int] = ()


def split_values(text: str) -> list[str]:
    """The values of an axis: separated by commas or semicolons outside of brackets and quotes.

    Example:
        >>> split_values("0.5,0.55")
        ['0.5', '0.55']
        >>> split_values("('A',);('A','B')")
        ["('A',)", "('A','B')"]
    """
    values, closing, start = [], "", 0
    for position, character in enumerate(text):
        if closing and character == closing[-1]:
            closing = closing[:-1]
        elif closing and closing[-1] in "'\"":
            continue
        elif character in "'\"":
            closing += character
        elif character in _PAIRS:
            closing += _PAIRS[character]
        elif character in ",;" and not closing:
            values.append(text[start:position].strip())
            start = position + 1
    if closing:
        raise ValueError(f"{text}: a {closing[-1]} is missing")
    return [*values, text[start:].strip()]


def parse_axes(arguments: Iterable[str]) -> dict[str, list[str]]:
    """Axes of a grid from KEY=VALUE,VALUE... arguments.

    Raises:
        ValueError: no such form, a key twice, a key that the grid sets itself, or a value twice.
    """
    axes: dict[str, list[str]] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"--grid {argument}: needs KEY=VALUE,VALUE,...")
        if key.strip() in axes:
            raise ValueError(f"--grid has {key.strip()} twice; give all its values in one")
        axes[key.strip()] = split_values(text)
    _check_axes(axes)
    return axes


def read_grid(path: str | os.PathLike) -> GridFile:
    """Read a yaml file with ``grid`` or ``rows`` and, if wanted, ``options`` and ``seeds``.

    ``grid`` is KEY: list of values, ``rows`` is NAME: {KEY: VALUE, ...} where the key ``config`` names another config
    file, ``options`` is KEY: VALUE, ``seeds`` a list.

    Raises:
        FileNotFoundError, ValueError: one line that names the file and what is wrong.
    """
    path = Path(path)
    content = read_yaml(path)
    if not isinstance(content, dict) or set(content) - {"grid", "rows", "options", "seeds"}:
        raise ValueError(
            f"{path}: needs 'grid' (KEY: [VALUE, ...]) or 'rows' (NAME: {{KEY: VALUE, ...}}) and may have 'options' "
            "(KEY: VALUE) and 'seeds', nothing else"
        )
    grid, rows, options, seeds = (content.get(key) or {} for key in ("grid", "rows", "options", "seeds"))
    if grid and rows:
        raise ValueError(f"{path}: has both 'grid' and 'rows'; choose one")
    if not isinstance(grid, dict) or not all(isinstance(values, list) for values in grid.values()):
        raise ValueError(f"{path}: 'grid' needs a list of values for each key")
    if not isinstance(rows, dict) or not all(isinstance(row or {}, dict) for row in rows.values()):
        raise ValueError(f"{path}: 'rows' needs NAME: {{KEY: VALUE, ...}} for each row")
    if not isinstance(options, dict):
        raise ValueError(f"{path}: 'options' needs KEY: VALUE")
    if seeds and (not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds)):
        raise ValueError(f"{path}: 'seeds' is {seeds!r}, but must be a list of whole numbers")
    axes = {str(key): [_written(value) for value in grid[key]] for key in grid}
    _check_axes(axes)
    named = {str(name): {str(key): _written(value) for key, value in (rows[name] or {}).items()} for name in rows}
    for keys in (*named.values(), options):
        if own := set(OWN_KEYS) & set(keys):
            raise ValueError(f"{path}: {min(own)} cannot be a key of it: {OWN_KEYS[min(own)]} sets it")
    return GridFile(axes, named, {str(key): _written(value) for key, value in options.items()}, list(seeds))


def _written(value: Any) -> str:
    """A value of a yaml file as a command line has it."""
    return str(tuple(value) if isinstance(value, list) else value)


def _check_axes(axes: Mapping[str, Sequence[str]]) -> None:
    for key, values in axes.items():
        if key in OWN_KEYS:
            raise ValueError(f"{key} cannot be an axis of the grid: {OWN_KEYS[key]} sets it")
        if not values or "" in values:
            raise ValueError(f"{key} has an empty value in the grid")
        repeated = [value for value in values if values.count(value) > 1]
        if repeated:
            raise ValueError(f"{key} has the value {repeated[0]} twice in the grid")
