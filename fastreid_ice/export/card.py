"""What is known of a run, for the model card beside its export and the row in a zoo's table."""

from __future__ import annotations

import csv
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from fastreid_ice.report.derived import BEST, scored_otherwise
from fastreid_ice.report.manifest import FILE_NAME, flatten, plain_config, versions
from fastreid_ice.report.records import SCORES, best_record, last_record, score_key
from fastreid_ice.report.run_files import CLUSTERS_FILE, RECORDS_FILE, read_clusters
from fastreid_ice.report.tables.build import protocol

logger = logging.getLogger(__name__)


def model_card(
    cfg: Mapping[str, Any],
    own_config: Mapping[str, Any],
    checkpoint: Path,
    extras: Mapping[str, Any],
    *,
    evaluated: Mapping[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Everything to know about the exported weights; null where nothing is known.

    Scores come from ``results.json``, counts, seed and versions from ``run.json`` and ``clusters.csv`` beside the
    checkpoint. There is no path in it, only names of files.

    Args:
        cfg: the run's config as it is exported with.
        own_config: those of its keys that stock fastreid does not have.
        checkpoint: that was exported.
        extras: what the checkpoint holds beside the weights.
        evaluated: the config that the run was evaluated with; ``cfg`` by default.
        more: further entries, such as the files.
    """
    folder = checkpoint.parent
    manifest = _read_json(folder / FILE_NAME, dict)
    rows = _read_json(folder / RECORDS_FILE, list)
    epoch = extras.get("epoch")
    evaluated = cfg if evaluated is None else evaluated
    scores = metrics(rows, evaluated["DATASETS"]["TESTS"], epoch, manifest)
    if scored_otherwise(evaluated, cfg):
        scores["exported"] = None
    return {
        **more,
        "datasets": {"train": list(cfg["DATASETS"]["NAMES"]), "tests": list(evaluated["DATASETS"]["TESTS"])},
        "checkpoint": checkpoint.name,
        "method": manifest.get("name"),
        "epoch": None if epoch is None else int(epoch) + 1,
        "selected_by": selection(manifest.get("derived_from", checkpoint.name)),
        "encoder": cfg["MODEL"]["ICE"]["EVAL_ENCODER"],
        "start_weights": start_weights(cfg),
        "labels": labels_used(cfg),
        "seed": manifest.get("seed", cfg.get("SEED")),
        "images": manifest.get("images", _count_images(folder / CLUSTERS_FILE)),
        "clusters": _last_clusters(manifest, rows),
        "metrics": scores,
        "protocol": protocol(flatten(evaluated)),
        "versions": {"training": manifest.get("versions"), "export": versions()},
        "hours": manifest.get("hours"),
        "machine": manifest.get("machine"),
        "ice_config": plain_config(own_config),
    }


def derived_name(folder: Path) -> str | None:
    """The method of weights that were derived from a run's, such as "ICE, whitened"; None for a run's own."""
    manifest = _read_json(folder / FILE_NAME, dict)
    name = manifest.get("name")
    return name if "derived_from" in manifest and isinstance(name, str) else None


def metrics(
    rows: Sequence[Mapping[str, Any]],
    tests: Sequence[str],
    epoch: int | None,
    manifest: Mapping[str, Any],
) -> dict[str, Any]:
    """Scores in percent of the best, the last and the exported epoch: ``{"epoch": n, TEST: {"mAP": ...}}`` or None.

    Args:
        rows: of ``results.json``.
        tests: DATASETS.TESTS.
        epoch: of the exported checkpoint, counted from 0; None if unknown.
        manifest: of ``run.json``; its scores are taken where ``results.json`` has none.
    """
    known = [row for row in rows if isinstance(row, Mapping) and isinstance(row.get("epoch"), int)]
    own = [row for row in known if epoch is not None and row["epoch"] == int(epoch) + 1 and _scores(row, tests)]
    written = manifest.get("scores")
    written = written if isinstance(written, Mapping) else {}
    best, last = best_record(known, tests), last_record(known, tests)
    return {
        "best": _with_epoch(best, tests) if best else written.get("best"),
        "last": _with_epoch(last, tests) if last else written.get("last"),
        "exported": _with_epoch(own[-1], tests) if own else None,
    }


def table_row(name: str, config: str, pretrained: str, scores: Mapping[str, float] | None, weights: str) -> str:
    """A row as fastreid's MODEL_ZOO.md has them: Method, Pretrained, Rank@1, mAP, mINP, download.

    Example:
        >>> table_row("ICE(R50)", "a.yml", "ImageNet", {"Rank-1": 93.84, "mAP": 82.3}, "a.pth")
        '| [ICE(R50)](a.yml) | ImageNet | 93.8% | 82.3% | - | [model](a.pth) |'
    """
    scores = scores or {}
    values = [f"{scores[key]:.1f}%" if key in scores else "-" for key in ("Rank-1", "mAP", "mINP")]
    return "| " + " | ".join([f"[{name}]({config})", pretrained, *values, f"[model]({weights})"]) + " |"


TABLE_HEAD = (
    "| Method | Pretrained | Rank@1 | mAP | mINP | download |\n| :---: | :---: | :---: | :---: | :---: | :---: |"
)


def start_weights(cfg: Mapping[str, Any]) -> str:
    """Where the training started, by the file's name only: "ImageNet", a file, or "random"."""
    model = cfg["MODEL"]
    if model["WEIGHTS"]:
        return _file_name(model["WEIGHTS"])
    if not model["BACKBONE"]["PRETRAIN"]:
        return "random"
    return _file_name(model["BACKBONE"]["PRETRAIN_PATH"]) or "ImageNet"


def labels_used(cfg: Mapping[str, Any]) -> str:
    """Whether the training saw identities, and whose."""
    if cfg["CLUSTERING"]["METHOD"] == "ground_truth":
        return "identity labels of the training set were used for training (CLUSTERING.METHOD ground_truth)"
    start, source = start_weights(cfg), cfg["DATASETS"].get("SOURCE")
    said = "no identity labels were used for training"
    if source:
        said = f"{said} but those of {' and '.join(source)} (DATASETS.SOURCE)"
    if start in ("ImageNet", "random"):
        return said
    return f"{said}; the start weights {start} may have been trained with labels of their own dataset"


def selection(checkpoint: str) -> str:
    """How this checkpoint was chosen among the run's."""
    if checkpoint == BEST:
        return "best evaluation on the labelled test set"
    if checkpoint == "model_final.pth":
        return "last epoch"
    return "a checkpoint of an epoch" if re.fullmatch(r"model_\d+\.pth", checkpoint) else "given by name"


def _file_name(path: str) -> str:
    return PureWindowsPath(path.split("?")[0]).name


def _scores(row: Mapping[str, Any], tests: Sequence[str]) -> dict[str, dict[str, float]]:
    """Per test set the scores that a row of results.json has."""
    found = {}
    for test in tests:
        values = {score: row.get(score_key(tests, test, score)) for score in SCORES}
        numbers = {
            score: float(value)
            for score, value in values.items()
            if isinstance(value, (int, float)) and math.isfinite(value)
        }
        if numbers:
            found[test] = numbers
    return found


def _with_epoch(row: Mapping[str, Any], tests: Sequence[str]) -> dict[str, Any]:
    return {"epoch": row.get("epoch"), **_scores(row, tests)}


def _last_clusters(manifest: Mapping[str, Any], rows: Sequence[Any]) -> int | None:
    if isinstance(manifest.get("clusters"), int):
        return manifest["clusters"]
    counts = [row["clusters"] for row in rows if isinstance(row, Mapping) and row.get("clusters") is not None]
    return int(counts[-1]) if counts else None


def _count_images(path: Path) -> int | None:
    """Number of training images by the run's clusters.csv."""
    try:
        return len(read_clusters(path)["labels"])
    except (OSError, ValueError, csv.Error):
        return None


def _read_json(path: Path, kind: type) -> Any:
    """What a file of the run holds, or nothing: an interrupted run, or a checkpoint alone, has less."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return kind()
    except (OSError, ValueError) as error:
        logger.warning("%s is left out of the model card: it cannot be read (%s)", path, error)
        return kind()
    return value if isinstance(value, kind) else kind()
