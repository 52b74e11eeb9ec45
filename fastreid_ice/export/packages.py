"""The optional packages of a format, with the command that installs what is missing."""

from __future__ import annotations

from collections.abc import Sequence

from fastreid_ice.errors import missing_packages


def need(file_format: str, packages: Sequence[str]) -> None:
    """Raise RuntimeError unless all packages can be imported."""
    if missing := missing_packages(packages):
        raise RuntimeError(f"--format {file_format} needs {missing}")
