"""The manifest of a run, ``run.json``: what was run, on what, how far it came and what it scored.

Tables, model cards and reports are made from it and from ``results.json``. It names no host, no user and no absolute
path, so that it can be published as it is.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastreid_ice.files import sha256, write_json
from fastreid_ice.report.environment import commit, machine, versions
from fastreid_ice.report.reading import read_json
from fastreid_ice.report.records import SCORES, best_record, last_record, score_key

FORMAT = 1
FILE_NAME = "run.json"
STATUSES = ("running", "finished", "interrupted", "derived")

_BACKBONES = {
    "resnet": "ResNet",
    "resnext": "ResNeXt",
    "resnest": "ResNeSt",
    "regnet": "RegNet",
    "repvgg": "RepVGG",
    "effnet": "EfficientNet",
    "osnet": "OSNet",
    "mobilenetv2": "MobileNetV2",
    "mobilenetv3": "MobileNetV3",
    "shufflenetv2": "ShuffleNetV2",
    "vit": "ViT",
}
_REQUIRED: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "status": str,
    "datasets": dict,
    "backbone": str,
    "config": dict,
    "differences": dict,
    "seed": int,
    "images": int,
    "epochs": int,
    "epochs_done": int,
    "steps_done": int,
    "hours": (int, float),
    "device": str,
}
# Keys on which the numbers do not depend, and the seed.
WITHOUT_EFFECT = {
    "SEED",
    "OUTPUT_DIR",
    "CUDNN_BENCHMARK",
    "MODEL.DEVICE",
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.CACHE",
    "DATALOADER.CACHE_DIR",
    "CLUSTERING.BACKEND",
    "CLUSTERING.MEMORY_BUDGET_MB",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.CHECKPOINT_KEEP",
    "TEST.IMS_PER_BATCH",
    "TEST.EVAL_START",
    "TEST.ROC.ENABLED",
    "REPORT.ENABLED",
    "REPORT.PICTURES",
}
# What a resumed run does not look at, or may go beyond.
_NOT_RESUMED = {"MODEL.WEIGHTS", "MODEL.BACKBONE.PRETRAIN", "MODEL.BACKBONE.PRETRAIN_PATH", "SOLVER.MAX_EPOCH"}
SET_ASIDE = "earlier_run"  # with a number: where a new run moves what it finds of another one in its folder
_PATH_KEY = re.compile(r"(^|[._])(PATH|DIR|ROOT|WEIGHTS|FILE|CSV|QUERY|GALLERY|MODEL_CONFIG)$")
_PATTERN_KEY = re.compile(r"(^|_)PATTERN$")  # a pattern may begin with a backslash, and is no path
_ABSOLUTE = re.compile(r"^([/~\\]|[A-Za-z]:[/\\])")


def build_manifest(
    cfg: Mapping[str, Any],
    base: Mapping[str, Any],
    *,
    seed: int,
    images: int,
    cameras: int,
    identities: int | None = None,
    processes: int = 1,
    gpus: Sequence[str] = (),
    threads: int | None = None,
    name: str | None = None,
    earlier: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest at the start of a run, with the status "running".

    Args:
        cfg: the run's whole config (fastreid's config node is such a mapping).
        base: the config that it is compared with, usually that of configs/ICE/Base-ICE.yml.
        seed: that the run uses, also where ``SEED`` asks for a random one.
        images: number of training images.
        cameras: number of cameras that the training knows (1 if it ignores them).
        identities: number of true identities among the training images; None if unknown.
        processes: that train together.
        gpus: names of the accelerators in use.
        threads: that compute (``torch.get_num_threads()``); as many as the process may use unless given.
        name: of the method, for tables; :func:`method_name` unless given.
        earlier: manifest of the run that this one goes on with: its hours and epochs count, and where its config was
            another, "changed" says so: a list of {"until_epoch": how many were done, "before": {key: value}}.

    Returns:
        Plain values only (dict, list, str, int, float, bool, None), as json holds them.
    """
    config = plain_config(cfg)
    solver, datasets = config.get("SOLVER", {}), config.get("DATASETS", {})
    manifest = {
        "format": FORMAT,
        "name": name or method_name(config),
        "status": "running",
        "datasets": {"train": list(datasets.get("NAMES", [])), "tests": list(datasets.get("TESTS", []))},
        "backbone": backbone_name(config),
        "seed": int(seed),
        "images": int(images),
        "identities": None if identities is None else int(identities),
        "cameras": int(cameras),
        "epochs": int(solver.get("MAX_EPOCH", 0)),
        "steps_per_epoch": int(solver.get("ITERS_PER_EPOCH", 0)),
        "epochs_done": 0,
        "steps_done": 0,
        "hours": 0.0,
        "clusters": None,
        "outliers": None,
        "scores": {"best": None, "last": None},
        "device": str(config.get("MODEL", {}).get("DEVICE", "cpu")),
        "processes": int(processes),
        "machine": machine(gpus, threads),
        "versions": versions(),
        "commit": commit(),
        "differences": differences(config, base),
        "config": config,
        "digests": digests(cfg),
        "changed": [] if earlier is None else _changes(earlier, config),
    }
    for key in ("epochs_done", "steps_done", "hours", "clusters", "outliers", "scores"):
        if earlier is not None and key in earlier:
            manifest[key] = earlier[key]
    return manifest


def _changes(earlier: Mapping[str, Any], config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those of the run before, and what differs from it now."""
    flat = flatten(config)
    before = {
        key: value
        for key, value in flatten(earlier["config"]).items()
        if key not in WITHOUT_EFFECT | _NOT_RESUMED and flat.get(key, value) != value
    }
    known = list(earlier.get("changed") or [])
    return [*known, {"until_epoch": earlier["epochs_done"], "before": before}] if before else known


def update_manifest(
    manifest: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    *,
    epochs_done: int,
    seconds: float,
    status: str = "running",
) -> dict[str, Any]:
    """A copy of a manifest after an epoch, or at the end.

    Args:
        manifest: the one before.
        records: the rows of ``results.json`` so far.
        epochs_done: epochs trained so far, those before a resume included.
        seconds: that passed since the manifest was built or last updated; they add up, also over resumes.
        status: "running", "finished" or "interrupted". A killed run stays "running" in its file. "derived" are weights
            that were made from those of a run, not yet evaluated (:mod:`fastreid_ice.report.derived`).

    Raises:
        ValueError: another status.
    """
    if status not in STATUSES:
        raise ValueError(f"status is {status!r}; choose one of {', '.join(STATUSES)}")
    tests = manifest["datasets"]["tests"]
    best, last = best_record(records, tests), last_record(records, tests)
    clustered = [record for record in records if record.get("clusters") is not None]
    updated = {
        **manifest,
        "status": status,
        "epochs_done": int(epochs_done),
        "steps_done": int(epochs_done) * manifest["steps_per_epoch"],
        "hours": manifest["hours"] + seconds / 3600,
        "scores": {"best": _scores(best, tests), "last": _scores(last, tests)},
    }
    for key in ("clusters", "outliers"):
        if clustered and clustered[-1].get(key) is not None:
            updated[key] = int(clustered[-1][key])
    return updated


def write_manifest(path: str | os.PathLike, manifest: Mapping[str, Any]) -> None:
    """Write a manifest; a reader never meets half of it."""
    write_json(path, manifest, allow_nan=False)


def read_manifest(path: str | os.PathLike) -> dict[str, Any]:
    """Read and check a manifest.

    Args:
        path: of a ``run.json`` or of the folder that holds it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no manifest, or of another format; the message names the file and what is missing.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    manifest = read_json(path)
    if not isinstance(manifest, dict):
        raise ValueError(f"{path}: holds a {type(manifest).__name__}, but the manifest of a run is an object")
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{path}: format is {manifest.get('format')!r}, but this version reads format {FORMAT}")
    for key, kind in _REQUIRED.items():
        if key not in manifest:
            raise ValueError(f"{path}: has no {key!r}")
        if not isinstance(manifest[key], kind) or isinstance(manifest[key], bool):
            raise ValueError(f"{path}: {key!r} is {manifest[key]!r}, which a run cannot have")
    if manifest["status"] not in STATUSES:
        raise ValueError(f"{path}: 'status' is {manifest['status']!r}, but must be one of {', '.join(STATUSES)}")
    for key in ("train", "tests"):
        names = manifest["datasets"].get(key)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{path}: 'datasets' has no list of names {key!r}")
    return manifest


def known_manifest(folder: str | os.PathLike) -> dict[str, Any] | None:
    """The manifest of a folder; None where there is none that can be read."""
    try:
        return read_manifest(folder)
    except (OSError, ValueError):
        return None


def _scores(record: Mapping[str, Any] | None, tests: Sequence[str]) -> dict[str, Any] | None:
    """Epoch and finite scores per test set, in percent."""
    if record is None:
        return None
    found: dict[str, Any] = {"epoch": int(record["epoch"])}
    for test in tests:
        values = {score: record.get(score_key(tests, test, score)) for score in SCORES}
        found[test] = {
            score: float(value) for score, value in values.items() if value is not None and math.isfinite(value)
        }
    return found


def method_name(config: Mapping[str, Any]) -> str:
    """Short name of a method for tables.

    Example:
        >>> method_name({}), method_name({"DATASETS": {"USE_CAMERAS": False, "SOURCE": ["MSMT17"]}})
        ('ICE', 'ICE (agnostic, source MSMT17)')
        >>> method_name({"CLUSTERING": {"METHOD": "ground_truth"}})
        'true labels'
    """
    name = config.get("MODEL", {}).get("META_ARCHITECTURE", "ICE")
    if config.get("CLUSTERING", {}).get("METHOD") == "ground_truth":
        return "true labels"
    datasets = config.get("DATASETS", {})
    details = [] if datasets.get("USE_CAMERAS", True) else ["agnostic"]
    if datasets.get("SOURCE"):
        details.append(f"source {' + '.join(datasets['SOURCE'])}")
    return f"{name} ({', '.join(details)})" if details else name


def backbone_name(config: Mapping[str, Any]) -> str:
    """Name of a backbone for tables.

    Example:
        >>> backbone_name({"MODEL": {"BACKBONE": {"NAME": "build_osnet_backbone", "DEPTH": "x0_25"}}})
        'OSNet x0.25'
        >>> backbone_name({"MODEL": {"BACKBONE": {"NAME": "build_resnet_backbone", "DEPTH": "50x", "WITH_IBN": True}}})
        'ResNet-50-IBN'
    """
    backbone = config.get("MODEL", {}).get("BACKBONE", {})
    builder = re.sub(r"^build_|_backbone$", "", str(backbone.get("NAME", "unknown")))
    name, depth = _BACKBONES.get(builder, builder), str(backbone.get("DEPTH", ""))
    if re.match(r"^x\d", depth):  # a factor of the width, as OSNet's
        name += f" {depth.replace('_', '.')}"
    elif builder in _BACKBONES and depth:
        name += f"-{re.sub(r'(?<=[0-9])x$', '', depth)}"
    parts = (("WITH_IBN", "-IBN"), ("WITH_SE", "-SE"), ("WITH_NL", "-NL"))
    return name + "".join(suffix for key, suffix in parts if backbone.get(key))


def differences(config: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The dotted keys of a plain config that another config has not, or has with another value."""
    flat_base = flatten(plain_config(base))
    return {key: value for key, value in flatten(config).items() if key not in flat_base or flat_base[key] != value}


def plain_config(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """A config as nested plain values; of every path only the last component stays."""
    return {str(key): _plain(value, str(key)) for key, value in cfg.items()}


def _plain(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        return plain_config(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item, key) for item in value]
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    text = str(value)
    if _is_path(key, text):
        return re.split(r"[/\\]", text.split("?")[0].rstrip("/\\"))[-1]
    return text


def _is_path(key: str, text: str) -> bool:
    return not _PATTERN_KEY.search(key) and bool(_PATH_KEY.search(key) or _ABSOLUTE.match(text))


def digests(cfg: Mapping[str, Any]) -> dict[str, str]:
    """Of the files that paths of a config name, their contents' digests; of what else :func:`plain_config` shortens,
    the whole path's.
    """
    found = {}
    for key, value in flatten(cfg).items():
        if not isinstance(value, str) or not value:
            continue
        name = key.rsplit(".", 1)[-1]
        path = os.path.expanduser(value)  # as who opens it does
        if _is_path(name, value) and os.path.isfile(path):
            found[key] = sha256(path)[:8]
        elif _plain(value, name) != value:
            found[key] = hashlib.sha256(os.fsencode(value)).hexdigest()[:8]
    return found


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots.

    Example:
        >>> flatten({"SEED": 1, "SOLVER": {"AMP": {"ENABLED": False}}})
        {'SEED': 1, 'SOLVER.AMP.ENABLED': False}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
