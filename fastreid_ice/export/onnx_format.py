"""ONNX: dynamic batch, opset 17 or later, metadata in the file; run by onnxruntime for the comparison."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Callable

import torch
from torch import Tensor

from fastreid_ice.modeling.onnx_graph import INPUT, OUTPUT

PACKAGES = ("onnx", "onnxruntime")


def add_properties(path: Path, properties: Mapping[str, str]) -> None:
    """Put text by text into the file's ``metadata_props``."""
    import onnx

    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, dict(properties))
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def runner(path: Path) -> Callable[[Tensor], Tensor]:
    """The file in onnxruntime on the CPU: (N, 3, H, W) float32 to (N, D)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])
