"""Passes of an encoder as CUDA graphs: recorded once, replayed in every step by one call each.

A step launches some two thousand kernels, most of them so short that a GPU waits for the host between them. A graph
launches those of a whole pass at once, the same kernels as without. It holds what was there when it was recorded: the
shape of the batch, the memory of weights and statistics (which optimizer, momentum update and checkpoints change in
place), which layers train and which weights have a gradient. Python within a layer, hooks included, runs while it is
recorded and not again; a random number of the device is drawn anew in each replay.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Callable

import torch
from torch import Tensor, nn

Pass = Callable[[Tensor], Tensor]

WARM_UP = 3  # passes before the recording, in which libraries choose their algorithms


class GraphedPasses:
    """The graphs of a model by the name of the pass; each is recorded when it is first needed, and kept.

    A copy of the model, or one that was pickled, records its own.
    """

    def __init__(self) -> None:
        self._recorded: dict[tuple, _GraphedPass] = {}

    def __call__(self, name: str, run: Pass, modules: Sequence[nn.Module], images: Tensor) -> Tensor:
        """``run(images)``, replayed; with a gradient to the weights of ``modules`` where it is enabled.

        The gradients lie in memory that the next replay fills anew: set them to None before the next backward pass.

        Args:
            name: of the pass; two passes with one name are the same for images of one shape.
            run: (N, 3, H, W) to (N, D) by the layers of ``modules``, without a value that the host has to know.
            modules: whose parameters and buffers ``run`` uses and moves.
            images: (N, 3, H, W) on a GPU, without gradient.

        Raises:
            RuntimeError: the pass does something that a graph cannot hold; in the backward pass: another forward pass
                came between.
        """
        dtype = _autocast_dtype() if torch.is_autocast_enabled() else None
        key = (name, dtype, images.shape, images.dtype, torch.is_grad_enabled())
        if key not in self._recorded:
            self._recorded[key] = _GraphedPass(_within(dtype, run), modules, images)
        return self._recorded[key](images)

    def forget(self) -> None:
        """Drop all graphs and their memory: the weights or the statistics lie elsewhere now."""
        self._recorded.clear()

    def __reduce__(self) -> tuple:
        return type(self), ()


def _autocast_dtype() -> torch.dtype:
    if hasattr(torch, "get_autocast_dtype"):
        return torch.get_autocast_dtype("cuda")
    return torch.get_autocast_gpu_dtype()  # torch 2.3


def _within(dtype: torch.dtype | None, run: Pass) -> Pass:
    """The pass in the precision of its caller, with copies of the weights that are its own.

    Autocast keeps the copy of a weight for the passes to come; one from outside would be recorded as it was, one from
    inside would lie in the graph's memory. Within the pass there must be one copy: the gradients of a weight that is
    used several times are summed in its precision (OSNet's gates), and a sum of float32 ones is another number.
    """

    def in_precision(images: Tensor) -> Tensor:
        torch.clear_autocast_cache()
        try:
            with torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=True):
                return run(images)
        finally:
            torch.clear_autocast_cache()

    return in_precision


class _GraphedPass:
    """A forward pass, and with gradient enabled a backward pass, in graphs that share their memory."""

    def __init__(self, run: Pass, modules: Sequence[nn.Module], images: Tensor):
        self._images = images.clone()  # keeps the memory format
        trained = (p for module in modules for p in module.parameters() if p.requires_grad)
        self._parameters = list(dict.fromkeys(trained)) if torch.is_grad_enabled() else []
        self._replays = 0
        # A graph reads their memory: nothing else may get it while there is the graph.
        self._held = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        with _unchanged(modules), _side_stream(images.device) as stream:
            self._warm_up(run)
            _check_same_buffers(modules, self._held)
            self._record(run, stream)

    def _warm_up(self, run: Pass) -> None:
        for _ in range(WARM_UP):
            features = run(self._images)
            if self._parameters:
                self._differentiate(features, torch.zeros_like(features))

    def _record(self, run: Pass, stream: Any) -> None:
        self._forward_graph = torch.cuda.CUDAGraph()
        try:
            with _recording(self._forward_graph, stream):
                self._features = run(self._images)
            self._feature_gradient = torch.zeros_like(self._features)
            if self._parameters:
                self._backward_graph = torch.cuda.CUDAGraph()
                with _recording(self._backward_graph, stream, pool=self._forward_graph.pool()):
                    self._gradients = self._differentiate(self._features, self._feature_gradient)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise _cannot_be_recorded(str(error)) from error
        self._features = self._features.detach()

    def _differentiate(self, features: Tensor, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """By the parameters, None for those that the pass does not use; outside of autocast, as backward passes are."""
        with torch.autocast(features.device.type, enabled=False):
            return torch.autograd.grad(features, self._parameters, gradient, allow_unused=True)

    def __call__(self, images: Tensor) -> Tensor:
        if self._parameters:
            return _Replay.apply(self, images, *self._parameters)
        return self.forward(images)[0]

    def forward(self, images: Tensor) -> tuple[Tensor, int]:
        """(N, D) of a batch, in memory of its own, and the number of the replay: the next fills the graph's anew."""
        self._images.copy_(images)
        self._forward_graph.replay()
        self._replays += 1
        return self._features.clone(), self._replays

    def backward(self, gradient: Tensor, replay: int) -> list[Tensor | None]:
        """Of the parameters for a (N, D) gradient, in the memory of the graph: valid until the next replay."""
        if replay != self._replays:
            raise RuntimeError(
                "MODEL.ICE.CUDA_GRAPHS is True, but a second batch went through the model before the backward pass of "
                "the first: a graph keeps what one pass has computed. Set it to False"
            )
        self._feature_gradient.copy_(gradient)
        self._backward_graph.replay()
        return [value if value is None else value.detach() for value in self._gradients]


class _Replay(torch.autograd.Function):
    """Ties the two graphs of a pass into autograd, which hands the gradients to the parameters."""

    @staticmethod
    def forward(ctx: Any, graphs: _GraphedPass, images: Tensor, *parameters: Tensor) -> Tensor:
        features, replay = graphs.forward(images)
        ctx.graphs, ctx.replay = graphs, replay
        return features

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return None, None, *ctx.graphs.backward(gradient, ctx.replay)


@contextlib.contextmanager
def _side_stream(device: torch.device) -> Iterator[Any]:
    """A stream of the device for warming up and recording, in step with the current one."""
    with torch.cuda.device(device):
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        try:
            with torch.cuda.stream(stream):
                yield stream
        finally:
            current.wait_stream(stream)


def _recording(graph: Any, stream: Any, **options: Any) -> Any:
    """Threads of the loader may go on allocating meanwhile: what they do is on other streams."""
    return torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local", **options)


def _check_same_buffers(modules: Sequence[nn.Module], before: Sequence[Tensor]) -> None:
    """A layer that gives a buffer another tensor, instead of changing it, would be recorded with the first one."""
    known = {id(tensor) for tensor in before}
    for module in modules:
        for name, buffer in module.named_buffers():
            if id(buffer) not in known:
                raise _cannot_be_recorded(f"its buffer {name} is another tensor after each pass")


def _cannot_be_recorded(why: str) -> RuntimeError:
    return RuntimeError(
        "MODEL.ICE.CUDA_GRAPHS is True, but a pass of this model cannot be recorded as a CUDA graph; set it to False "
        f"({why})"
    )


@contextlib.contextmanager
def _unchanged(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put back what warming up moves: the running statistics.

    Through ``data``: losses of this step may hold others of these tensors for their backward pass, and autograd would
    count the same values as new ones.
    """
    before = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.data.copy_(value)
