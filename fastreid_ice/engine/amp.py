"""In which precision a step computes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer


class Precision:
    """float32, or mixed: the encoders in a shorter type, with the losses, the memory and the weights in float32.

    float16 has few exponents: its gradients are scaled up, and a step whose gradients overflow is skipped. bfloat16 has
    those of float32 and needs neither.

    Attributes:
        scaler: torch's GradScaler with float16, else None.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype | None = None):
        """
        Args:
            device: of the model.
            dtype: of the encoders; None for float32.

        Raises:
            ValueError: float16 elsewhere than on CUDA, where its gradients cannot be scaled.
        """
        if dtype is torch.float16 and device.type != "cuda":
            raise ValueError(
                f"SOLVER.AMP.DTYPE is float16, which needs CUDA, but MODEL.DEVICE is {device}; choose bfloat16"
            )
        self._device, self._dtype = device, dtype
        self.scaler = torch.amp.GradScaler("cuda") if dtype is torch.float16 else None

    def autocast(self) -> torch.autocast:
        """The context of a forward pass."""
        return torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None)

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss, scaled where float16 needs it."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def step(self, optimizer: Optimizer) -> None:
        """The optimizer's step, unless the gradients have overflowed; gradients of the true size."""
        if self.scaler is None:
            optimizer.step()
            return
        self.scaler.unscale_(optimizer)  # else a fused optimizer does it itself, behind the clipping of SOLVER
        self.scaler.step(optimizer)
        self.scaler.update()


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no number is infinite or NaN, whole numbers left out; the host waits once."""
    filled = [tensor.detach() for tensor in tensors if tensor.numel() and tensor.is_floating_point()]
    return not filled or bool(torch.stack(list(torch._foreach_norm(filled))).isfinite().all())
