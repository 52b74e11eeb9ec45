"""Faster ways through the encoder in evaluation mode: the same embeddings up to rounding (``TEST.ENGINE``)."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Callable

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
from fastreid.config import CfgNode
from torch import Tensor, nn

from fastreid_ice.errors import missing_packages
from fastreid_ice.modeling.folding import TOLERANCE, fold_encoder, relative_difference
from fastreid_ice.modeling.meta_arch import ICE
from fastreid_ice.modeling.onnx_graph import DEFAULT_OPSET, INPUT, OUTPUT, write_onnx

logger = logging.getLogger(__name__)

TORCH, FOLDED, ONNXRUNTIME = ENGINES = ("torch", "folded", "onnxruntime")
EXAMPLES = 8  # images of the first batch on which a fast encoder is built and compared
_PACKAGES = ("onnx", "onnxruntime")

Encode = Callable[[Tensor], Tensor]


@contextmanager
def inference_engine(model: nn.Module, engine: str) -> Iterator[None]:
    """Within it, an :class:`ICE` model in evaluation mode encodes with ``TEST.ENGINE``.

    The fast encoder is a copy of the weights at the first batch: do not train inside. It is compared with the model on
    images of that batch; where their embeddings differ by more than rounding, it is not used, which is logged.

    Args:
        model: a model of another class stays as it is.
        engine: "torch" (the model itself), "folded" (see :func:`fold_encoder`) or "onnxruntime" (that, run by
            onnxruntime on the CPU).
    """
    if engine == TORCH or not isinstance(model, ICE):
        yield
        return
    model.fast_encode = _FastEncoder(model, engine)
    try:
        yield
    finally:
        model.fast_encode = None


def check_engine(cfg: CfgNode) -> None:
    """Raise ValueError where ``TEST.ENGINE`` contradicts other keys or needs a package that is not there."""
    if cfg.TEST.ENGINE != ONNXRUNTIME:
        return
    if torch.device(cfg.MODEL.DEVICE).type != "cpu":
        raise ValueError(f"TEST.ENGINE is onnxruntime, which runs on the CPU, but MODEL.DEVICE is {cfg.MODEL.DEVICE}")
    if cfg.TEST.AMP:
        raise ValueError("TEST.ENGINE is onnxruntime, which computes in float32, but TEST.AMP is True")
    if missing := missing_packages(_PACKAGES):
        raise ValueError(f"TEST.ENGINE is onnxruntime, which needs {missing}")


class _FastEncoder:
    """Built at the first images that it encodes."""

    def __init__(self, model: ICE, engine: str):
        self._model = model
        self._engine = engine
        self._encode: Encode | None = None

    def __call__(self, images: Tensor) -> Tensor:
        if self._encode is None:
            with torch.inference_mode(False):  # where folding looks for what follows a convolution
                self._encode = _build(self._model.evaluated_encoder(), images[:EXAMPLES].clone(), self._engine)
        return self._encode(images)


def _build(encoder: nn.Module, examples: Tensor, engine: str) -> Encode:
    if len(examples) == 1:  # the exporter would take the size of the batch for fixed
        examples = torch.cat([examples, examples])
    folded = fold_encoder(encoder, examples)
    if engine == ONNXRUNTIME:
        session = _session(folded, examples)
        with torch.no_grad():
            expected = encoder(examples)
        difference = relative_difference(session(examples), expected)
        if difference <= TOLERANCE:
            return session
        logger.warning("onnxruntime is not used: its embeddings would differ by %.1e", difference)
    return lambda images: folded(images.contiguous(memory_format=torch.channels_last))


def _session(encoder: nn.Module, examples: Tensor) -> Encode:
    """The encoder, which is not changed, in onnxruntime with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the loader's workers need the cores
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.onnx"
        plain = copy.deepcopy(encoder).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        write_onnx(plain, examples.contiguous(), path, DEFAULT_OPSET, False)
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.contiguous().numpy()})[0])
