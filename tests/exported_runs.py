"""Runs to export: a trained one, and untrained ones of other backbones, small enough for a test."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
from fastreid.data.data_utils import read_image
from fastreid.data.transforms.transforms import ToTensor
from fastreid.modeling import build_model
from torch import Tensor, nn

import fastreid_ice.modeling  # noqa: F401  (registers the ICE meta-architecture and its head)
from fastreid_ice.cli import train
from fastreid_ice.config_files import load_config
from tests import tiny  # noqa: F401  (registers the dataset and the backbone)
from tests.conftest import ROOT, SMALL, small_options

OSNET = {"MODEL.BACKBONE.NAME": "build_osnet_backbone", "MODEL.BACKBONE.FEAT_DIM": 128}
SMALL_BACKBONE = {"MODEL.BACKBONE.NAME": "build_two_convolutions", "MODEL.BACKBONE.FEAT_DIM": 32}
ONE_CLUSTER_AT_LEAST = ["CLUSTERING.EPS", "0.9", "CLUSTERING.MIN_SAMPLES", "2"]


def trained_run(folder: Path, **more: Any) -> Path:
    """Train OSNet x0.25 for two steps, so that its two encoders differ."""
    options = {**SMALL, **OSNET, "MODEL.ICE.BN_CHUNKS": 2, "OUTPUT_DIR": str(folder), **more}
    argv = ["--config-file", str(ROOT / "configs" / "ICE" / "demo.yml")]
    train.main([*argv, *(str(item) for item in small_options(options))])
    return folder


def untrained_run(folder: Path, backbone: str, depth: str, channels: int, **more: Any) -> Path:
    """Random weights, the statistics of real images, another momentum encoder than the online one."""
    torch.manual_seed(0)
    options = {
        **SMALL,
        "MODEL.BACKBONE.NAME": f"build_{backbone}_backbone",
        "MODEL.BACKBONE.DEPTH": depth,
        "MODEL.BACKBONE.FEAT_DIM": channels,
        "MODEL.ICE.BN_CHUNKS": 1,
        **more,
    }
    cfg = load_config(ROOT / "configs" / "ICE" / "demo.yml", small_options(options))
    with torch.no_grad():
        model: Any = build_model(cfg).train()
        for layer in model.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.momentum = None  # the statistics are those of the one batch
        for parameter in model.momentum_encoder.parameters():
            parameter.mul_(1.05)
        model({"images": people(32, cfg.INPUT.SIZE_TEST)})
    folder.mkdir(parents=True)
    torch.save({"model": model.state_dict(), "epoch": 4}, folder / "model_0004.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


def people(count: int, size: Any = (64, 32)) -> Tensor:
    """(count, 3, H, W) float RGB in 0..255: training images of TinyReID, of different people."""
    paths = [item[0] for item in tiny.TinyReID(root=os.environ["FASTREID_DATASETS"]).train]
    chosen = paths[:: max(1, len(paths) // count)][:count]
    return torch.stack([ToTensor()(read_image(path).resize(size[::-1])) for path in chosen])
