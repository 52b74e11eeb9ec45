"""Running statistics of a second domain for the batch normalisations of a model: its weights are for both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class DomainStatistics:
    """The running means, variances and counts of all batch normalisations as another domain has them.

    Domain-specific batch normalisation (Chang et al., CVPR 2019, arXiv 1906.03950) with shared weight and bias. The
    model holds the statistics of its own domain; within :meth:`in_place` those of the other take their place: in
    training mode they are moved, in evaluation mode they normalise. They begin as a copy of the model's. They are no
    buffers: the model's state dict does not have them, theirs is for a checkpoint of the run.

    Args:
        model: whose layers are looked for once.
    """

    def __init__(self, model: nn.Module):
        self._layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)]
        self._other: dict[str, Tensor] | None = None  # by the names of the model's buffers

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Run a block with the other domain's statistics in the layers."""
        if self._other is None:
            self._other = {name: value.clone() for name, value in self._in_layers()}
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Tensor]:
        """The other domain's statistics by the names of the model's; none before they were first in place."""
        return dict(self._other or {})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on with statistics of :meth:`state_dict`; those of another model begin anew."""
        own = dict(self._in_layers())
        fits = own.keys() == state.keys() and all(own[name].shape == value.shape for name, value in state.items())
        self._other = {name: value.to(own[name].device) for name, value in state.items()} if fits else None

    def _in_layers(self) -> Iterator[tuple[str, Tensor]]:
        for name, layer in self._layers:
            for key, value in layer.named_buffers(prefix=name, recurse=False):
                if value is not None:
                    yield key, value

    @torch.no_grad()
    def _swap(self) -> None:
        assert self._other is not None
        for name, layer in self._layers:
            for key, value in layer._buffers.items():
                if value is not None:
                    layer._buffers[key] = self._other[f"{name}.{key}"].to(value.device)
                    self._other[f"{name}.{key}"] = value
