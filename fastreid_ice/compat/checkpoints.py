"""Repairs of the checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastreid_ice.compat.rebinding import replace, upstream

import torch

from fastreid_ice.files import flush_to_disk, replacing


def repair_checkpointer() -> None:
    """utils/checkpoint.py:83,280: checkpoints are written in place and unpickled without restriction.

    A crash while saving left a half-written file that ``--resume`` then chose. Checkpoints are now written under a
    temporary name and renamed, and loaded with ``weights_only=True``.
    """
    checkpointer = upstream("utils.checkpoint").Checkpointer
    replace(checkpointer, "save", lambda original: _save)
    replace(checkpointer, "tag_last_checkpoint", lambda original: _tag_last_checkpoint)
    replace(checkpointer, "_load_file", lambda original: _load_file)


def _save(self: Any, name: str, **kwargs: Any) -> None:
    """Save model, checkpointables and ``kwargs``, and note the file as the one to resume from."""
    if not self.save_dir or not self.save_to_disk:
        return
    self.tag_last_checkpoint(write_checkpoint(self, name, **kwargs).name)


def write_checkpoint(checkpointer: Any, name: str, **extra: Any) -> Path:
    """Write model, checkpointables and ``extra`` as ``<save_dir>/<name>.pth``, whole or not at all; return the path."""
    data = {"model": checkpointer.model.state_dict()}
    data.update({key: _plain(obj.state_dict()) for key, obj in checkpointer.checkpointables.items()})
    data.update(extra)
    path = Path(checkpointer.save_dir) / f"{name}.pth"
    checkpointer.logger.info("Saving checkpoint to %s", path)
    with replacing(path) as temporary:
        torch.save(data, temporary)
        flush_to_disk(temporary)
    return path


def _plain(state: Any) -> Any:
    """Counters (the milestones of MultiStepLR) as dicts: torch < 2.4 refuses to load them with ``weights_only``."""
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    return [_plain(value) for value in state] if isinstance(state, list) else state


def _tag_last_checkpoint(self: Any, last_filename_basename: str) -> None:
    """Write the name of the newest checkpoint into ``<save_dir>/last_checkpoint``."""
    with replacing(Path(self.save_dir) / "last_checkpoint") as temporary:
        temporary.write_text(last_filename_basename)


def _load_file(self: Any, path: str) -> dict:
    """Load a checkpoint file; tensors and plain values only, so that a downloaded file cannot run code.

    A file that holds a bare state dict is taken for the model's; upstream fails on it with ``KeyError: 'model'``.
    """
    data = torch.load(path, map_location=torch.device("cpu"), weights_only=True)
    return data if "model" in data else {"model": data}
