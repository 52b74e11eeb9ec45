"""Where a run goes on that was ended, or killed, before its end."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any, Callable

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from fastreid_ice.engine.checkpoints import UnreadableCheckpointError
from fastreid_ice.errors import one_line

logger = logging.getLogger(__name__)

LAST_CHECKPOINT = "last_checkpoint"
SET_ASIDE = "earlier_run"

# What a run writes under a temporary name first.
RUN_FILES = (
    "model_*.pth",
    LAST_CHECKPOINT,
    "results.json",
    "metrics.json",
    "run.json",
    "clusters.csv",
    "config.yaml",
    "report.html",
)

_CHECKPOINT = re.compile(r"model_(best|final|\d+)")


def resumable_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints of a run, the one to resume from first.

    That is the one that ``last_checkpoint`` names, there or not; then the others, the last written first.
    """
    folder = Path(folder)
    others = _checkpoints(folder)
    others.sort(key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
    try:
        name = (folder / LAST_CHECKPOINT).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        name = ""
    noted = [folder / name] if name else []
    return noted + [path for path in others if path not in noted]


def set_aside_checkpoints(folder: str | Path) -> Path | None:
    """Move the checkpoints of a run before into a folder of their own, so that no later one is taken for theirs.

    A new run in the same folder could be killed before its first checkpoint; to resume would then go on with the old
    run. And the old run's best epoch could pass for the new one's.

    Returns:
        ``earlier_run_1`` in the folder, or the next number that is free; None where there was no checkpoint.
    """
    folder = Path(folder)
    checkpoints = _checkpoints(folder)
    if not checkpoints:
        return None
    number = 1
    while (folder / f"{SET_ASIDE}_{number}").exists():
        number += 1
    target = folder / f"{SET_ASIDE}_{number}"
    target.mkdir()
    for path in [folder / LAST_CHECKPOINT, *checkpoints]:
        if path.is_file():
            path.rename(target / path.name)
    return target


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("model_*.pth") if _CHECKPOINT.fullmatch(path.stem)]


def load_newest(folder: str | Path, load: Callable[[str], Any]) -> Any:
    """Load the newest checkpoint of a run that can be read; warn where that is not the newest there is.

    Args:
        folder: of the run.
        load: loads a checkpoint by its path, and changes nothing where it raises :class:`UnreadableCheckpointError`.

    Returns:
        What ``load`` returns; None where the folder holds no checkpoint.

    Raises:
        UnreadableCheckpointError: there are checkpoints, but none can be read; lists them.
    """
    checkpoints = resumable_checkpoints(folder)
    if checkpoints and not (Path(folder) / LAST_CHECKPOINT).is_file():
        logger.warning("%s has no file %s: resuming from %s, the last written", folder, LAST_CHECKPOINT, checkpoints[0])
    problems: list[str] = []
    for path in checkpoints:
        try:
            stored = load(str(path))
        except (UnreadableCheckpointError, FileNotFoundError) as error:
            problems.append(one_line(error))
            continue
        if problems:
            logger.warning("Resuming from %s instead: %s", path, "; ".join(problems))
        return stored
    if problems:
        raise UnreadableCheckpointError(
            f"No checkpoint in {folder} can be resumed from: {'; '.join(problems)}. Start without --resume, or in "
            "another OUTPUT_DIR."
        )
    return None
