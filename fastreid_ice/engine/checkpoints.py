"""The one way to a trained model: evaluation, export and search load it here."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
from fastreid.config import CfgNode
from fastreid.modeling import build_model
from fastreid.utils.checkpoint import Checkpointer
from fastreid.utils.file_io import PathManager
from torch import nn

import fastreid_ice.modeling  # noqa: F401  (registers the ICE meta-architecture and its head)
from fastreid_ice.config_files import load_config, locate
from fastreid_ice.engine.checks import check_model
from fastreid_ice.errors import DAMAGED, UnreadableCheckpointError, one_line
from fastreid_ice.report.run_files import CONFIG_FILE

logger = logging.getLogger(__name__)

PREFERRED = ("model_best.pth", "model_final.pth")


@dataclass(frozen=True)
class TrainedModel:
    """A model as it was trained, ready to evaluate.

    Attributes:
        model: in evaluation mode: (b, 3, H, W) float RGB in 0..255 -> (b, D) embeddings, not normalised.
        cfg: its config, frozen.
        checkpoint: the file that its weights are from.
        extras: what the checkpoint holds beside the weights: ``epoch`` (counted from 0), ``metric`` ...
    """

    model: nn.Module
    cfg: CfgNode
    checkpoint: Path
    extras: dict[str, Any] = field(default_factory=dict)


def find_checkpoint(run: str | Path) -> Path:
    """The checkpoint of a run: a file is itself; of a folder the best, else the last, else the newest periodic one.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(run).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"There is no run or checkpoint {path}")
    for name in PREFERRED:
        if (path / name).is_file():
            return path / name
    periodic = sorted(file for file in path.glob("model_*.pth") if re.fullmatch(r"model_\d+", file.stem))
    if not periodic:
        raise FileNotFoundError(f"{path} holds no checkpoint ({', '.join(PREFERRED)} or model_<epoch>.pth)")
    return periodic[-1]


def load_trained_model(
    run: str | Path,
    *,
    config_file: str | Path | None = None,
    opts: Sequence[Any] = (),
    device: str | None = None,
) -> TrainedModel:
    """Build the model of a run and load its weights.

    Args:
        run: folder of a run, or a checkpoint (see :func:`find_checkpoint`).
        config_file: its config; default ``config.yaml`` beside the checkpoint.
        opts: KEY, VALUE, ... on top of the config.
        device: "cpu", "cuda" ...; default that of the config, or the CPU where there is no CUDA.

    Raises:
        FileNotFoundError: no checkpoint or no config.
        ValueError: a file that is none, weights of another model, or a device that is not there.
    """
    if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"The device is {device}, but torch {torch.__version__} finds no GPU; take cpu")
    checkpoint = find_checkpoint(run)
    config = locate(config_file) if config_file is not None else checkpoint.parent / CONFIG_FILE
    if not config.is_file():
        raise FileNotFoundError(f"There is no config {config}; name that of {checkpoint} with --config-file")
    cfg = load_config(config, opts)
    cfg.MODEL.DEVICE = device or (cfg.MODEL.DEVICE if torch.cuda.is_available() else "cpu")
    cfg.MODEL.BACKBONE.PRETRAIN = False
    cfg.MODEL.WEIGHTS = ""
    check_model(cfg)
    cfg.freeze()
    model = build_model(cfg).eval()
    extras = load_weights(model, checkpoint)
    return TrainedModel(model, cfg, checkpoint, extras)


def load_weights(model: nn.Module, checkpoint: str | Path) -> dict[str, Any]:
    """Load the weights of a checkpoint, whole: a tensor of the model that the file lacks is an error.

    Returns:
        What the file holds beside the weights.

    Raises:
        ValueError: the file is no checkpoint, lacks tensors of this model or has them in another shape.
    """
    stored = read_checkpoint(checkpoint)
    own, weights = model.state_dict(), stored.pop("model")
    shared = {name for name in own if name in weights}
    other = [name for name in sorted(shared) if own[name].shape != weights[name].shape]
    if other:
        found, needed = tuple(weights[other[0]].shape), tuple(own[other[0]].shape)
        raise ValueError(
            f"{checkpoint} does not fit the config: {other[0]} has shape {found}, the model of the config {needed} "
            f"({len(other)} such tensors)"
        )
    result = model.load_state_dict(weights, strict=False)
    if result.missing_keys:
        raise ValueError(
            f"{checkpoint} does not fit the config: it lacks {len(result.missing_keys)} of the model's tensors, "
            f"such as {', '.join(result.missing_keys[:3])}"
        )
    return stored


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, tensors and plain values only; a bare state dict becomes its ``model``.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableCheckpointError: it cannot be read as one.
    """
    local = str(PathManager.get_local_path(str(path)))
    if not Path(local).expanduser().is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}")
    try:
        return Checkpointer(nn.Identity())._load_file(str(Path(local).expanduser()))
    except pickle.UnpicklingError as error:
        raise UnreadableCheckpointError(
            f"{path} is not a checkpoint of tensors and plain values, and was not read further since it may run code"
        ) from error
    except (*DAMAGED, OSError) as error:
        raise UnreadableCheckpointError(f"{path} is not a checkpoint, or is damaged: {one_line(error)}") from error
