"""TorchScript: a traced module with dynamic batch, and its description in the archive."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, Callable

import torch
from torch import Tensor, nn

DESCRIPTION_FILE = "reid.json"  # within the archive


def write_torchscript(model: nn.Module, example: Tensor, path: Path, description: dict[str, Any]) -> None:
    """Trace a model and save it. It is not frozen: frozen weights could be moved to no other device or precision.

    Args:
        model: in evaluation mode, (N, 3, H, W) to (N, D).
        example: (N, 3, H, W) with N >= 2.
        path: of the file.
        description: goes into the archive as ``reid.json``.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the comparison tells whether the trace is right
        traced = torch.jit.trace(model, example, check_trace=False)
        torch.jit.save(traced, str(path), _extra_files={DESCRIPTION_FILE: json.dumps(description)})


def read_torchscript(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The module on the CPU and its description."""
    extra = {DESCRIPTION_FILE: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.load(str(path), map_location="cpu", _extra_files=extra)
    return module, json.loads(extra[DESCRIPTION_FILE] or "{}")


def runner(path: Path) -> Callable[[Tensor], Tensor]:
    """The file on the CPU: (N, 3, H, W) float32 to (N, D)."""
    module, _ = read_torchscript(path)

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            return module(images)

    return run
