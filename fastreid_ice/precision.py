"""Settings of torch that are changed for a while: full float32 where a GPU would take TF32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Within it products and convolutions on a device are in float32: without autocast, and without TF32 on a GPU."""
    with torch.autocast(device.type, enabled=False), without_tf32():
        yield


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Within it products and convolutions on a GPU take no TF32."""
    cudnn = torch.backends.cudnn
    with products_in_tf32(False), _tf32(getattr(cudnn, "conv", None), cudnn, False):
        yield


def products_in_tf32(allowed: bool) -> contextlib.AbstractContextManager[None]:
    """Within it matrix products on a GPU may take TF32, or take none."""
    return _tf32(torch.backends.cuda.matmul, torch.backends.cuda.matmul, allowed)


def _tf32(newer: Any, older: Any, allowed: bool) -> contextlib.AbstractContextManager[None]:
    """By torch's newer setting where it has that: reading the older one raises once a user has set it."""
    if hasattr(newer, "fp32_precision"):
        return setting(newer, "fp32_precision", "tf32" if allowed else "ieee")
    return setting(older, "allow_tf32", allowed)


@contextlib.contextmanager
def setting(settings: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(settings, name)
    setattr(settings, name, value)
    try:
        yield
    finally:
        setattr(settings, name, before)
