"""Put a linear map behind a trained model's embedding, as weights of layers that every fastreid has.

The map whitens by the covariance within the clusters of the training images
(:mod:`fastreid_ice.clustering.within_class`). It becomes the 1x1 convolution that MODEL.HEADS.EMBEDDING_DIM puts before
the neck: M (s x + t) = (M s) x + M t for a normalisation of scale s and offset t, so that evaluation, search and
export need to know nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from fastreid.modeling import build_model
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastreid_ice.clustering.within_class import whitening, within_class_covariance
from fastreid_ice.config_files import BASE_CONFIG, load_config
from fastreid_ice.engine.checkpoints import TrainedModel, load_trained_model
from fastreid_ice.engine.configure import write_config
from fastreid_ice.engine.run_features import RunFeatures, with_own_eps
from fastreid_ice.files import replacing
from fastreid_ice.modeling import ICE
from fastreid_ice.report.derived import derived_manifest
from fastreid_ice.report.manifest import FILE_NAME, known_manifest, write_manifest
from fastreid_ice.report.run_files import CONFIG_FILE

CHECKPOINT = "model_final.pth"
SAME = 1e-4  # how far an embedding of unit length may be from that of the map computed behind the model


@dataclass(frozen=True)
class WhitenedModel:
    """A model with the map in its weights.

    Attributes:
        model: in evaluation mode.
        cfg: its config: that of the run, with MODEL.HEADS.EMBEDDING_DIM of its own.
        extras: what the run's checkpoint holds beside the weights.
        manifest: of the run; None where it has none that can be read.
        checkpoint: name of the run's file.
        how: what tells it from other whitened models of the run.
    """

    model: ICE
    cfg: CfgNode
    extras: Mapping[str, Any]
    manifest: Mapping[str, Any] | None
    checkpoint: str
    how: str


def whiten_model(
    found: RunFeatures, labels: Tensor, opts: Sequence[Any] = (), given_clusters: bool = False
) -> WhitenedModel:
    """Build the model of a run anew, with the map behind both encoders' embeddings.

    Args:
        found: the features of the run's training images, and the checkpoint that made them.
        labels: (N,) int64 clusters of these, -1 = outlier.
        opts: KEY, VALUE, ... on top of the run's config, with which the features were extracted.
        given_clusters: whether they are others than those of the run's config.

    Raises:
        ValueError: images of one cluster do not differ, or the model's neck is not one that a map can be put into.
        RuntimeError: the new model's embeddings are not the old one's behind the map.
    """
    trained = load_trained_model(found.checkpoint, opts=opts, device="cpu")
    model = trained.model
    assert isinstance(model, ICE)
    covariance = within_class_covariance(found.features, labels)
    if not bool(covariance.any()):
        raise ValueError("No cluster has two images that differ: there is nothing to whiten by.")
    matrix = whitening(covariance, found.cfg.CLUSTERING.WCCN_SHRINKAGE)
    state = model.state_dict()
    for prefix, heads in (("heads.", model.heads), ("momentum_encoder.heads.", model.momentum_encoder.heads)):
        for name in [name for name in state if name.startswith(f"{prefix}bottleneck.")]:
            del state[name]
        state.update(
            {f"{prefix}bottleneck.{name}": value for name, value in _mapped_neck(heads.bottleneck, matrix).items()}
        )
    built = trained.cfg.clone()
    built.defrost()
    built.MODEL.HEADS.EMBEDDING_DIM = len(matrix)
    whitened = build_model(built).eval()
    whitened.load_state_dict(state)
    for either in (model, whitened):  # compared in float32
        either.eval_dtype = None
    _check_same(trained, whitened, matrix)
    # with device and start weights as they were
    cfg = load_config(found.checkpoint.parent / CONFIG_FILE, with_own_eps(opts))
    cfg.MODEL.HEADS.EMBEDDING_DIM = len(matrix)
    details = ["given clusters"] if given_clusters else []
    for key, value in zip(opts[::2], opts[1::2]):
        if str(key).startswith("CLUSTERING."):
            details.append(f"{str(key).removeprefix('CLUSTERING.')} {value}")
    how = "whitened" + f" ({', '.join(details)})" * bool(details)
    manifest = known_manifest(found.checkpoint.parent)
    return WhitenedModel(whitened, cfg, trained.extras, manifest, found.checkpoint.name, how)


def save_whitened(whitened: WhitenedModel, output: Path) -> Path:
    """Write weights, config and manifest into a folder, from which evaluation and export take them.

    Returns:
        The checkpoint.
    """
    cfg = whitened.cfg.clone()
    cfg.OUTPUT_DIR = str(output)
    output.mkdir(parents=True, exist_ok=True)
    with replacing(output / CHECKPOINT) as temporary:
        torch.save({**whitened.extras, "model": whitened.model.state_dict()}, temporary)
    write_config(cfg)
    if whitened.manifest is not None:
        manifest = derived_manifest(
            whitened.manifest, cfg, load_config(BASE_CONFIG), checkpoint=whitened.checkpoint, how=whitened.how
        )
        write_manifest(output / FILE_NAME, manifest)
    return output / CHECKPOINT


def _mapped_neck(neck: nn.Sequential, matrix: Tensor) -> dict[str, Tensor]:
    """The tensors of a neck, convolution and normalisation, that computes ``matrix`` times what ``neck`` computes."""
    layers, before = list(neck), None
    first = layers[0] if layers else None
    if isinstance(first, nn.Conv2d):
        layers, before = layers[1:], first.weight.detach().double()[:, :, 0, 0]
    scale, offset = torch.ones_like(matrix[0]), torch.zeros_like(matrix[0])
    mapped: dict[str, Tensor] = {}
    if layers:
        norm = layers.pop()
        if layers or not isinstance(norm, _BatchNorm) or norm.running_var is None or norm.running_mean is None:
            raise ValueError(
                f"MODEL.HEADS.NORM: a map can be put into a batch normalisation, not {type(norm).__name__}"
            )
        scale = norm.weight.detach().double() * (norm.running_var.double() + norm.eps).rsqrt()
        offset = norm.bias.detach().double() - norm.running_mean.double() * scale
        mapped = {f"1.{name}": value.clone() for name, value in norm.state_dict().items()}
        mapped["1.weight"].fill_(1)
        mapped["1.bias"].fill_(0)
        mapped["1.running_mean"].copy_(-(matrix @ offset))
        mapped["1.running_var"].fill_(1 - norm.eps)
    product = matrix * scale
    if before is not None:
        product = product @ before
    return {"0.weight": product[:, :, None, None].float(), **mapped}


@torch.no_grad()
def _check_same(trained: TrainedModel, whitened: nn.Module, matrix: Tensor) -> None:
    height, width = trained.cfg.INPUT.SIZE_TEST
    images = 255 * torch.rand(4, 3, height, width, generator=torch.Generator().manual_seed(0))
    expected = F.normalize(trained.model(images).double() @ matrix, dim=1)
    distance = float((F.normalize(whitened(images).double(), dim=1) - expected).abs().max())
    if not distance <= SAME:
        raise RuntimeError(
            f"The whitened model's embeddings are {distance:.2g} away from the map behind {trained.checkpoint}"
        )
