"""What stands in an exported file and in the json beside it: how to feed it, and where it is from."""

from __future__ import annotations

import json
from typing import Any

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from fastreid.config import CfgNode

from fastreid_ice.engine.checkpoints import TrainedModel
from fastreid_ice.export.card import labels_used
from fastreid_ice.export.encoder import IMAGENET_MEAN, IMAGENET_STD
from fastreid_ice.export.naming import method_name, tracker_backbone
from fastreid_ice.files import sha256
from fastreid_ice.report.manifest import versions

# Before each key within a file: ultralytics makes every key of a file an attribute of its own object, so "names",
# "imgsz", "batch" or "model" would overwrite its own.
KEY_PREFIX = "reid_"


def describe(
    trained: TrainedModel,
    as_trained: CfgNode,
    input_form: str,
    normalized_output: bool,
    dimension: int,
    name: str | None = None,
) -> dict[str, Any]:
    """Plain values: the input, the output, the model and its source. No paths, only names of files."""
    pixels = {
        "normalized": (list(IMAGENET_MEAN), list(IMAGENET_STD), "(x / 255 - mean) / std"),
        "raw255": ([0.0] * 3, [1.0] * 3, "x"),
        "square01": ([0.0] * 3, [1.0] * 3, "x / 255, resized to size inside the model"),
    }
    mean, std, values = pixels[input_form]
    return {
        "input": input_form,
        "size": list(as_trained.INPUT.SIZE_TEST),
        "mean": mean,
        "std": std,
        "values": values,
        "colour_order": "RGB",
        "layout": "NCHW",
        "interpolation": "bicubic",
        "input_names": ["images"],
        "output_names": ["embeddings"],
        "embedding_size": dimension,
        "l2_normalized": normalized_output,
        "architecture": tracker_backbone(as_trained.MODEL.BACKBONE),
        "method": name or method_name(as_trained),
        "datasets": list(as_trained.DATASETS.NAMES),
        "labels": labels_used(as_trained),
        "source": trained.checkpoint.name,
        "source_sha256": sha256(trained.checkpoint),
        "versions": versions(),
    }


def as_properties(description: dict[str, Any]) -> dict[str, str]:
    """The description as text by text, for a file's metadata: text as it is, all else as json."""
    return {
        KEY_PREFIX + key: value if isinstance(value, str) else json.dumps(value) for key, value in description.items()
    }


def for_boxmot(description: dict[str, Any]) -> dict[str, Any]:
    """The entries that boxmot (25.0) reads from ``<file>.metadata.json``: the architecture's name and the crop size."""
    return {"model_name": description["architecture"], "model_kwargs": {"img_size": description["size"]}}
