"""A trained model in Python: images in, embeddings out. ``fastreid_ice.load`` is :func:`load`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Union

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import numpy as np
import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from fastreid.data.data_utils import read_image
from fastreid.data.transforms import build_transforms
from PIL import Image
from torch import Tensor

from fastreid_ice.engine.checkpoints import TrainedModel, load_trained_model
from fastreid_ice.files import sha256
from fastreid_ice.image_files import as_rgb
from fastreid_ice.report.derived import embedding_keys

Picture = Union[str, Path, Image.Image, np.ndarray]


class ReIDModel:
    """A trained encoder with its preprocessing.

    Attributes:
        checkpoint: the file of its weights.
        cfg: its config, frozen.
    """

    def __init__(self, trained: TrainedModel):
        self.checkpoint: Path = trained.checkpoint
        self.cfg: CfgNode = trained.cfg
        self._model = trained.model
        self._transform = build_transforms(trained.cfg, is_train=False)

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) in pixels to which every image is resized."""
        height, width = self.cfg.INPUT.SIZE_TEST
        return height, width

    @property
    def sha256(self) -> str:
        """Digest of the checkpoint and of the keys that say what it embeds, by which an index knows its model."""
        keys = json.dumps(embedding_keys(self.cfg), sort_keys=True)
        return hashlib.sha256(f"{sha256(self.checkpoint)} {keys}".encode()).hexdigest()

    def embed(self, images: Sequence[Picture] | Tensor, batch_size: int = 64) -> np.ndarray:
        """Embeddings of images.

        Args:
            images: a list of paths, PIL images or (H, W, 3) uint8 RGB arrays, in any mixture; or a (N, 3, H, W) tensor
                of RGB in 0..255, resized where it has another size than ``input_size``.
            batch_size: images that pass the network at once.

        Returns:
            (N, D) float32, L2-normalised: the inner product of two rows is their cosine similarity.

        Raises:
            ValueError: an image that cannot be read, or of another shape or type; names it.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        if isinstance(images, (str, Path, Image.Image)):
            raise ValueError(f"embed needs a list of images, not one of type {type(images).__name__}: embed([image])")
        if isinstance(images, Tensor) and (images.dim() != 4 or images.shape[1] != 3):
            raise ValueError(f"embed needs a tensor of shape (N, 3, H, W), found {tuple(images.shape)}")
        if len(images) == 0:
            raise ValueError("embed needs at least one image, found none")
        parts = [self._embed(images[first : first + batch_size], first) for first in range(0, len(images), batch_size)]
        return np.concatenate(parts)

    @torch.inference_mode()
    def _embed(self, images: Sequence[Picture] | Tensor, first: int) -> np.ndarray:
        if isinstance(images, Tensor):
            batch = images.float()
            if tuple(batch.shape[2:]) != self.input_size:
                resized = F.interpolate(batch, self.input_size, mode="bicubic", align_corners=False, antialias=True)
                batch = resized.clamp_(0, 255)  # as pictures are resized
        else:
            batch = torch.stack([self._pixels(image, first + i) for i, image in enumerate(images)])
        return F.normalize(self._model(batch).float(), dim=1).cpu().numpy()

    def _pixels(self, image: Picture, index: int) -> Tensor:
        """(3, H, W) float32 in 0..255, as the evaluation sees an image."""
        return self._transform(_opened(image, index))


def _opened(image: Any, index: int) -> Image.Image:
    if isinstance(image, (str, Path)):
        try:
            return read_image(str(image))
        except Exception as error:
            raise ValueError(f"{image} cannot be read as an image ({error})") from error
    if isinstance(image, Image.Image):
        try:
            return as_rgb(image)
        except ValueError as error:
            raise ValueError(f"Image {index} cannot be embedded: {error}") from error
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return Image.fromarray(image)
    found = f"{image.dtype} array of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise ValueError(f"Image {index} is a {found}; embed takes paths, PIL images and uint8 arrays of shape (H, W, 3)")


def load(
    run: str | Path,
    *,
    config_file: str | Path | None = None,
    opts: Sequence[Any] = (),
    device: str | None = None,
) -> ReIDModel:
    """Load a trained model.

    Args:
        run: folder of a run (its best checkpoint, else its last), or a checkpoint.
        config_file: its config; default ``config.yaml`` beside the checkpoint.
        opts: KEY, VALUE, ... on top of the config.
        device: "cpu", "cuda" ...; default that of the config, or the CPU where there is no CUDA.

    Raises:
        FileNotFoundError: no checkpoint or no config.
        ValueError: a file that is none, or weights of another model.
    """
    return ReIDModel(load_trained_model(run, config_file=config_file, opts=opts, device=device))
