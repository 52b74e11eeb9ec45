"""The views of an image: fastreid's transforms, with the blur and the random erasing of the reference added."""

from __future__ import annotations

import math
from collections.abc import Callable

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)
from fastreid_ice.compat.transforms import bytes_to_tensor

import torch
from fastreid.data.transforms import ToTensor, build_transforms
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms as T


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


class GaussianBlur:
    """Blur a PIL image with a radius drawn uniformly from ``radius`` (pixels)."""

    def __init__(self, radius: tuple[float, float]):
        self.radius = radius

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(_uniform(*self.radius)))


class RandomErasing:
    """Fill a random rectangle of a (3, H, W) image with one colour (Zhong et al., AAAI 2020).

    The aspect ratio is drawn uniformly, as in the authors' and the reference code; torchvision's class draws its
    logarithm. After 100 rectangles that do not fit the image stays as it is.

    Args:
        prob: probability that anything is erased.
        area: smallest and largest share of the image's area.
        aspect: smallest and largest height / width.
        value: three numbers in the range of the image.
    """

    def __init__(self, prob: float, area: tuple[float, float], aspect: tuple[float, float], value):
        self.prob = prob
        self.area = area
        self.aspect = aspect
        self.value = torch.tensor(value, dtype=torch.float32)[:, None, None]

    def __call__(self, image: Tensor) -> Tensor:
        if torch.rand(()).item() >= self.prob:
            return image
        height, width = image.shape[1:]
        for _ in range(100):
            area = _uniform(*self.area) * height * width
            aspect = _uniform(*self.aspect)
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                top = int(torch.randint(height - h + 1, ()))
                left = int(torch.randint(width - w + 1, ()))
                image[:, top : top + h, left : left + w] = self.value
                return image
        return image


def build_strong_view(cfg) -> T.Compose:
    """fastreid's training transform (every INPUT key keeps its meaning), with INPUT.BLUR, and INPUT.REA as above.

    Returns:
        PIL image -> (3, H, W) float32, 0..255, of INPUT.SIZE_TRAIN.
    """
    steps = []
    for step in build_transforms(cfg, is_train=True).transforms:
        if isinstance(step, ToTensor) and cfg.INPUT.BLUR.ENABLED:
            steps.append(T.RandomApply([GaussianBlur(cfg.INPUT.BLUR.RADIUS)], p=cfg.INPUT.BLUR.PROB))
        if isinstance(step, T.RandomErasing):
            node = cfg.INPUT.REA
            step = RandomErasing(node.PROB, node.AREA, node.ASPECT, node.VALUE)
        steps.append(step)
    return T.Compose(steps)


def split_common_resize(strong: Callable, weak: Callable) -> tuple[Callable, Callable, Callable]:
    """The resizing with which both views begin, and the views behind it: an image is then resized once for all views.

    Nothing random happens before it or in it, so that the views are the same bit for bit.

    Returns:
        resize, strong, weak; where the views do not begin alike, nothing and the two as they are.
    """
    starts = [getattr(view, "transforms", [None])[0] for view in (strong, weak)]
    if not all(type(start) is T.Resize for start in starts) or repr(starts[0]) != repr(starts[1]):
        return lambda image: image, strong, weak
    return starts[0], without_resize(strong), without_resize(weak)  # type: ignore[arg-type]


def build_weak_view(cfg) -> T.Compose:
    """fastreid's test transform at the size of training: resize only."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.SIZE_TEST = cfg.INPUT.SIZE_TRAIN
    return build_transforms(cfg, is_train=False)


class BytesToTensor:
    """Picture or (H, W, C) array of bytes -> (C, H, W) uint8: what ``ToTensor`` makes, before it becomes float32."""

    def __call__(self, picture) -> Tensor:
        return bytes_to_tensor(picture)


def keep_bytes(view: T.Compose) -> T.Compose:
    """The same view as uint8 where its pixels are bytes to the end; the model makes the same float32 of them.

    A quarter of the memory that loaders share and of what is copied to a device. A view that computes with tensors
    (random erasing) stays as it is.
    """
    if type(view.transforms[-1]) is not ToTensor:
        return view
    return T.Compose([*view.transforms[:-1], BytesToTensor()])


def resize_of(view: T.Compose) -> T.Resize:
    """The resize that a view begins with.

    Raises:
        ValueError: it begins with something else.
    """
    first = view.transforms[0] if view.transforms else None
    if not isinstance(first, T.Resize):
        raise ValueError(
            f"DATALOADER.CACHE keeps resized images, but a view begins with {type(first).__name__}, which works on the "
            "whole image (INPUT.AUTOAUG.ENABLED?). Set DATALOADER.CACHE none."
        )
    return first


def without_resize(view: T.Compose) -> T.Compose:
    """What a view does behind the resize that it begins with."""
    return T.Compose(view.transforms[1:])
