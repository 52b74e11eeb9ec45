"""The fastreid format: weights, config, table row and model card of the stock ``Baseline`` that equals our encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
from fastreid.config import CfgNode, get_cfg
from fastreid.modeling import build_model
from torch import nn

from fastreid_ice.engine.checkpoints import TrainedModel
from fastreid_ice.export.card import TABLE_HEAD, model_card, start_weights, table_row
from fastreid_ice.export.encoder import stock_encoder
from fastreid_ice.export.naming import method_name, test_sets_of, zoo_backbone, zoo_names
from fastreid_ice.export.stock_config import as_yaml, stock_config
from fastreid_ice.files import sha256
from fastreid_ice.report.derived import scored_otherwise
from fastreid_ice.report.tables.model import dataset_name

_METHOD_TITLES = {
    "ice": "ICE",
    "ice_agnostic": "ICE-agnostic",
    "ice_source": "ICE+source",
    "ice_agnostic_source": "ICE-agnostic+source",
    "ice_labels": "true labels",
}


def stock_baseline(trained: TrainedModel, stock: CfgNode) -> nn.Module:
    """Stock fastreid's model with the weights of the encoder that evaluates, on the CPU, in evaluation mode.

    ``heads.weight``, the classifier that stock fastreid asks for, is one row of zeros.
    """
    cfg = stock.clone()
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).eval()
    weights = dict(stock_encoder(trained.model).state_dict())
    weights["heads.weight"] = torch.zeros_like(model.state_dict()["heads.weight"])
    model.load_state_dict(weights, strict=True)
    return model


def write_zoo(
    folder: Path, trained: TrainedModel, as_trained: CfgNode, evaluated: CfgNode, name: str | None = None
) -> tuple[nn.Module, list[str], str]:
    """Write the four files of a zoo entry.

    Args:
        folder: to write into.
        trained: the model.
        as_trained: the run's config with the start weights that ``trained.cfg`` no longer has.
        evaluated: the config that the run was evaluated with.
        name: of the method; see :func:`fastreid_ice.export.naming.method_name`.

    Returns:
        The model as stock fastreid builds it from the written files, what was left out of the config, the table's rows,
        one per test set.

    Raises:
        ValueError: stock fastreid cannot have this model.
    """
    file_name, config_name = zoo_names(as_trained, name)
    stock, notes = stock_config(as_trained, output_dir=f"logs/{_output_name(config_name)}")
    weights, config = folder / f"{file_name}.pth", folder / config_name
    torch.save({"model": stock_baseline(trained, stock).state_dict()}, weights)
    config.parent.mkdir(parents=True)
    config.write_text(as_yaml(stock, "ICE's encoder for stock fastreid; MODEL.WEIGHTS is " + weights.name))
    without_scores = _why_no_scores(as_trained, evaluated)
    notes += without_scores
    card = model_card(
        as_trained,
        _own_keys(as_trained, get_cfg()),
        trained.checkpoint,
        trained.extras,
        evaluated=evaluated,
        name=file_name,
        weights=weights.name,
        sha256=sha256(weights),
        source_sha256=sha256(trained.checkpoint),
        config=config_name,
        left_out=notes,
    )
    (folder / f"{file_name}.json").write_text(json.dumps(card, indent=1, allow_nan=False) + "\n")
    title = f"{name or _METHOD_TITLES[method_name(as_trained)]}({zoo_backbone(as_trained.MODEL.BACKBONE)})"
    scores = {} if without_scores else _of_tests(card)
    rows = _rows(title, as_trained, scores, config_name, weights.name, card["protocol"])
    (folder / f"{file_name}.md").write_text(f"{TABLE_HEAD}\n{rows}\n")
    return read_back(config, weights), notes, rows


def read_back(config: Path, weights: Path) -> nn.Module:
    """Build the stock model from the files, as fastreid's users do, but on the CPU and strictly."""
    cfg = get_cfg()
    cfg.merge_from_file(str(config))
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).eval()
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True)["model"], strict=True)
    return model


def _output_name(config_name: str) -> str:
    """ "market1501/ice_R50" of "configs/Market1501/ice_R50.yml", as the zoo's configs name their logs."""
    _, dataset, file = config_name.split("/")
    return f"{dataset.lower()}/{file[: -len('.yml')]}"


def _why_no_scores(as_trained: CfgNode, evaluated: CfgNode) -> list[str]:
    """Why the rows of the table cannot have the run's scores, one sentence each."""
    said = []
    if as_trained.TEST.CAMERA_NORMALIZATION:
        said.append("TEST.CAMERA_NORMALIZATION: stock fastreid has no such thing, so that the row is without scores")
    if as_trained.TEST.METRIC == "jaccard":
        said.append("TEST.METRIC jaccard: stock fastreid cannot rank by it alone, so that the row is without scores")
    if changed := scored_otherwise(evaluated, as_trained):
        said.append(
            f"{', '.join(changed)}: the run was evaluated with another value, so that the row is without scores"
        )
    return said


def _of_tests(card: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The scores of the exported epoch by test set."""
    exported = card["metrics"]["exported"] or {}
    return {test: exported[test] for test in card["datasets"]["tests"] if test in exported}


def _rows(
    title: str, cfg: CfgNode, scores: dict[str, dict[str, float]], config: str, weights: str, protocol: str
) -> str:
    """A row per test set, named where it is not that of the training set, with what sets its scores apart.

    One without scores if none has any.
    """
    own = test_sets_of(cfg.DATASETS.NAMES)
    lines = []
    for test, values in scores.items():
        name = title if test in own else f"{title}, tested on {dataset_name(test)}"
        name += f", {protocol}" * bool(protocol)
        lines.append(table_row(name, config, start_weights(cfg), values, weights))
    return "\n".join(lines) or table_row(title, config, start_weights(cfg), None, weights)


def _own_keys(cfg: CfgNode, stock: CfgNode) -> dict[str, Any]:
    """The keys of a config that stock fastreid does not have, nested, and the losses."""
    found: dict[str, Any] = {}
    for key, value in cfg.items():
        if key not in stock:
            found[key] = value
        elif isinstance(value, CfgNode):
            below = _own_keys(value, stock[key])
            if key == "LOSSES":
                below = {"NAME": value.NAME, **below}
            if below:
                found[key] = below
    return found
