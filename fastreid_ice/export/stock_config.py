"""A run's config as stock fastreid reads it: no key of ours, and only what differs from fastreid's defaults."""

from __future__ import annotations

from typing import Any

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import yaml
from fastreid.config import CfgNode, get_cfg
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.samplers import data_sampler, triplet_sampler
from fastreid.modeling.backbones import BACKBONE_REGISTRY

from fastreid_ice.errors import look_up, registered_names

# The machine's, the training's from our weights, or without meaning for a stock Baseline: fastreid's own value stays.
_LEFT_OUT = (
    "MODEL.DEVICE",
    "MODEL.WEIGHTS",
    "MODEL.QUEUE_SIZE",
    "MODEL.BACKBONE.PRETRAIN",
    "MODEL.BACKBONE.PRETRAIN_PATH",
    "MODEL.HEADS.NECK_FEAT",
    "DATALOADER.NUM_WORKERS",
    "KD",
)
# fastreid divides by these.
_PERIODS = ("TEST.EVAL_PERIOD", "SOLVER.CHECKPOINT_PERIOD")


def stock_config(cfg: CfgNode, output_dir: str) -> tuple[CfgNode, list[str]]:
    """The config of the stock ``Baseline`` that the exported weights belong to.

    Args:
        cfg: of the run.
        output_dir: its OUTPUT_DIR.

    Returns:
        The config, not frozen, and what was left out of it, one sentence each.

    Raises:
        ValueError: the backbone is not one of fastreid's.
    """
    backbone = look_up(BACKBONE_REGISTRY, cfg.MODEL.BACKBONE.NAME, "MODEL.BACKBONE.NAME")
    if not _is_stock(backbone):
        raise ValueError(
            f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} is not a backbone of stock fastreid, which cannot read "
            "this model therefore; use --format onnx or torchscript"
        )
    stock = get_cfg()
    stock.set_new_allowed(False)
    _take_over(stock, cfg)
    stock.MODEL.META_ARCHITECTURE = "Baseline"
    stock.MODEL.HEADS.NAME = "EmbeddingHead"
    stock.MODEL.HEADS.NUM_CLASSES = 1  # the row of heads.weight that makes the file whole
    stock.MODEL.LOSSES.NAME = get_cfg().MODEL.LOSSES.NAME
    stock.OUTPUT_DIR = output_dir
    notes = _keep_known_datasets(stock)
    if stock.TEST.METRIC == "jaccard":  # stock fastreid asks its distance for more than the config has
        stock.TEST.METRIC = get_cfg().TEST.METRIC
    sampler = stock.DATALOADER.SAMPLER_TRAIN
    if not (hasattr(data_sampler, sampler) or hasattr(triplet_sampler, sampler)):
        stock.DATALOADER.SAMPLER_TRAIN = get_cfg().DATALOADER.SAMPLER_TRAIN
    return stock, notes


def _is_stock(registered: Any) -> bool:
    return registered.__module__.split(".")[0] == "fastreid"


def _take_over(stock: CfgNode, cfg: CfgNode, group: str = "") -> None:
    """Copy the values of all keys that stock fastreid has."""
    for key, default in stock.items():
        name = f"{group}{key}"
        if name in _LEFT_OUT or key not in cfg or (name in _PERIODS and not cfg[key]):
            continue
        if isinstance(default, CfgNode):
            _take_over(default, cfg[key], f"{name}.")
        else:
            stock[key] = cfg[key]


def _keep_known_datasets(stock: CfgNode) -> list[str]:
    """Leave datasets out that stock fastreid does not know; what was said about each key."""
    known = {name for name in registered_names(DATASET_REGISTRY) if _is_stock(DATASET_REGISTRY.get(name))}
    notes = []
    for key in ("NAMES", "TESTS"):
        kept = tuple(name for name in stock.DATASETS[key] if name in known)
        unknown = [name for name in stock.DATASETS[key] if name not in known]
        stock.DATASETS[key] = kept
        if unknown:
            notes.append(f"DATASETS.{key}: left out {', '.join(unknown)}, which stock fastreid does not know")
    if stock.TEST.PRECISE_BN.DATASET not in known:
        stock.TEST.PRECISE_BN.DATASET = get_cfg().TEST.PRECISE_BN.DATASET
    return notes


def differences(stock: CfgNode) -> dict[str, Any]:
    """What differs from fastreid's defaults, nested, plain values."""
    return _differences(stock, get_cfg())


def _differences(cfg: CfgNode, defaults: CfgNode) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            below = _differences(value, defaults[key])
            if below:
                found[key] = below
        elif value != defaults[key]:
            found[key] = list(value) if isinstance(value, tuple) else value
    return found


def as_yaml(stock: CfgNode, comment: str) -> str:
    """The differences as a config file, with a comment in its first line."""
    text = yaml.safe_dump(differences(stock), sort_keys=False, default_flow_style=None)
    return f"# {comment}\n{text}"
