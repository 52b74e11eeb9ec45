"""Metadata of trained models for other zoos: OpenMMLab's ``metafile.yml`` and Hugging Face's ``model-index``.

Both describe weights. So each run is a model of its own, at its best and at its last epoch, and nothing is averaged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from fastreid_ice.report.records import best_record, last_record, score_key, start_record
from fastreid_ice.report.tables.model import METRICS, WITH_IDENTITIES, WITH_SOURCE, Run, Table, dataset_name, device

TASK = "Re-Identification"
PAPER = {
    "Title": "ICE: Inter-instance Contrastive Encoding for Unsupervised Person Re-identification",
    "URL": "https://arxiv.org/abs/2103.16364",
}
_FIND = {"start": start_record, "best": best_record, "last": last_record}
_WEIGHTS = {"best": "model_best.pth", "last": "model_final.pth"}
_TAGS = {WITH_IDENTITIES: "supervised", WITH_SOURCE: "domain-adaptation"}  # else "unsupervised"


@dataclass
class _Model:
    """The weights of a run at its start, best or last epoch, with their scores in percent per test set."""

    name: str
    run: Run
    epoch: str
    setting: str
    record: Mapping[str, Any]
    tests: list[str] = field(default_factory=list)

    def scores(self, test: str) -> dict[str, float]:
        keys = {metric: score_key(self.run.tests, test, metric) for metric in METRICS}
        return {
            metric: round(float(self.record[key]), 4)
            for metric, key in keys.items()
            if self.record.get(key) is not None
        }

    @property
    def location(self) -> str:
        """Folder of the run: as it was given if relative, else its name alone."""
        folder = self.run.folder
        return folder.resolve().name if folder.is_absolute() or ".." in folder.parts else folder.as_posix()


def metafile(table: Table) -> str:
    """``metafile.yml``: a collection per method, and under Models one entry per run and epoch with its weights."""
    models = _models(table, "metafile")
    collections: dict[str, dict[str, Any]] = {}
    for model in models:
        manifest = model.run.manifest
        collection = collections.setdefault(model.run.name, {"Name": model.run.name, "Metadata": {}})
        for key, values in (
            ("Training Data", [dataset_name(name) for name in manifest["datasets"]["train"]]),
            ("Training Techniques", manifest["config"].get("MODEL", {}).get("LOSSES", {}).get("NAME", [])),
            ("Architecture", [manifest["backbone"]]),
        ):
            known = collection["Metadata"].setdefault(key, [])
            known += [value for value in values if value not in known]
        if manifest["config"].get("MODEL", {}).get("META_ARCHITECTURE", "ICE") == "ICE":
            collection["Paper"] = dict(PAPER)
    return _dump({"Collections": list(collections.values()), "Models": [_metafile_entry(model) for model in models]})


def _metafile_entry(model: _Model) -> dict[str, Any]:
    manifest = model.run.manifest
    entry: dict[str, Any] = {
        "Name": model.name,
        "In Collection": model.run.name,
        "Config": f"{model.location}/config.yaml",
        "Metadata": {
            "Training Data": [dataset_name(name) for name in manifest["datasets"]["train"]],
            "Training Images": manifest["images"],
            "Labels": model.setting,
            "Epochs": int(model.record["epoch"]),
            "Steps": int(model.record["epoch"]) * manifest.get("steps_per_epoch", 0),
            "Seed": manifest["seed"],
            "Training Resources": device(manifest),
            "Training Time (h)": round(float(manifest["hours"]), 3),
            "Finished": model.run.finished,
        },
        "Results": [
            {"Task": TASK, "Dataset": dataset_name(test), "Metrics": model.scores(test)} for test in model.tests
        ],
    }
    weights = _WEIGHTS.get(model.epoch)  # those of the start are in no file of the run
    if weights is not None and (model.run.folder / weights).is_file():
        entry["Weights"] = f"{model.location}/{weights}"
    return entry


def model_index(table: Table) -> str:
    """The front matter of a model card's README.md with the field ``model-index``."""
    models = _models(table, "model-index")
    trained = dict.fromkeys(name for model in models for name in model.run.manifest["datasets"]["train"])
    return "---\n" + (
        _dump(
            {
                "library_name": "fastreid",
                "tags": ["re-identification", *_learning(models), "fastreid", "ice"],
                "datasets": [_slug(name).lower() for name in trained],
                "metrics": list(METRICS),
                "model-index": [_index_entry(model) for model in models],
            }
        )
        + "---\n"
    )


def _learning(models: Sequence[_Model]) -> list[str]:
    return list(dict.fromkeys(_TAGS.get(model.setting, "unsupervised") for model in models))


def _index_entry(model: _Model) -> dict[str, Any]:
    results = []
    labels = f", trained {model.setting}" * (model.setting in _TAGS)
    for test in model.tests:
        metrics = [
            {"type": metric, "value": value, "name": f"{metric} ({model.epoch} epoch, percent{labels})"}
            for metric, value in model.scores(test).items()
        ]
        results.append(
            {
                "task": {"type": "image-feature-extraction", "name": TASK},
                "dataset": {"type": _slug(test).lower(), "name": dataset_name(test)},
                "metrics": metrics,
            }
        )
    return {"name": model.name, "results": results}


def _models(table: Table, kind: str) -> list[_Model]:
    if table.published:
        raise ValueError(f"{kind} describes weights, and published numbers come without: leave --published away")
    found: dict[tuple[Any, str], _Model] = {}
    for row in table.rows:
        for test, cell in row.cells.items():
            for run in cell.runs:
                record = _FIND[row.epoch](run.records, run.tests)
                assert record is not None  # a cell holds evaluated runs only
                name = _slug("_".join([row.name, *run.manifest["datasets"]["train"], f"seed{run.manifest['seed']}"]))
                model = _Model(f"{name}_{row.epoch}", run, row.epoch, row.setting, record)
                found.setdefault((run.folder, row.epoch), model).tests.append(test)
    return _distinct(list(found.values()))


def _distinct(models: Sequence[_Model]) -> list[_Model]:
    """Number models of one name, as two runs of one seed have."""
    seen: dict[str, int] = {}
    for model in models:
        seen[model.name] = seen.get(model.name, 0) + 1
        if seen[model.name] > 1:
            model.name += f"_{seen[model.name]}"
    return list(models)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_")


def _dump(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
