"""safetensors: the weights alone, in a folder as Roboflow's ``reid`` saves them."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastreid_ice.modeling.meta_arch import Encoder

PACKAGES = ("safetensors",)
WEIGHTS, REID_CONFIG, DESCRIPTION = "weights.safetensors", "reid_config.json", "export.json"
SBS_RESNEST50 = "fastreid_sbs_resnest50"
_POWERS = {"GlobalAvgPool": 1.0, "FastGlobalAvgPool": 1.0, "GeneralizedMeanPooling": 3.0}


def reid_architecture(model: Mapping[str, Any], name: str) -> str:
    """The architecture of Roboflow's ``reid`` that computes what our encoder does, or a name that it refuses.

    It has one with fastreid's neck, ``fastreid_sbs_resnest50``: ResNeSt-50 without the last stride, generalised mean
    pooling (average pooling is its power 1), batch normalisation.

    Args:
        model: the config's MODEL.
        name: the architecture's name elsewhere.
    """
    backbone, heads = model["BACKBONE"], model["HEADS"]
    fits = (
        (backbone["NAME"], backbone["DEPTH"], backbone["LAST_STRIDE"]) == ("build_resnest_backbone", "50x", 1)
        and heads["WITH_BNNECK"]
        and not heads["EMBEDDING_DIM"]
        and (heads["POOL_LAYER"] in _POWERS or heads["POOL_LAYER"] == "GeneralizedMeanPoolingP")
    )
    return SBS_RESNEST50 if fits else f"fastreid:{name}"


def write_safetensors(folder: Path, encoder: Encoder, model: Mapping[str, Any], description: dict[str, Any]) -> str:
    """Write ``weights.safetensors``, ``reid_config.json`` and ``export.json``.

    The tensors have the names of stock fastreid (``backbone.*``, ``heads.*``).

    Returns:
        The architecture that ``reid_config.json`` names, see :func:`reid_architecture`.
    """
    from safetensors.torch import save_file

    architecture = reid_architecture(model, description["architecture"])
    weights = {name: value.contiguous().clone() for name, value in encoder.state_dict().items()}
    if architecture == SBS_RESNEST50 and "heads.pool_layer.p" not in weights:
        weights["heads.pool_layer.p"] = torch.tensor([_POWERS[model["HEADS"]["POOL_LAYER"]]])
    folder.mkdir(parents=True)
    save_file(weights, str(folder / WEIGHTS), metadata={"format": "pt"})
    reid_config = {
        "architecture": architecture,
        "preprocessing": {
            "input_size": description["size"],
            "mean": description["mean"],
            "std": description["std"],
            "interpolation": "bicubic",
            "to_rgb": True,
            "resize_mode": "stretch",
        },
    }
    (folder / REID_CONFIG).write_text(json.dumps(reid_config, indent=2) + "\n")
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")
    return architecture


def read_encoder(path: Path, encoder: Encoder) -> Encoder:
    """A copy of an encoder with the weights of a file alone: every tensor is overwritten."""
    from safetensors.torch import load_file

    read = copy.deepcopy(encoder)
    with torch.no_grad():
        for tensor in read.state_dict().values():
            tensor.zero_()
    weights: dict[str, Tensor] = load_file(str(path))
    if "heads.pool_layer.p" not in read.state_dict():
        weights.pop("heads.pool_layer.p", None)
    read.load_state_dict(weights, strict=True)
    return read
