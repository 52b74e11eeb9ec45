"""A run on a GPU that computes the same twice."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

# cuBLAS chooses among its algorithms by the workspace that is free, unless it is given one of this form.
WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextlib.contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Within the block, only algorithms whose result is the same from run to run, and no TF32 (SOLVER.DETERMINISTIC).

    CUDA adds up in any order where atomics are used, cuDNN's search for the fastest algorithm may end differently, and
    TF32 has ten bits. Operations without a deterministic algorithm warn. What was set before is put back behind the
    block.

    Note:
        cuBLAS reads its variable when it starts: it must not have been used before the block.

    Args:
        enabled: False changes nothing.
    """
    if not enabled:
        yield
        return
    os.environ.setdefault(*WORKSPACE)
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    switches: list[tuple[Any, str, Any]] = [(cudnn, "deterministic", True), (cudnn, "benchmark", False)]
    if hasattr(cudnn, "conv"):  # newer torch has a switch for each operation
        switches += [(cudnn.conv, "fp32_precision", "ieee"), (matmul, "fp32_precision", "ieee")]
    else:
        switches += [(cudnn, "allow_tf32", False), (matmul, "allow_tf32", False)]
    before = [getattr(owner, name) for owner, name, _ in switches]
    algorithms = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    for owner, name, value in switches:
        setattr(owner, name, value)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])
        for (owner, name, _), value in zip(switches, before):
            setattr(owner, name, value)
