"""The device that this process computes on, as far as it is known. The loaders and the launcher go by it.

fastreid knows it from ``MODEL.DEVICE`` only, and asks ``torch.cuda.is_available()`` (or nobody) elsewhere: a run on the
CPU of a machine with a GPU would load its batches onto the GPU and talk over NCCL.
"""

from __future__ import annotations

import torch

_named = torch.device("cuda")  # what fastreid's MODEL.DEVICE is unless told otherwise


def use_device(device: str | torch.device) -> None:
    """Name the device of this process. The last call counts; building a model from a config is one."""
    global _named
    _named = torch.device(device)


def device_in_use() -> torch.device:
    """The device named last; the CPU in place of a GPU that torch does not see."""
    if _named.type == "cuda" and not torch.cuda.is_available():
        return torch.device("cpu")
    return _named
