"""The images that an export is compared on: real ones where there are any."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
from fastreid.config import CfgNode
from fastreid.data.data_utils import read_image
from fastreid.data.transforms import build_transforms
from torch import Tensor

from fastreid_ice.data.datasets import load_test_images, load_training_images
from fastreid_ice.errors import one_line
from fastreid_ice.image_files import find_images

logger = logging.getLogger(__name__)

COUNT = 8


@dataclass(frozen=True)
class CheckImages:
    """Images for a comparison.

    Attributes:
        pixels: (N, 3, H, W) float32 RGB in 0..255, as the test transform gives them, N >= 2.
        source: where they are from, for people.
    """

    pixels: Tensor
    source: str


def check_images(cfg: CfgNode, given: str | Path | Sequence[str | Path] | None = None) -> CheckImages:
    """Up to eight images: those that are given, else of the run's datasets, else seeded noise.

    Args:
        cfg: of the trained model: its datasets and its test transform.
        given: a folder, a file or files.

    Raises:
        FileNotFoundError: a given path is not there or a folder without an image.
        ValueError: a file is no image.
    """
    if given is not None:
        paths = _given_paths([given] if isinstance(given, (str, Path)) else given)
        return _read(cfg, paths, "given images")
    training = _training_paths(cfg)
    if training:
        return _read(cfg, training, f"training images of {', '.join(cfg.DATASETS.NAMES)}")
    test = _test_paths(cfg)
    if test:
        return _read(cfg, test, f"test images of {', '.join(cfg.DATASETS.TESTS)}")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(COUNT, 3, *cfg.INPUT.SIZE_TEST, generator=generator) * 255
    return CheckImages(pixels, "noise: none of the run's datasets can be read here; name images with --images")


def _given_paths(given: Sequence[str | Path]) -> list[str]:
    paths: list[Path] = []
    for path in map(Path, given):
        if not path.exists():
            raise FileNotFoundError(f"--images: there is no {path}")
        if path.is_dir():
            try:
                paths += [path / name for name in find_images(path)]
            except OSError as error:
                raise type(error)(f"--images: {error}") from error
        else:
            paths.append(path)
    return [str(path) for path in paths]


def _training_paths(cfg: CfgNode) -> list[str]:
    try:
        return list(load_training_images(cfg).paths) if cfg.DATASETS.NAMES else []
    except (OSError, ValueError) as error:
        logger.warning("No training images to compare on: %s", one_line(error))
        return []


def _test_paths(cfg: CfgNode) -> list[str]:
    paths: list[str] = []
    for name in cfg.DATASETS.TESTS:
        try:
            paths += [str(item[0]) for item in load_test_images(cfg, name).query]
        except (OSError, ValueError) as error:
            logger.warning("No test images to compare on: %s", one_line(error))
    return paths


def _read(cfg: CfgNode, paths: Sequence[str], source: str) -> CheckImages:
    """Images spread over all the paths; one alone is taken twice, since a batch of two is compared too."""
    step = max(1, len(paths) // COUNT)
    chosen = list(paths[::step][:COUNT])
    transform = build_transforms(cfg, is_train=False)
    images = []
    for path in chosen:
        try:
            images.append(transform(read_image(path)))
        except Exception as error:
            raise ValueError(f"{path} cannot be read as an image ({error})") from error
    pixels = torch.stack(images * 2 if len(images) == 1 else images)
    return CheckImages(pixels, f"{len(chosen)} {source}")
