"""Build the backbone, and say what of its pretrained weights was found and used."""

from __future__ import annotations

import logging
from pathlib import Path

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
from fastreid.modeling.backbones import build_backbone
from torch import nn

logger = logging.getLogger(__name__)


def build_pretrained_backbone(cfg) -> nn.Module:
    """fastreid's ``build_backbone``, with errors that name the key, and a report of the tensors loaded.

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
    backbone = build_backbone(cfg)
    _report(backbone, stored, path)
    return backbone


def _build_and_download(cfg) -> nn.Module:
    untrained = cfg.clone()
    untrained.defrost()
    untrained.MODEL.BACKBONE.PRETRAIN = False
    build_backbone(untrained)  # so that a mistake in another key is not taken for a failed download
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
