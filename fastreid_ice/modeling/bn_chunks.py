"""Batch normalisation over contiguous chunks of the batch: one process, the batch statistics of several GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:  # the mix-in stands in front of the class of a layer, which is one of these
    _Layer = _BatchNorm
else:
    _Layer = object


class ChunkedBatchNorm(_Layer):
    """Mix-in: normalise each of ``chunks`` contiguous parts of a training batch with its own statistics.

    This is what torch's DataParallel does with one part per GPU: every part has its own mean and variance, and only
    the first part's move the running statistics. Convolutions still see the whole batch at once.
    """

    chunks: int

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.chunks == 1:
            return super().forward(x)
        first, *others = x.chunk(self.chunks)
        normalized = [super().forward(first)]
        for part in others:
            normalized.append(F.batch_norm(part, None, None, self.weight, self.bias, training=True, eps=self.eps))
        return torch.cat(normalized)


_CHUNKED_CLASSES: dict[type, type] = {}


def _chunked_class(bn_class: type) -> type:
    """The class that is ``bn_class`` with :class:`ChunkedBatchNorm` in front; one per BN class."""
    if bn_class not in _CHUNKED_CLASSES:
        _CHUNKED_CLASSES[bn_class] = type(f"Chunked{bn_class.__name__}", (ChunkedBatchNorm, bn_class), {})
    return _CHUNKED_CLASSES[bn_class]


def chunks_per_process(configured: int, num_processes: int) -> int:
    """MODEL.ICE.BN_CHUNKS, where 0 stands for four chunks over all processes together, at least one in each."""
    return configured or max(1, 4 // num_processes)


def set_bn_chunks(module: nn.Module, chunks: int) -> int:
    """Let every batch normalisation of ``module`` work on ``chunks`` chunks. Names in the state dict do not change.

    The modules change their class in place, as ``torch.nn.utils.parametrize`` does, so that parameters, buffers,
    hooks and ``isinstance`` checks stay as they were. Instance normalisation (IBN) works per image: unaffected.

    Args:
        module: searched recursively.
        chunks: number of chunks, >= 1.

    Returns:
        How many layers were found.

    Raises:
        ValueError: ``chunks`` < 1, or more than one chunk of a synchronised batch normalisation.
    """
    if chunks < 1:
        raise ValueError(f"MODEL.ICE.BN_CHUNKS is {chunks}; it must be at least 1, or 0 for the default")
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    for layer in layers:
        if chunks > 1 and isinstance(layer, nn.SyncBatchNorm):
            raise ValueError(
                f"MODEL.ICE.BN_CHUNKS is {chunks}, but MODEL.BACKBONE.NORM or MODEL.HEADS.NORM is syncBN, which "
                "normalises over all processes together. Set MODEL.ICE.BN_CHUNKS 1, or the norm to BN."
            )
        if isinstance(layer, nn.SyncBatchNorm):
            continue
        if not isinstance(layer, ChunkedBatchNorm):
            layer.__class__ = _chunked_class(type(layer))
        layer.chunks = chunks  # type: ignore[assignment]
    return len(layers)
