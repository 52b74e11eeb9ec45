"""Repairs of the transforms."""

from __future__ import annotations

from collections import deque
from typing import Any

from fastreid_ice.compat.rebinding import replace, upstream, wrap

import numpy as np
import torch


class _TorchvisionTransforms:
    """torchvision.transforms with ``RandomAffine`` as data/transforms/build.py:81 calls it (torchvision <= 0.12)."""

    def __getattr__(self, name: str) -> Any:
        import torchvision.transforms

        return getattr(torchvision.transforms, name)

    @staticmethod
    def RandomAffine(degrees, translate=None, scale=None, shear=None, resample=False, fillcolor=0):  # noqa: N802
        from torchvision.transforms import InterpolationMode, RandomAffine

        mode = InterpolationMode.BILINEAR if resample else InterpolationMode.NEAREST
        return RandomAffine(degrees, translate, scale, shear, interpolation=mode, fill=fillcolor)


def repair_affine() -> None:
    """data/transforms/build.py:81: ``INPUT.AFFINE`` passes arguments that torchvision has renamed."""
    replace(upstream("data.transforms.build"), "T", lambda original: _TorchvisionTransforms())


def pixels_to_tensor(picture: Any) -> torch.Tensor:
    """(H, W) or (H, W, C) picture or array -> (C, H, W) tensor; bytes become float32 in 0..255, as upstream."""
    tensor = bytes_to_tensor(picture)
    return tensor.float() if tensor.dtype == torch.uint8 else tensor


def bytes_to_tensor(picture: Any) -> torch.Tensor:
    """The same before bytes become float32."""
    pixels = np.asarray(picture)
    if pixels.dtype == bool:  # a picture of two colours
        pixels = pixels.astype(np.uint8) * 255
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(np.array(planes, order="C"))  # a copy, in a third of the time that torch takes for it


def repair_to_tensor() -> None:
    """data/transforms/functional.py:46: pictures are read through torch's typed storages, which are to go.

    Each loader worker warned of it, in every epoch.
    """
    functional, transforms = upstream("data.transforms.functional"), upstream("data.transforms.transforms")
    replace(functional, "to_tensor", lambda original: pixels_to_tensor, transforms)


PATCHES = 1000  # upstream: 50,000


class _Patches(deque):
    """Patches of their own memory."""

    def append(self, patch: torch.Tensor) -> None:
        super().append(patch.clone())


def repair_random_patch() -> None:
    """data/transforms/transforms.py:95: ``INPUT.RPT`` keeps parts of images that hold the whole images in memory.

    With 50,000 of them that was all images of an epoch, 10 GB at 256 x 128. A patch that is kept changed, too, when
    another was laid over its image. Now each worker keeps copies of the last 1,000 patches.
    """

    @wrap(upstream("data.transforms.transforms").RandomPatch, "__init__")
    def initialise(original, self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.patchpool = _Patches(maxlen=min(PATCHES, self.patchpool.maxlen))
