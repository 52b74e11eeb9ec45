"""The views of an image: fastreid's transforms, with the blur and the random erasing of the reference added."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)
from fastreid_ice.compat.transforms import bytes_to_tensor

import numpy as np
import torch
from fastreid.data.transforms import ToTensor, build_transforms
from PIL import Image
from torch import Tensor
from torchvision import transforms as T

from fastreid_ice.data.pixels import crop, gaussian_blur

RECTANGLE = "_rectangle"  # behind a view's name: where it is still to be erased


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


class GaussianBlur:
    """Blur an RGB image, or an (H, W, 3) uint8 array as INPUT.AUGMIX makes, with a radius drawn uniformly (pixels).

    Bit for bit Pillow's blur, which is the reference's, in less time: see :mod:`fastreid_ice.data.pixels`.
    """

    def __init__(self, radius: tuple[float, float]):
        self.radius = radius
        gaussian_blur(np.zeros((1, 1, 3), np.uint8), 1.0)  # compiled here, not in each worker

    def __call__(self, image: Image.Image | np.ndarray) -> Image.Image:
        return Image.fromarray(self.on_array(np.asarray(image)))

    def on_array(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8, blurred by a radius that is drawn."""
        return gaussian_blur(pixels, _uniform(*self.radius))


class PaddedCrop:
    """torchvision's ``Pad`` with black pixels and the ``RandomCrop`` behind it at once: the same draws and pixels.

    Args:
        padding: pixels on each side.
        size: (height, width) of the crop, at most that of a padded image.
    """

    def __init__(self, padding: int, size: tuple[int, int]):
        self.padding = padding
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        top, left = self.draw(image.height, image.width)
        return image.crop((left, top, left + self.size[1], top + self.size[0]))  # what lies outside is black

    def draw(self, height: int, width: int) -> tuple[int, int]:
        """Row and column of an image of this size at which the crop begins; negative in the padding."""
        spare = height + 2 * self.padding - self.size[0], width + 2 * self.padding - self.size[1]
        if min(spare) < 0:
            raise ValueError(f"An image of {height} x {width} pixels, padded by {self.padding}, is too small to crop")
        if not any(spare):
            return -self.padding, -self.padding
        top, left = (int(torch.randint(count + 1, (1,))) - self.padding for count in spare)
        return top, left


def _join_pad_and_crop(steps: list[Any]) -> list[Any]:
    """With :class:`PaddedCrop` in the place of such a pair."""
    joined: list[Any] = []
    for step in steps:
        pad = joined[-1] if joined else None
        cropped = isinstance(step, T.RandomCrop) and step.padding is None and not step.pad_if_needed
        if cropped and isinstance(pad, T.Pad) and isinstance(pad.padding, int) and pad.padding_mode == "constant":
            assert pad.fill == 0
            joined[-1] = PaddedCrop(pad.padding, tuple(step.size))
        else:
            joined.append(step)
    return joined


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
        top, left, bottom, right = self.draw(*image.shape[1:])
        image[:, top:bottom, left:right] = self.value
        return image

    def draw(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, bottom and right of the rectangle (the latter two excluded); zeros where nothing is erased."""
        if torch.rand(()).item() >= self.prob:
            return 0, 0, 0, 0
        for _ in range(100):
            area = _uniform(*self.area) * height * width
            aspect = _uniform(*self.aspect)
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                top = int(torch.randint(height - h + 1, ()))
                left = int(torch.randint(width - w + 1, ()))
                return top, left, top + h, left + w
        return 0, 0, 0, 0


class BytesToErase(NamedTuple):
    """An image as bytes, and the rectangle in which :func:`erase` puts a colour that is no byte.

    Attributes:
        image: (3, H, W) uint8.
        rectangle: (4,) int64: top, left, bottom, right.
    """

    image: Tensor
    rectangle: Tensor


class ErasingOfBytes:
    """What a :class:`RandomErasing` draws, from the same random numbers, with the filling left to :func:`erase`."""

    def __init__(self, erasing: RandomErasing):
        self.erasing = erasing

    def __call__(self, image: Tensor) -> BytesToErase:
        return BytesToErase(image, torch.tensor(self.erasing.draw(*image.shape[1:])))


def erase(images: Tensor, rectangles: Tensor, value: Tensor) -> Tensor:
    """Fill a rectangle of each image, on the images' device and without waiting for it.

    Args:
        images: (B, 3, H, W) uint8.
        rectangles: (B, 4) int64: top, left, bottom, right; zeros where nothing is erased.
        value: (3, 1, 1) float32.

    Returns:
        (B, 3, H, W) float32: bit for bit what :class:`RandomErasing` makes of the images as float32.

    Example:
        >>> image = torch.zeros(1, 3, 2, 3, dtype=torch.uint8)
        >>> erase(image, torch.tensor([[0, 1, 1, 3]]), torch.full((3, 1, 1), 0.5))[0, 0].tolist()
        [[0.0, 0.5, 0.5], [0.0, 0.0, 0.0]]
    """
    if images.device.type != "cpu":
        return _erase_at_once(images, rectangles, value)
    erased = images.float()
    for image, (top, left, bottom, right) in zip(erased, rectangles.tolist()):
        image[:, top:bottom, left:right] = value
    return erased


def _erase_at_once(images: Tensor, rectangles: Tensor, value: Tensor) -> Tensor:
    """The same without looking at the rectangles, for which the host would have to wait; on a CPU ten times as slow."""
    top, left, bottom, right = rectangles[:, :, None].unbind(dim=1)  # (B, 1) each
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    inside_rows = (rows >= top) & (rows < bottom)  # (B, H)
    inside_columns = (columns >= left) & (columns < right)  # (B, W)
    inside = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]  # (B, 1, H, W)
    return torch.where(inside, value, images.float())


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
    return T.Compose(_join_pad_and_crop(steps))


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


class BytesAtOnce:
    """Crop, flip, blur and :class:`BytesToTensor` without a picture in between: the same draws and pixels.

    Args:
        padded: the crop.
        flip: torchvision's ``RandomHorizontalFlip`` behind it, or None.
        blur: :class:`GaussianBlur` within ``RandomApply`` behind these, or None.
    """

    def __init__(self, padded: PaddedCrop, flip: T.RandomHorizontalFlip | None, blur: T.RandomApply | None):
        self.padded = padded
        self.flip = flip
        self.blur = blur

    def __call__(self, image: Image.Image | np.ndarray) -> Tensor:
        """Picture or (H, W, 3) uint8 -> (3, h, w) uint8."""
        pixels = np.asarray(image)
        pixels = crop(pixels, *self.padded.draw(*pixels.shape[:2]), self.padded.size)
        flipped = self.flip is not None and bool(torch.rand(1) < self.flip.p)
        if self.blur is not None and not self.blur.p < torch.rand(1):
            pixels = self.blur.transforms[0].on_array(pixels)
        return bytes_to_tensor(pixels[:, ::-1] if flipped else pixels)  # the blur is the same from either side

    @classmethod
    def within(cls, steps: Sequence[Any]) -> list[Any]:
        """These steps, with one of this class for those at their end that it can stand for."""
        *before, last = steps
        if type(last) is not BytesToTensor:
            return list(steps)
        flip = blur = None
        if before and type(before[-1]) is T.RandomApply and [type(t) for t in before[-1].transforms] == [GaussianBlur]:
            blur = before.pop()
        if before and type(before[-1]) is T.RandomHorizontalFlip:
            flip = before.pop()
        if not before or type(before[-1]) is not PaddedCrop:
            return list(steps)
        return [*before[:-1], cls(before[-1], flip, blur)]


def takes_arrays(view: T.Compose) -> bool:
    """Whether a view may be given an (H, W, 3) uint8 array in the place of a picture."""
    return all(type(step) in (BytesAtOnce, BytesToTensor, ErasingOfBytes) for step in view.transforms)


def keep_bytes(view: T.Compose) -> T.Compose:
    """The same view as uint8 where its pixels are bytes to the end; the model makes the same float32 of them.

    A quarter of the memory that loaders share and of what is copied to a device. Where :class:`RandomErasing` comes
    last, the view gives :class:`BytesToErase`. A view that computes with tensors otherwise (INPUT.RPT) stays as it is.
    """
    *steps, last = view.transforms
    if type(last) is ToTensor:
        return T.Compose(BytesAtOnce.within([*steps, BytesToTensor()]))
    if type(last) is RandomErasing and steps and type(steps[-1]) is ToTensor:
        return T.Compose([*BytesAtOnce.within([*steps[:-1], BytesToTensor()]), ErasingOfBytes(last)])
    return view


def put_view(item: dict[str, Any], name: str, view: Tensor | BytesToErase) -> None:
    """Put a view into a loader's item; the rectangle of :class:`BytesToErase` under a name of its own."""
    if isinstance(view, BytesToErase):
        item[name], item[name + RECTANGLE] = view
    else:
        item[name] = view


def erase_views(batch: Mapping[str, Any], value: Tensor) -> dict[str, Any]:
    """A batch of such items as the model sees it: rectangles filled, see :func:`erase`, and no longer there."""
    return {
        name: erase(entry, batch[name + RECTANGLE], value) if name + RECTANGLE in batch else entry
        for name, entry in batch.items()
        if not name.endswith(RECTANGLE)
    }


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
