"""CUDA graphs without CUDA: operations are recorded as they are dispatched, and run again on the same memory."""

import contextlib
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.operations import is_view


class RecordedGraph:
    """Stands for ``torch.cuda.CUDAGraph``: as there, results lie where those of the recording lie."""

    made: list = []

    def __init__(self):
        self.operations, self.replays = [], 0
        self.made.append(self)

    def pool(self):
        return "pool"

    def replay(self):
        self.replays += 1
        with torch.no_grad():
            for func, args, kwargs, out in self.operations:
                again = func(*args, **kwargs)
                if _writes_nothing(func):
                    for old, new in zip(_tensors(out), _tensors(again)):
                        old.copy_(new)


class _Recorder(TorchDispatchMode):
    def __init__(self, graph):
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not is_view(func):
            self.graph.operations.append((func, args, kwargs or {}, out))
        return out


def _writes_nothing(func):
    return not func._schema.is_mutable


def _tensors(out):
    return [value for value in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(value, torch.Tensor)]


def install(monkeypatch):
    """Let torch.cuda record; returns the graphs that are made."""
    monkeypatch.setattr(RecordedGraph, "made", [])
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {
        "CUDAGraph": RecordedGraph,
        "graph": lambda graph, **options: _Recorder(graph),
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda other: contextlib.nullcontext(),
        "device": lambda device: contextlib.nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return RecordedGraph.made
