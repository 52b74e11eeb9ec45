"""Build the backbone, and say what of its pretrained weights was found and used."""

from __future__ import annotations

import logging
import pickle
import re
from pathlib import Path
from typing import Any

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
from fastreid.config import CfgNode
from fastreid.modeling.backbones import build_backbone
from torch import nn
from torchvision.models import MobileNet_V2_Weights

from fastreid_ice.errors import DAMAGED, one_line

_MOBILENETV2 = "build_mobilenetv2_backbone"

logger = logging.getLogger(__name__)


def build_pretrained_backbone(cfg) -> nn.Module:
    """fastreid's ``build_backbone``, with errors that name the key, and a report of the tensors loaded.

    ``build_mobilenetv2_backbone`` takes torchvision's names too, which fastreid's differ from, and without a file
    torchvision's first ImageNet weights are downloaded: fastreid knows of none.

    Raises:
        FileNotFoundError: ``MODEL.BACKBONE.PRETRAIN_PATH`` does not exist.
        ValueError: the file cannot be read or holds no tensor of this backbone, or no weights are published for its
            width.
        RuntimeError: the weights could not be downloaded.
    """
    node = cfg.MODEL.BACKBONE
    path = Path(node.PRETRAIN_PATH).expanduser() if node.PRETRAIN and node.PRETRAIN_PATH else None
    if path is None:
        return _build_and_download(cfg) if node.PRETRAIN else build_backbone(cfg)
    if not path.is_file():
        raise FileNotFoundError(f"MODEL.BACKBONE.PRETRAIN_PATH: there is no file {path}")
    stored = _read(path)
    if node.NAME == _MOBILENETV2 and "features.18.0.weight" in stored:
        return _mobilenetv2(cfg, stored, path)
    backbone = build_backbone(cfg)
    _report(backbone, stored, path)
    return backbone


def _read(path: Path) -> Any:
    """Tensors and plain values only: upstream's own load would run code on an old torch."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"MODEL.BACKBONE.PRETRAIN_PATH: {path} holds more than tensors and plain values, and was not read further "
            "since it may run code; save the state dict of its model."
        ) from error
    except DAMAGED as error:
        raise ValueError(f"MODEL.BACKBONE.PRETRAIN_PATH: {path} holds no weights: {one_line(error)}") from error


def names_of_mobilenetv2(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """fastreid's names for a MobileNetV2 by torchvision's, or by those of which fastreid took the blocks' only.

    torchvision groups each convolution with its normalisation (``features.2.conv.1.0`` is the second convolution of a
    block), fastreid counts on (``features.2.conv.3``). The last convolution, ``features.18``, is its ``conv``. The
    classifier is left out.

    Example:
        >>> grouped = {"features.2.conv.1.0.weight": 0, "features.2.conv.2.weight": 1, "features.18.1.bias": 2}
        >>> list(names_of_mobilenetv2(grouped))
        ['features.2.conv.3.weight', 'features.2.conv.6.weight', 'conv.1.bias']
    """
    grouped: dict[str, int] = {}  # convolutions of a block that stand in a group of their own
    for name in stored:
        if match := re.match(r"(features\.\d+\.conv)\.(\d)\.\d\.", name):
            grouped[match[1]] = max(grouped.get(match[1], 0), int(match[2]) + 1)
    renamed = {}
    for name, value in stored.items():
        if match := re.match(r"(features\.\d+\.conv)\.(\d)\.(\d)\.(.*)", name):
            name = f"{match[1]}.{3 * int(match[2]) + int(match[3])}.{match[4]}"
        elif (match := re.match(r"(features\.\d+\.conv)\.(\d)\.(.*)", name)) and match[1] in grouped:
            name = f"{match[1]}.{2 * grouped[match[1]] + int(match[2])}.{match[3]}"
        if not name.startswith("classifier."):
            renamed[name.replace("features.18.", "conv.")] = value
    return renamed


def _mobilenetv2(cfg, stored: dict[str, torch.Tensor], path: Path | str) -> nn.Module:
    backbone, renamed = build_backbone(untrained(cfg)), names_of_mobilenetv2(stored)
    for name, value in backbone.state_dict().items():
        if name in renamed and renamed[name].shape != value.shape:
            raise ValueError(
                f"MODEL.BACKBONE.PRETRAIN_PATH: {path} is of another width than MODEL.BACKBONE.DEPTH "
                f"{cfg.MODEL.BACKBONE.DEPTH}: {name} is {tuple(renamed[name].shape)} instead of {tuple(value.shape)}"
            )
    backbone.load_state_dict(renamed, strict=False)
    _report(backbone, renamed, path)
    return backbone


def untrained(cfg: CfgNode) -> CfgNode:
    """A copy of a config whose backbone begins with random weights."""
    changed = cfg.clone()
    changed.defrost()
    changed.MODEL.BACKBONE.PRETRAIN = False
    return changed


def _build_and_download(cfg) -> nn.Module:
    build_backbone(untrained(cfg))  # so that a mistake in another key is not taken for a failed download
    node = cfg.MODEL.BACKBONE
    if node.NAME == _MOBILENETV2 and node.DEPTH != "1.0x":
        raise ValueError(
            f"MODEL.BACKBONE.DEPTH is {node.DEPTH}: ImageNet weights of MobileNetV2 are published for 1.0x only. Name "
            "a file in MODEL.BACKBONE.PRETRAIN_PATH, or set MODEL.BACKBONE.PRETRAIN False."
        )
    try:
        if node.NAME == _MOBILENETV2:
            url = MobileNet_V2_Weights.IMAGENET1K_V1.url
            return _mobilenetv2(cfg, torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True), url)
        return build_backbone(cfg)
    except Exception as error:
        raise RuntimeError(
            f"The pretrained weights of {node.NAME} could not be downloaded ({error}). "
            "Put them into a file and name it in MODEL.BACKBONE.PRETRAIN_PATH, give weights of a whole model in "
            "MODEL.WEIGHTS, or set MODEL.BACKBONE.PRETRAIN False."
        ) from error


def _report(backbone: nn.Module, stored: dict, path: Path | str) -> None:
    """Log how many of the backbone's tensors came from the file; fastreid loads whatever fits and goes on."""
    own = backbone.state_dict()
    loaded = [name for name, value in own.items() if name in stored and torch.equal(stored[name].cpu(), value)]
    if not loaded:
        raise ValueError(
            f"MODEL.BACKBONE.PRETRAIN_PATH: {path} holds no tensor of this backbone. It has names such as "
            f"{', '.join(list(stored)[:3])}, the backbone {', '.join(list(own)[:3])}."
        )
    logger.info("%d of the backbone's %d tensors were loaded from %s", len(loaded), len(own), path)
