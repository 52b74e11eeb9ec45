"""The optional packages of a format, with the command that installs what is missing."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence


def need(file_format: str, packages: Sequence[str]) -> None:
    """Raise RuntimeError unless all packages can be imported."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise RuntimeError(f"--format {file_format} needs {', '.join(missing)}: pip install {' '.join(missing)}")
