"""Manifests of what is made of a run without training: another evaluation of its weights, or weights made from them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from fastreid_ice.report.manifest import differences, digests, flatten, plain_config, update_manifest

BEST = "model_best.pth"

# What the scores of a checkpoint depend on; of TEST only what changes them.
_EMBEDDED = (
    "MODEL.ICE.EVAL_ENCODER",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "MODEL.BACKBONE.LAST_STRIDE",  # no weight tells of it
    "MODEL.HEADS",
    "INPUT.SIZE_TEST",
)
_SCORED = (
    *_EMBEDDED,
    "TEST.METRIC",
    "TEST.FLIP",
    "TEST.RERANK",
    "TEST.AQE",
    "TEST.CAMERA_NORMALIZATION",
)
# The images of the dataset UnlabeledFolder that are scored.
_TEST_IMAGES = tuple(
    f"DATASETS.FOLDER.{key}"
    for key in (
        "QUERY",
        "GALLERY",
        "TEST_IDENTITY_FROM",
        "TEST_CAMERA_FROM",
        "TEST_PATTERN",
        "QUERY_CSV",
        "GALLERY_CSV",
    )
)
# What an evaluation may have of its own besides; in all else its config is that of the training.
_BESIDE = ("DATASETS.TESTS", "TEST.ENGINE", "TEST.AMP", "MODEL.DEVICE")


def scored_otherwise(evaluated: Mapping[str, Any], cfg: Mapping[str, Any]) -> list[str]:
    """The keys for which scores by one config are not those of another."""
    before, after = flatten(evaluated), flatten(cfg)
    return [key for key in after if _within(key, _SCORED) and before.get(key) != after[key]]


def embedding_keys(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config, dotted, that say which embeddings the weights of a checkpoint make, and their values."""
    return {key: value for key, value in flatten(plain_config(cfg)).items() if _within(key, _EMBEDDED)}


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

    It is finished where the run was trained to its end and the weights are its best or its last.

    Args:
        source: manifest of the run, or of weights that were derived from it.
        cfg: the config that the weights were evaluated with, its paths whole.
        base: as :func:`fastreid_ice.report.manifest.build_manifest`.
        checkpoint: name of the file.
        epoch: how many epochs it has been trained.
        records: the one row of ``results.json``.
    """
    evaluated = source.get("derived_from", checkpoint)
    trained = source.get("trained", source["status"])
    whole = trained == "finished" and (evaluated == BEST or epoch >= source["epochs"])
    manifest = {**_with_keys_of(source, cfg, base), "trained": trained, "evaluated": evaluated}
    status = "finished" if whole else "interrupted"
    updated = update_manifest(manifest, records, epochs_done=epoch, seconds=0, status=status)
    return {**updated, "steps_done": source["steps_done"]}  # as the hours, those of the whole training


def derived_manifest(
    source: Mapping[str, Any], cfg: Mapping[str, Any], base: Mapping[str, Any], *, checkpoint: str, how: str
) -> dict[str, Any]:
    """The manifest of weights that were made from a run's; they have no scores yet.

    Args:
        source: manifest of the run.
        cfg: the config of the new weights, its paths whole.
        base: as :func:`fastreid_ice.report.manifest.build_manifest`.
        checkpoint: name of the run's file that they were made from.
        how: put behind the method's name, such as "whitened".
    """
    manifest = {key: value for key, value in _with_keys_of(source, cfg, base).items() if key != "evaluated"}
    return {
        **manifest,
        "name": f"{source['name']}, {how}",
        "status": "derived",
        "trained": source.get("trained", source["status"]),
        "derived_from": source.get("derived_from", checkpoint),
        "scores": {"best": None, "last": None},
    }


def scored_alike(manifest: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the scores of one run on a test set are made as those of another."""
    return _scored_part(manifest) == _scored_part(other)


def is_of_a_training(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest was written by a training, whose folder is its own."""
    return manifest["status"] != "derived" and "evaluated" not in manifest


def _with_keys_of(source: Mapping[str, Any], cfg: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest with those keys of another config that scores depend on."""
    own = {key: value for key, value in flatten(cfg).items() if _within(key, (*_SCORED, *_TEST_IMAGES, *_BESIDE))}
    config = copy.deepcopy(source["config"])
    for key, value in plain_config(own).items():
        _set(config, key, value)
    kept = {key: value for key, value in _digests_of(source).items() if key not in own}
    return {
        **source,
        "datasets": {**source["datasets"], "tests": list(config["DATASETS"]["TESTS"])},
        "config": config,
        "differences": differences(config, base),
        "digests": {**kept, **digests(own)},
    }


def _scored_part(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of the config and of the digests, what scores on a test set depend on."""
    parts = (flatten(manifest["config"]), _digests_of(manifest))
    return [{key: value for key, value in part.items() if _within(key, (*_SCORED, *_TEST_IMAGES))} for part in parts]


def _digests_of(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    return manifest.get("digests") or {}


def _within(key: str, groups: Sequence[str]) -> bool:
    return any(f"{key}.".startswith(f"{group}.") for group in groups)


def _set(config: dict[str, Any], dotted: str, value: Any) -> None:
    *groups, name = dotted.split(".")
    for group in groups:
        config = config.setdefault(group, {})
    config[name] = value
