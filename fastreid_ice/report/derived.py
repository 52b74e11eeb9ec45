"""Manifests of what is made of a run without training: another evaluation of its weights, or weights made from them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from fastreid_ice.report.manifest import differences, flatten, plain_config, update_manifest

# What the scores of a checkpoint depend on; of TEST only what changes them.
_SCORED = (
    "MODEL.ICE.EVAL_ENCODER",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "MODEL.HEADS",
    "INPUT.SIZE_TEST",
    "TEST.METRIC",
    "TEST.FLIP",
    "TEST.RERANK",
    "TEST.AQE",
    "TEST.CAMERA_NORMALIZATION",
)
# What an evaluation may have of its own; in all else its config is that of the training.
_OF_EVALUATIONS = ("DATASETS.TESTS", "TEST", "INPUT.SIZE_TEST", "MODEL.ICE.EVAL_ENCODER", "MODEL.DEVICE")


def scored_otherwise(evaluated: Mapping[str, Any], cfg: Mapping[str, Any]) -> list[str]:
    """The keys for which scores by one config are not those of another."""
    before, after = flatten(evaluated), flatten(cfg)
    return [key for key in after if _within(key, _SCORED) and before.get(key) != after[key]]


def evaluated_manifest(
    source: Mapping[str, Any],
    cfg: Mapping[str, Any],
    base: Mapping[str, Any],
    *,
    checkpoint: str,
    epoch: int,
    records: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The manifest of an evaluation of a run's weights: the run's own, with other scores and keys of the evaluation.

    Args:
        source: manifest of the run.
        cfg: the config that the weights were evaluated with.
        base: as :func:`fastreid_ice.report.manifest.build_manifest`.
        checkpoint: name of the file.
        epoch: how many epochs it has been trained.
        records: the one row of ``results.json``.
    """
    config = copy.deepcopy(source["config"])
    for key, value in flatten(plain_config(cfg)).items():
        if _within(key, _OF_EVALUATIONS):
            _set(config, key, value)
    manifest = {
        **source,
        "datasets": {**source["datasets"], "tests": list(config["DATASETS"]["TESTS"])},
        "config": config,
        "differences": differences(config, base),
        "evaluated": checkpoint,
    }
    return update_manifest(manifest, records, epochs_done=epoch, seconds=0, status="finished")


def derived_manifest(
    source: Mapping[str, Any], changes: Mapping[str, Any], base: Mapping[str, Any], *, how: str
) -> dict[str, Any]:
    """The manifest of weights that were made from a run's; they have no scores yet.

    Args:
        source: manifest of the run.
        changes: dotted keys of the config that the new weights need, and their values.
        base: as :func:`fastreid_ice.report.manifest.build_manifest`.
        how: one word behind the method's name, such as "whitened".
    """
    config = copy.deepcopy(source["config"])
    for key, value in changes.items():
        _set(config, key, value)
    return {
        **{key: value for key, value in source.items() if key != "evaluated"},
        "name": f"{source['name']}, {how}",
        "status": "derived",
        "config": config,
        "differences": differences(config, base),
        "scores": {"best": None, "last": None},
    }


def is_of_a_training(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest was written by a training, whose folder is its own."""
    return manifest["status"] != "derived" and "evaluated" not in manifest


def _within(key: str, groups: Sequence[str]) -> bool:
    return any(f"{key}.".startswith(f"{group}.") for group in groups)


def _set(config: dict[str, Any], dotted: str, value: Any) -> None:
    *groups, name = dotted.split(".")
    for group in groups:
        config = config.setdefault(group, {})
    config[name] = value
