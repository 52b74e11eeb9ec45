"""An encoder that only evaluates: batch normalisation folded into the convolutions before it, channels last."""

from __future__ import annotations

import copy
import logging

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from fastreid_ice.precision import exact_float32

logger = logging.getLogger(__name__)

# Largest difference that counts as rounding, as a share of the largest value of the embeddings.
TOLERANCE = 1e-4


def fold_encoder(encoder: nn.Module, images: Tensor) -> nn.Module:
    """A copy of an encoder in evaluation mode that gives the same embeddings up to rounding, in less time.

    Which normalisation follows which convolution is seen in a pass of ``images``: its input is the other's output,
    unchanged. Whatever else an encoder does stays as it is.

    Args:
        encoder: in evaluation mode; not changed.
        images: (b, 3, H, W) normalised images, some of those to come.

    Returns:
        The copy; the encoder itself where a copy does not give the same embeddings, which is logged.
    """
    # Compared in float32: in a shorter type, which may come later, rounding would hide what folding does.
    with torch.no_grad(), exact_float32(images.device):
        images = images.float()
        expected = encoder(images)
        folded = copy.deepcopy(encoder)
        pairs = _pairs(folded, images)
        for convolution, normalisation in pairs:
            _fold(folded, convolution, normalisation)
        folded = folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        found = folded(images.contiguous(memory_format=torch.channels_last))
    difference = relative_difference(found, expected)
    if not difference <= TOLERANCE:
        logger.warning("The encoder cannot be folded: its embeddings would differ by %.1e", difference)
        return encoder
    logger.debug("Folded %d normalisations; the embeddings differ by %.1e", len(pairs), difference)
    return folded


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference of two tensors of one shape, as a share of the largest value expected."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


def _pairs(encoder: nn.Module, images: Tensor) -> list[tuple[nn.Conv2d, _BatchNorm]]:
    """(convolution, normalisation of its output), each used once in a pass."""
    outputs: dict[int, tuple[nn.Conv2d, Tensor, int]] = {}  # the tensors are kept, so that no id is given twice
    found: list[tuple[nn.Conv2d, _BatchNorm]] = []
    calls: dict[nn.Module, int] = {}

    def after_convolution(module, inputs, output):
        calls[module] = calls.get(module, 0) + 1
        outputs[id(output)] = module, output, output._version

    def before_normalisation(module, inputs):
        calls[module] = calls.get(module, 0) + 1
        convolution, _, version = outputs.get(id(inputs[0]), (None, None, -1))
        if convolution is not None and inputs[0]._version == version:  # nothing has written into it since
            found.append((convolution, module))

    handles = [
        module.register_forward_hook(after_convolution)
        if type(module) is nn.Conv2d
        else module.register_forward_pre_hook(before_normalisation)
        for module in encoder.modules()
        if type(module) is nn.Conv2d or (isinstance(module, _BatchNorm) and module.running_mean is not None)
    ]
    encoder(images)
    for handle in handles:
        handle.remove()
    return [pair for pair in found if all(calls[module] == 1 for module in pair)]


def _fold(encoder: nn.Module, convolution: nn.Conv2d, normalisation: _BatchNorm) -> None:
    bn = normalisation
    assert bn.running_mean is not None and bn.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
    )
    convolution.weight, convolution.bias = (nn.Parameter(value, requires_grad=False) for value in (weight, bias))
    for parent in encoder.modules():
        for name, child in parent.named_children():
            if child is bn:
                setattr(parent, name, nn.Identity())
