"""A dataset and a backbone of test size, registered with fastreid. Imported by spawned processes too."""

from pathlib import Path

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from torch import nn

from fastreid_ice.data.datasets import SyntheticReID
from fastreid_ice.synthetic import render_synthetic_reid


@DATASET_REGISTRY.register()
class TinyReID(SyntheticReID):
    """8 identities to train on, 4 to test on, 3 cameras."""

    dataset_dir = "tiny_reid"

    def _render(self, folder: Path) -> Path:
        return render_synthetic_reid(
            folder,
            train_identities=8,
            test_identities=4,
            cameras=3,
            train_images=(2, 3),
            gallery_images=(2, 3),
            distractors=4,
        )


@DATASET_REGISTRY.register()
class TinyTracks(TinyReID):
    """The same images, of each person under each camera in one track."""

    def __init__(self, root="datasets", **kwargs):
        super().__init__(root=root, **kwargs)
        self.tracks = {path: (f"{person} {camera}", None) for path, person, camera in self.train}


@DATASET_REGISTRY.register()
class TinySource(SyntheticReID):
    """6 other identities, 2 cameras: a source."""

    dataset_dir = "tiny_source"
    dataset_name = "tiny_source"

    def _render(self, folder: Path) -> Path:
        return render_synthetic_reid(
            folder,
            seed=1,
            train_identities=6,
            test_identities=2,
            cameras=2,
            train_images=(2, 4),
            gallery_images=(1, 2),
            distractors=0,
        )


@BACKBONE_REGISTRY.register()
def build_two_convolutions(cfg):
    """The backbone of the reference trajectories: (B, 3, H, W) -> (B, 32, H/4, W/4)."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
    )
