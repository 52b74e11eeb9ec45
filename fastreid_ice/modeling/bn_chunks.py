"""Batch normalisation over contiguous chunks of the batch: one process, the batch statistics of several GPUs.

A layer by itself goes from chunk to chunk. Within a :class:`ChunkedPass` all layers of an encoder normalise their
chunks in one call each: with the images in the order b0c0 b0c1 ... b1c0 b1c1 ... (image b of chunk c) a batch of N
images with C channels is, in the same memory, a batch of N / chunks images with chunks x C channels, each with the
statistics of its chunk. Only the images at the entrance and the embeddings at the exit are brought into another order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:  # the mix-in stands in front of the class of a layer, which is one of these
    _Layer = _BatchNorm
else:
    _Layer = object


class _Wide(NamedTuple):
    """A layer's parameters and running statistics for all chunks, each (chunks * C,), and the images of the pass."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    images: int


class ChunkedBatchNorm(_Layer):
    """Mix-in: normalise each of ``chunks`` contiguous parts of a training batch with its own statistics.

    This is what torch's DataParallel does with one part per GPU: every part has its own mean and variance, and only
    the first part's move the running statistics. Convolutions still see the whole batch at once.
    """

    chunks: int
    is_plain: bool  # torch's forward stands behind ours
    wide: _Wide | None = None  # within a ChunkedPass

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.chunks == 1:
            return super().forward(x)
        if self.wide is not None:
            return self._normalize_at_once(x, self.wide)
        first, *others = x.chunk(self.chunks)
        normalized = [super().forward(first)]
        for part in others:
            normalized.append(F.batch_norm(part, None, None, self.weight, self.bias, training=True, eps=self.eps))
        return torch.cat(normalized)

    def _normalize_at_once(self, x: Tensor, wide: _Wide) -> Tensor:
        """Normalise (N, C, ...) in the order of a :class:`ChunkedPass`; N may be a multiple of the pass's images."""
        assert self.num_batches_tracked is not None and self.momentum is not None  # can_be_wide
        self.num_batches_tracked.add_(1)
        rows = len(x) // wide.images  # of an image, one after another
        if rows > 1:
            x = x.unflatten(0, (-1, self.chunks, rows)).transpose(1, 2).flatten(0, 2)
        together = x.reshape(len(x) // self.chunks, self.chunks * x.shape[1], *x.shape[2:])
        normalized = F.batch_norm(
            together, wide.running_mean, wide.running_var, wide.weight, wide.bias, True, self.momentum, self.eps
        )
        # A view of which autograd knows nothing: to follow an in-place ReLU through it would cost three copies.
        normalized = torch.ops.aten._unsafe_view(normalized, x.shape)
        if rows > 1:
            normalized = normalized.unflatten(0, (-1, rows, self.chunks)).transpose(1, 2).flatten(0, 2)
        return normalized

    def can_be_wide(self) -> bool:
        """Whether it has what :class:`_Wide` holds, and normalises as torch does (fastreid's GhostBN does not)."""
        return self.is_plain and self.affine and self.running_mean is not None and self.momentum is not None


class ChunkedPass:
    """Runs an encoder so that each of its batch normalisations takes all chunks in one call.

    Values, gradients and running statistics are those of the layers by themselves, to rounding. Where that cannot be,
    the encoder is run as it is, and its layers go from chunk to chunk: in evaluation mode, when the batch is not a
    multiple of the chunks, with a layer of another kind, and for images in channels_last, whose channels are not
    the outer dimension. A layer in training mode that the encoder does not use gets a gradient of 0 instead of none.
    """

    def __init__(self, *modules: nn.Module):
        """
        Args:
            modules: the parts of the encoder, after :func:`set_bn_chunks`.
        """
        self._layers = [
            layer for module in modules for layer in module.modules() if isinstance(layer, ChunkedBatchNorm)
        ]
        self._widening: _Widening | None = None

    def __call__(self, encoder: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """``encoder(images)``, (N, D) of (N, 3, H, W)."""
        layers = [layer for layer in self._layers if layer.training]
        chunks = layers[0].chunks if layers else 1
        if chunks == 1 or not self._can_be_wide(layers, images, chunks):
            return encoder(images)
        statistics = self._widen(layers, chunks, len(images))
        try:
            features = encoder(images.unflatten(0, (chunks, -1)).transpose(0, 1).flatten(0, 1))
        finally:
            for layer in layers:
                layer.wide = None
        with torch.no_grad():
            running = _running_statistics(layers)
            torch._foreach_copy_(running, [wide[: len(own)] for own, wide in zip(running, statistics)])
        return features.unflatten(0, (-1, chunks)).transpose(0, 1).flatten(0, 1)

    @staticmethod
    def _can_be_wide(layers: list[ChunkedBatchNorm], images: Tensor, chunks: int) -> bool:
        return (
            len(images) % chunks == 0
            and (images.is_contiguous() or not images.is_contiguous(memory_format=torch.channels_last))
            and all(layer.can_be_wide() for layer in layers)
        )

    def _widen(self, layers: list[ChunkedBatchNorm], chunks: int, images: int) -> tuple[Tensor, ...]:
        """Hand each layer its wide tensors; returns the running statistics among them, means before variances."""
        weights = [layer.weight for layer in layers] + [layer.bias for layer in layers]
        sizes = tuple(len(weight) for weight in weights)
        if self._widening is None or not self._widening.fits(sizes, chunks, weights[0].device):
            self._widening = _Widening(sizes, chunks, weights[0].device)
        parameters = self._widening(weights)
        with torch.no_grad():
            statistics = self._widening(_running_statistics(layers))
        half = len(layers)
        for i, layer in enumerate(layers):
            layer.wide = _Wide(parameters[i], parameters[half + i], statistics[i], statistics[half + i], images)
        return statistics


def _running_statistics(layers: list[ChunkedBatchNorm]) -> list[Tensor]:
    """The means of all layers, then the variances."""
    return [cast(Tensor, getattr(layer, name)) for name in ("running_mean", "running_var") for layer in layers]


class _Widening:
    """Repeats many short tensors, each ``chunks`` times, in a few calls; with gradient, which is summed in order."""

    def __init__(self, sizes: tuple[int, ...], chunks: int, device: torch.device):
        self._sizes = sizes
        self._chunks = chunks
        total, first, to_wide, to_narrow = sum(sizes), 0, [], []
        for size in sizes:
            own = torch.arange(first, first + size)
            to_wide.append(own.repeat(chunks))
            to_narrow.append(chunks * first + torch.arange(chunks * size).view(chunks, size))
            first += size
        self._to_wide = torch.cat(to_wide).to(device, non_blocking=True)  # (chunks * total,) which number comes where
        narrow = torch.cat(to_narrow, dim=1).reshape(chunks * total)  # (chunks, total) where its copies are
        self._to_narrow = narrow.to(device, non_blocking=True)

    def fits(self, sizes: tuple[int, ...], chunks: int, device: torch.device) -> bool:
        return (sizes, chunks, device) == (self._sizes, self._chunks, self._to_wide.device)

    def __call__(self, tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
        """(size,) tensors to (chunks * size,) ones."""
        wide = _Repeat.apply(torch.cat(list(tensors)), self._to_wide, self._to_narrow, self._chunks)
        return wide.split([self._chunks * size for size in self._sizes])


class _Repeat(torch.autograd.Function):
    """Index a vector, with a gradient that is added in the same order each time: on a GPU that of indexing is not."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, to_wide: Tensor, to_narrow: Tensor, chunks: int) -> Tensor:
        ctx.chunks = chunks
        ctx.save_for_backward(to_narrow)
        return flat.index_select(0, to_wide)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        (to_narrow,) = ctx.saved_tensors
        return gradient.index_select(0, to_narrow).view(ctx.chunks, -1).sum(dim=0), None, None, None


_CHUNKED_CLASSES: dict[type, type] = {}


def _chunked_class(bn_class: type[_BatchNorm]) -> type:
    """The class that is ``bn_class`` with :class:`ChunkedBatchNorm` in front; one per BN class."""
    if bn_class not in _CHUNKED_CLASSES:
        own = {"is_plain": bn_class.forward is _BatchNorm.forward}
        _CHUNKED_CLASSES[bn_class] = type(f"Chunked{bn_class.__name__}", (ChunkedBatchNorm, bn_class), own)
    return _CHUNKED_CLASSES[bn_class]


def chunks_per_process(configured: int, num_processes: int, synchronized: bool = False) -> int:
    """MODEL.ICE.BN_CHUNKS, where 0 stands for four chunks over all processes together, at least one in each.

    For a synchronised batch normalisation, which normalises over all processes together, 0 stands for one.
    """
    return configured or (1 if synchronized else max(1, 4 // num_processes))


def is_synchronized(module: nn.Module) -> bool:
    """Whether a batch normalisation of ``module`` is a synchronised one."""
    return any(isinstance(layer, nn.SyncBatchNorm) for layer in module.modules())


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
