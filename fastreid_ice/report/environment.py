"""Where a run ran: versions, commit and machine, without the name of a host, a user or a folder."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from fastreid_ice import __version__
from fastreid_ice.cores import usable_cores

_PACKAGES = {
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "numpy": ("numpy",),
    "faiss": ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12", "faiss-gpu-cu11"),
    "numba": ("numba",),
    "fastreid": ("fastreid",),
}


def versions() -> dict[str, str | None]:
    """Versions of Python and of what decides the numbers; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "fastreid_ice": __version__}
    for name, distributions in _PACKAGES.items():
        found[name] = next((version for d in distributions if (version := _version(d)) is not None), None)
    return found


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def commit(root: Path | None = None) -> dict[str, Any] | None:
    """Git commit of the checkout that this package lies in, and whether tracked files differ from it.

    Args:
        root: top of the checkout; that of this package unless given.

    Returns:
        ``{"hash": ..., "dirty": ...}``, or None outside a checkout and without git.
    """
    root = Path(__file__).resolve().parents[2] if root is None else root
    if not (root / ".git").exists():
        return None  # installed: a repository further up would be somebody else's
    try:
        head = _git(root, "rev-parse", "HEAD")
        return {"hash": head, "dirty": bool(_git(root, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    # without optional locks: killed in the middle, it would leave the index of the checkout locked
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


def machine(gpus: Sequence[str] = (), threads: int | None = None) -> dict[str, Any]:
    """CPU model, cores (physical, None if unknown), threads (unless given, all that may be used), names of GPUs."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    cores = set(re.findall(r"^physical id\s*:\s*(\d+)\n(?:.+\n)*?core id\s*:\s*(\d+)$", text, re.MULTILINE))
    return {
        "cpu": model.group(1).strip() if model else platform.machine() or "unknown",
        "cores": len(cores) or None,
        "threads": usable_cores() if threads is None else threads,
        "gpus": [str(gpu) for gpu in gpus],
    }
