"""A part of the embedded dataset and three convolutions, for trainings of a second (``MODEL.ICE.IMPORTS``)."""

from __future__ import annotations

from pathlib import Path

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from torch import nn

from fastreid_ice.data.datasets import SyntheticReID
from fastreid_ice.synthetic import render_synthetic_reid


@DATASET_REGISTRY.register()
class FewSyntheticReID(SyntheticReID):
    """12 identities to train on, 6 to test on, 3 cameras."""

    dataset_dir = "few_synthetic_reid"

    def _render(self, folder: Path) -> Path:
        return render_synthetic_reid(
            folder,
            train_identities=12,
            test_identities=6,
            cameras=3,
            train_images=(2, 3),
            gallery_images=(2, 3),
            distractors=4,
        )


@BACKBONE_REGISTRY.register()
def build_three_convolutions(cfg):
    """(B, 3, H, W) -> (B, 256, H/8, W/8)."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 64), (64, 256)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)
