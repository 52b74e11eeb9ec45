"""The graph of a model as an ONNX file, by whichever exporter torch has."""

from __future__ import annotations

import inspect
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastreid_ice.errors import missing_packages

logger = logging.getLogger(__name__)

INPUT, OUTPUT = "images", "embeddings"
DEFAULT_OPSET = 17
OPSETS = (17, 23)  # first and last that may be asked for


def write_onnx(model: nn.Module, example: Tensor, path: Path, opset: int, dynamic_size: bool) -> None:
    """Export a model whose batch may have any size.

    torch's exporter by tracing is tried first: it is there from torch 2.1 on, ten times as fast as the newer one, and
    knows opset 17. Where it is gone, or fails, the newer one (``dynamo=True``) is taken, which starts at opset 18.

    Args:
        model: in evaluation mode, (N, 3, H, W) to (N, D).
        example: (N, 3, H, W) with N >= 2.
        path: of the file.
        opset: version of ONNX's operators.
        dynamic_size: height and width may vary too.

    Raises:
        RuntimeError: neither exporter can.
    """
    by_tracing: Exception | None = None
    try:
        _export(model, example, path, opset, dynamic_size, dynamo=False)
        return
    except Exception as error:
        by_tracing = error
        logger.info("torch's ONNX exporter by tracing failed (%s): trying the one by torch.export", error)
    if "dynamo" not in inspect.signature(torch.onnx.export).parameters:
        raise RuntimeError(f"torch {torch.__version__} cannot export this model to ONNX: {by_tracing}") from by_tracing
    if missing := missing_packages(["onnxscript"]):
        raise RuntimeError(f"torch's newer ONNX exporter needs {missing}") from by_tracing
    try:
        _export(model, example, path, max(opset, 18), dynamic_size, dynamo=True)
    except Exception as error:
        raise RuntimeError(
            f"torch {torch.__version__} cannot export this model to ONNX: by tracing {by_tracing}; by torch.export "
            f"{error}"
        ) from error


def _export(model: nn.Module, example: Tensor, path: Path, opset: int, dynamic_size: bool, dynamo: bool) -> None:
    options: dict[str, Any] = {"input_names": [INPUT], "output_names": [OUTPUT], "opset_version": opset}
    names = {0: "batch", 2: "height", 3: "width"} if dynamic_size else {0: "batch"}
    known = inspect.signature(torch.onnx.export).parameters
    if dynamo:
        options["dynamic_shapes"] = ({axis: torch.export.Dim(name) for axis, name in names.items()},)
        options.update({"dynamo": True, "external_data": False, "verbose": False})
    else:
        options["dynamic_axes"] = {INPUT: names, OUTPUT: {0: "batch"}}
        if "dynamo" in known:
            options["dynamo"] = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the comparison tells whether the trace is right
        torch.onnx.export(model, (example,), str(path), **{k: v for k, v in options.items() if k in known})
