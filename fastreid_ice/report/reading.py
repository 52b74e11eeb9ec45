"""Reading files that a person may have written: errors of one line that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml


def read_json(path: Path) -> Any:
    """Parse a json file.

    Raises:
        FileNotFoundError, ValueError: with one line that names the file.
    """
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid json ({error.msg}, line {error.lineno})") from None


def read_yaml(path: Path) -> Any:
    """Parse a yaml file, plain values only.

    Raises:
        FileNotFoundError, ValueError: with one line that names the file.
    """
    try:
        return yaml.safe_load(_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid yaml ({' '.join(str(error).split())})") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file") from None
