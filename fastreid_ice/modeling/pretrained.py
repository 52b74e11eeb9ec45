"""Build the backbone, and say what of its pretrained weights was found and used."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
from fastreid.modeling.backbones import build_backbone
from torch import nn

logger = logging.getLogger(__name__)


def build_pretrained_backbone(cfg) -> nn.Module:
    """fastreid's ``build_backbone``, with errors that name the key, and a report of the tensors loaded.

    A file for ``build_mobilenetv2_backbone`` may have the names of torchvision's MobileNetV2, which fastreid's differ from.

    Raises:
        FileNotFoundError: ``MODEL.BACKBONE.PRETRAIN_PATH`` does not exist.
        ValueError: the file holds no tensor of this backbone.
        RuntimeError: fastreid could not download the weights.
    """
    node = cfg.MODEL.BACKBONE
    path = Path(node.PRETRAIN_PATH).expanduser() if node.PRETRAIN and node.PRETRAIN_PATH else None
    if path is None:
        return _build_and_download(cfg) if node.PRETRAIN else build_backbone(cfg)
    if not path.is_file():
        raise FileNotFoundError(f"MODEL.BACKBONE.PRETRAIN_PATH: there is no file {path}")
    stored = torch.load(path, map_location="cpu", weights_only=True)  # upstream's own load would run code on old torch
    if node.NAME == "build_mobilenetv2_backbone" and "features.18.0.weight" in stored:
        stored = names_of_mobilenetv2(stored)
        backbone = build_backbone(_untrained(cfg))
        backbone.load_state_dict(stored, strict=False)
    else:
        backbone = build_backbone(cfg)
    _report(backbone, stored, path)
    return backbone


def names_of_mobilenetv2(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A MobileNetV2 by torchvision's names, or by those of the implementation that fastreid's was taken from, by fastreid's.

    torchvision groups each convolution with its normalisation (``features.2.conv.1.0`` is the second convolution of a
    block), fastreid counts on (``features.2.conv.3``); in both files the last convolution is ``features.18``, in fastreid
    ``conv``. The classifier is left out.

    >>> list(names_of_mobilenetv2({"features.2.conv.1.0.weight": 0, "features.2.conv.2.weight": 1, "features.18.1.bias": 2}))
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


def _untrained(cfg):
    untrained = cfg.clone()
    untrained.defrost()
    untrained.MODEL.BACKBONE.PRETRAIN = False
    return untrained


def _build_and_download(cfg) -> nn.Module:
    build_backbone(_untrained(cfg))  # so that a mistake in another key is not taken for a failed download
    try:
        return build_backbone(cfg)
    except Exception as error:
        raise RuntimeError(
            f"The pretrained weights of {cfg.MODEL.BACKBONE.NAME} could not be downloaded by fastreid ({error}). "
            "Put them into a file and name it in MODEL.BACKBONE.PRETRAIN_PATH, give weights of a whole model in "
            "MODEL.WEIGHTS, or set MODEL.BACKBONE.PRETRAIN False."
        ) from error


def _report(backbone: nn.Module, stored: dict, path: Path) -> None:
    """Log how many of the backbone's tensors came from the file; fastreid loads whatever fits and goes on."""
    own = backbone.state_dict()
    loaded = [name for name, value in own.items() if name in stored and torch.equal(stored[name].cpu(), value)]
    if not loaded:
        raise ValueError(
            f"MODEL.BACKBONE.PRETRAIN_PATH: {path} holds no tensor of this backbone. It has names such as "
            f"{', '.join(list(stored)[:3])}, the backbone {', '.join(list(own)[:3])}."
        )
    logger.info("%d of the backbone's %d tensors were loaded from %s", len(loaded), len(own), path)
