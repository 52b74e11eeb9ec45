"""A run that repeats itself bit for bit on a GPU too."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from fastreid_ice.precision import setting, without_tf32

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
FIXED_WORKSPACES = (":4096:8", ":16:8")  # those with which cuBLAS adds up in the same order each time


@contextlib.contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Within it torch takes algorithms that repeat themselves, in full float32; afterwards all is as it was before.

    Two things make one run differ from the next on a GPU: sums whose order is left to chance (atomic additions, the
    choice of a convolution's algorithm by a race) and, from card to card, TF32. On a CPU nothing changes but that
    torch fills memory before it is used.

    Args:
        wanted: SOLVER.DETERMINISTIC; False changes nothing.

    Raises:
        RuntimeError: by torch, within the context, at an operation that has no such algorithm; it names the operation.
    """
    if not wanted:
        yield
        return
    cudnn = torch.backends.cudnn
    was_on = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    with contextlib.ExitStack() as settings:
        settings.enter_context(_fixed_workspace())
        settings.enter_context(setting(cudnn, "deterministic", True))
        settings.enter_context(setting(cudnn, "benchmark", False))
        settings.enter_context(without_tf32())
        settings.callback(torch.use_deterministic_algorithms, was_on, warn_only=only_warned)
        torch.use_deterministic_algorithms(True)
        yield


@contextlib.contextmanager
def _fixed_workspace() -> Iterator[None]:
    """cuBLAS reads the variable when it is first used, torch at each product: a fixed choice of the user's stays."""
    before = os.environ.get(WORKSPACE)
    if before not in FIXED_WORKSPACES:
        os.environ[WORKSPACE] = FIXED_WORKSPACES[0]
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(WORKSPACE, None)
        else:
            os.environ[WORKSPACE] = before
