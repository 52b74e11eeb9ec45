"""Strong views beside those of other libraries with the same distribution: pad and crop, flip, blur, erase.

    python benchmarks/views.py

Of torchvision's transforms (v2), on pictures and on tensors, and of albumentations where it is installed. All begin
with a decoded and resized picture and end with (3, H, W) uint8; one thread. What differs: the others blur with a
Gaussian kernel, ours as Pillow does, with three box filters; torchvision draws an erased rectangle's aspect ratio on a
logarithmic scale, ours uniformly. Blur and erasing are those of the reference code, bit for bit and in distribution.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import numpy as np
import torch
from fastreid.config import CfgNode
from PIL import Image
from torchvision.transforms import v2

from benchmarks.step import head, milliseconds, row
from benchmarks.timing import alternate, ratios
from fastreid_ice.config_files import load_config
from fastreid_ice.data.views import build_strong_view, keep_bytes, without_resize

IMAGES = 64


def torchvision_on_pictures(cfg: CfgNode) -> Callable[[Image.Image], Any]:
    inputs, (height, width) = cfg.INPUT, cfg.INPUT.SIZE_TRAIN
    kernel = 2 * round(3 * inputs.BLUR.RADIUS[1]) + 1
    return v2.Compose(
        [
            v2.Pad(inputs.PADDING.SIZE),
            v2.RandomCrop((height, width)),
            v2.RandomHorizontalFlip(inputs.FLIP.PROB),
            v2.RandomApply([v2.GaussianBlur(kernel, tuple(inputs.BLUR.RADIUS))], inputs.BLUR.PROB),
            v2.PILToTensor(),
            v2.RandomErasing(inputs.REA.PROB, tuple(inputs.REA.AREA), tuple(inputs.REA.ASPECT), _colour(cfg)),
        ]
    )


def torchvision_on_tensors(cfg: CfgNode) -> Callable[[Image.Image], Any]:
    steps = torchvision_on_pictures(cfg).transforms  # type: ignore[attr-defined]
    return v2.Compose([steps[-2], *steps[:-2], steps[-1]])


def albumentations(cfg: CfgNode) -> Callable[[Image.Image], Any]:
    """
    Raises:
        ImportError: it is not installed.
    """
    import albumentations as A
    import cv2

    cv2.setNumThreads(1)
    inputs, (height, width) = cfg.INPUT, cfg.INPUT.SIZE_TRAIN
    steps = A.Compose(
        [
            A.Pad(inputs.PADDING.SIZE),
            A.RandomCrop(height, width),
            A.HorizontalFlip(p=inputs.FLIP.PROB),
            A.GaussianBlur(blur_limit=0, sigma_limit=tuple(inputs.BLUR.RADIUS), p=inputs.BLUR.PROB),
            A.Erasing(tuple(inputs.REA.AREA), tuple(inputs.REA.ASPECT), fill=tuple(_colour(cfg)), p=inputs.REA.PROB),
        ]
    )

    def view(image: Image.Image) -> torch.Tensor:
        pixels = steps(image=np.asarray(image))["image"]
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))

    return view


def _colour(cfg: CfgNode) -> list[int]:
    return [round(value) for value in cfg.INPUT.REA.VALUE]


def others(cfg: CfgNode) -> Iterator[tuple[str, Callable[[Image.Image], Any]]]:
    yield "torchvision v2, pictures", torchvision_on_pictures(cfg)
    yield "torchvision v2, tensors", torchvision_on_tensors(cfg)
    with suppress(ImportError):
        yield "albumentations", albumentations(cfg)


def images(size: tuple[int, int]) -> list[Image.Image]:
    """Of (height, width), with soft colours."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (IMAGES, size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    return [Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC) for pixels in coarse]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"\nothers / ours, a strong view of each of {IMAGES} images")
    head("size", "library", "ours: wall, cpu ms", "its: wall, cpu ms", "ratio: wall", "cpu")
    for size, padding in (((128, 64), 5), ((256, 128), 10)):
        keys = ["INPUT.SIZE_TRAIN", list(size), "INPUT.PADDING.SIZE", padding]
        cfg = load_config("ICE/Base-ICE.yml", keys)
        ours, given = without_resize(keep_bytes(build_strong_view(cfg))), images(size)
        for name, theirs in others(cfg):
            for view in (ours, theirs):
                result = view(given[0])
                pixels = result if isinstance(result, torch.Tensor) else result.image
                assert pixels.dtype == torch.uint8 and pixels.shape == (3, *size)
            seconds = alternate(lambda: list(map(ours, given)), lambda: list(map(theirs, given)), args.pairs)  # noqa: B023
            row("{} x {}".format(*size), name, *milliseconds(seconds), ratios(seconds))


if __name__ == "__main__":
    main()
