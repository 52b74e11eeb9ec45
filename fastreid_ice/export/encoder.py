"""The encoder that evaluates, out of a trained ICE model: ordinary classes, and what surrounds it in an export."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastreid_ice.errors import closest
from fastreid_ice.modeling.bn_chunks import ChunkedBatchNorm
from fastreid_ice.modeling.meta_arch import ICE, Encoder

INPUT_FORMS = ("normalized", "raw255", "square01")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def stock_encoder(model: nn.Module) -> Encoder:
    """A copy of the encoder that evaluates (MODEL.ICE.EVAL_ENCODER), on the CPU, in evaluation mode.

    Its batch normalisations have the classes that fastreid built them with, and it has no memory bank: nothing in it
    is of this package but the head's pooling and neck in a row. Names in its state dict are ``backbone.*``,
    ``heads.*``.
    """
    assert isinstance(model, ICE)  # load_trained_model builds nothing else
    encoder = copy.deepcopy(model.evaluated_encoder()).cpu().eval().requires_grad_(False)
    encoder.heads.memory = None  # type: ignore[assignment]
    for layer in encoder.modules():
        if isinstance(layer, ChunkedBatchNorm):
            layer.__class__ = type(layer).__bases__[1]  # the class that the mix-in was put in front of
            del layer.chunks
    return encoder


class Embedder(nn.Module):
    """Images of one input form to embeddings: the graph that is exported.

    Input forms:
        normalized: (N, 3, H, W) float RGB, ``(x / 255 - mean) / std`` with ImageNet's mean and std.
        raw255: (N, 3, H, W) float RGB, 0..255.
        square01: (N, 3, h, w) float RGB, 0..1, of any size: resized to H x W inside, bilinearly.

    Output: (N, D) embeddings, L2-normalised or as the neck gives them.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: Encoder,
        input_form: str,
        size: Sequence[int],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        normalized_output: bool = True,
    ):
        """
        Args:
            encoder: of :func:`stock_encoder`.
            input_form: one of INPUT_FORMS.
            size: (H, W) that the model was trained for, pixels.
            pixel_mean: the model's own, RGB, in 0..255 (MODEL.PIXEL_MEAN).
            pixel_std: likewise (MODEL.PIXEL_STD).
            normalized_output: divide each embedding by its length.

        Raises:
            ValueError: an unknown input form.
        """
        super().__init__()
        check_input_form(input_form)
        self.encoder = encoder
        self.size = (int(size[0]), int(size[1]))
        self.resizes = input_form == "square01"
        self.normalized_output = normalized_output
        mean, std = _statistics(input_form, torch.tensor(pixel_mean), torch.tensor(pixel_std))
        self.normalizes = bool(mean.abs().max() > 1e-6 or (std - 1).abs().max() > 1e-6)
        self.register_buffer("mean", mean.view(1, 3, 1, 1))
        self.register_buffer("std", std.view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        if self.resizes:
            images = F.interpolate(images, self.size, mode="bilinear", align_corners=False)
        if self.normalizes:
            images = (images - self.mean) / self.std
        embeddings = self.encoder(images)
        return F.normalize(embeddings, dim=1) if self.normalized_output else embeddings


def check_input_form(name: str) -> None:
    """Raise ValueError for an unknown one."""
    if name not in INPUT_FORMS:
        raise ValueError(f"--input is {name!r}{closest(name, INPUT_FORMS)}; choose one of {', '.join(INPUT_FORMS)}")


def _statistics(input_form: str, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """(3,) each: (input - mean) / std is what the backbone was trained with. 0 and 1 for ImageNet's own statistics."""
    if input_form == "raw255":
        return mean, std
    if input_form == "square01":
        return mean / 255, std / 255
    imagenet_mean, imagenet_std = 255 * torch.tensor(IMAGENET_MEAN), 255 * torch.tensor(IMAGENET_STD)
    return (mean - imagenet_mean) / imagenet_std, std / imagenet_std


def to_input_form(images: Tensor, input_form: str) -> Tensor:
    """(N, 3, H, W) float RGB in 0..255 as an exported model of this form takes them."""
    check_input_form(input_form)
    if input_form == "raw255":
        return images
    if input_form == "square01":
        return images / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images / 255 - mean) / std
