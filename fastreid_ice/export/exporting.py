"""``export_model``: from a run to files, compared with torch before they take their place."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch.nn.functional as F
from fastreid.config import CfgNode
from torch import Tensor

from fastreid_ice.config_files import load_config
from fastreid_ice.engine.checkpoints import CONFIG_FILE, TrainedModel, load_trained_model
from fastreid_ice.errors import closest
from fastreid_ice.export import onnx_format, safetensors_format, torchscript_format
from fastreid_ice.export.comparison import expected_embeddings, max_difference, require_equal
from fastreid_ice.export.description import as_properties, describe, for_boxmot
from fastreid_ice.export.encoder import Embedder, check_input_form, stock_encoder, to_input_form
from fastreid_ice.export.images import CheckImages, check_images
from fastreid_ice.export.naming import tracker_name
from fastreid_ice.export.packages import need
from fastreid_ice.export.staging import staged
from fastreid_ice.export.zoo import write_zoo

logger = logging.getLogger(__name__)

FORMATS = ("fastreid", "onnx", "torchscript", "safetensors")
GRAPHS = ("onnx", "torchscript")
SQUARE = (224, 224)  # pixels: what the square01 form is traced and compared with


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        files: their paths.
        max_difference: from torch, at most 1e-4; see :func:`fastreid_ice.export.comparison.max_difference`.
        images: what it was measured on, for people.
        notes: what was left out or is to be known.
        table_row: row for the zoo's table, of the fastreid format.
    """

    files: tuple[Path, ...]
    max_difference: float
    images: str
    notes: tuple[str, ...] = ()
    table_row: str | None = None


def export_model(
    run: str | Path,
    *,
    format: str = "fastreid",  # noqa: A002  (the option's name)
    output: str | Path,
    config_file: str | Path | None = None,
    input_form: str | None = None,
    raw_output: bool = False,
    images: str | Path | Sequence[str | Path] | None = None,
    opset: int | None = None,
    opts: Sequence[Any] = (),
) -> ExportResult:
    """Export the encoder of a run that evaluates (MODEL.ICE.EVAL_ENCODER).

    The files are compared with the model in torch first; on any error, and where they differ, nothing is left of them
    and older files stay.

    Args:
        run: folder of a run, finished or not, or a checkpoint.
        format: one of FORMATS.
        output: folder; made where it is missing.
        config_file: the run's config; default ``config.yaml`` beside the checkpoint.
        input_form: one of :data:`fastreid_ice.export.encoder.INPUT_FORMS`; for onnx and torchscript, there by default
            "normalized".
        raw_output: embeddings as the neck gives them, not L2-normalised; for onnx and torchscript.
        images: folder or files for the comparison; default images of the run's datasets.
        opset: ONNX's; default 17.
        opts: KEY, VALUE, ... on top of the config.

    Raises:
        FileNotFoundError: a run, config or image that is not there.
        ValueError: an option, config or checkpoint that cannot be.
        RuntimeError: a package is missing, or the export differs from torch.
    """
    _check_options(format, input_form, raw_output, opset)
    trained = load_trained_model(run, config_file=config_file, opts=opts, device="cpu")
    as_trained = load_config(config_file or trained.checkpoint.parent / CONFIG_FILE, opts)
    shown = check_images(trained.cfg, images)
    with staged(output) as folder:
        if format == "fastreid":
            difference, notes, row = _fastreid(folder, trained, as_trained, shown)
        elif format == "safetensors":
            difference, notes, row = _safetensors(folder, trained, as_trained, shown)
        else:
            form, normalized = input_form or "normalized", not raw_output
            graph = _Graph(trained, as_trained, form, normalized, shown)
            difference, notes, row = graph.write(folder, format, opset or onnx_format.DEFAULT_OPSET)
        require_equal(difference, shown.source)
        names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    files = tuple(Path(output) / name for name in names)
    logger.info("Exported %s: largest difference from torch %.2g on %s", files[0], difference, shown.source)
    for note in notes:
        logger.warning("%s", note)
    return ExportResult(files, difference, shown.source, tuple(notes), row)


def _check_options(format: str, input_form: str | None, raw_output: bool, opset: int | None) -> None:  # noqa: A002
    if format not in FORMATS:
        raise ValueError(f"--format is {format!r}{closest(format, FORMATS)}; choose one of {', '.join(FORMATS)}")
    if input_form is not None:
        check_input_form(input_form)
    if format not in GRAPHS and (input_form is not None or raw_output):
        raise ValueError(
            f"--input and --raw-output are for --format {' and '.join(GRAPHS)}; {format} holds weights, whose reader "
            "prepares the images and normalises the embeddings"
        )
    if opset is not None:
        first, last = onnx_format.OPSETS
        if format != "onnx":
            raise ValueError(f"--opset is for --format onnx, not {format}")
        if not first <= opset <= last:
            raise ValueError(f"--opset is {opset}; it must be in {first}..{last}")
    packages = {"onnx": onnx_format.PACKAGES, "safetensors": safetensors_format.PACKAGES}
    need(format, packages.get(format, ()))


_Written = tuple[float, list[str], "str | None"]  # difference, notes, table row


def _fastreid(folder: Path, trained: TrainedModel, as_trained: CfgNode, shown: CheckImages) -> _Written:
    stock, notes, row = write_zoo(folder, trained, as_trained)
    expected = expected_embeddings(trained.model, shown.pixels, normalized=False)
    run = lambda pixels: expected_embeddings(stock, pixels, normalized=False)  # noqa: E731
    return max_difference(run, shown.pixels, expected), notes, row


def _safetensors(folder: Path, trained: TrainedModel, as_trained: CfgNode, shown: CheckImages) -> _Written:
    encoder = stock_encoder(trained.model)
    expected = expected_embeddings(trained.model, shown.pixels, normalized=False)
    description = describe(trained, as_trained, "normalized", False, expected.shape[1])
    target = folder / tracker_name(as_trained)
    safetensors_format.write_safetensors(target, encoder, as_trained.MODEL, description)
    read = safetensors_format.read_encoder(target / safetensors_format.WEIGHTS, encoder)
    cfg = as_trained
    model = Embedder(read, "raw255", cfg.INPUT.SIZE_TEST, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, False)
    run = lambda pixels: expected_embeddings(model, pixels, normalized=False)  # noqa: E731
    architecture = safetensors_format.reid_architecture(cfg.MODEL, description["architecture"])
    notes = []
    if architecture != safetensors_format.SBS_RESNEST50:
        notes.append(
            f"Roboflow's reid has no architecture that computes {description['architecture']} with this head, so it "
            "cannot load this folder; give it --format torchscript (see docs/export.md)"
        )
    return max_difference(run, shown.pixels, expected), notes, None


class _Graph:
    """A model to be exported as a graph, with the inputs and outputs that it is compared on."""

    def __init__(self, trained: TrainedModel, as_trained: CfgNode, form: str, normalized: bool, shown: CheckImages):
        cfg = as_trained
        self.form = form
        self.model = Embedder(
            stock_encoder(trained.model),
            form,
            cfg.INPUT.SIZE_TEST,
            cfg.MODEL.PIXEL_MEAN,
            cfg.MODEL.PIXEL_STD,
            normalized,
        ).eval()
        deploy = getattr(self.model.encoder.backbone, "deploy", None)
        if callable(deploy):  # RepVGG: the branches of a training block become one
            deploy(True)
        pixels = shown.pixels
        if form == "square01":
            pixels = F.interpolate(pixels, SQUARE, mode="bilinear", align_corners=False)
        self.inputs = to_input_form(pixels, form)
        if form == "square01":
            pixels = F.interpolate(pixels, tuple(cfg.INPUT.SIZE_TEST), mode="bilinear", align_corners=False)
        self.expected: Tensor = expected_embeddings(trained.model, pixels, normalized)
        self.description = describe(trained, cfg, form, normalized, self.expected.shape[1])
        self.name = tracker_name(cfg, form)

    def write(self, folder: Path, format: str, opset: int) -> _Written:  # noqa: A002
        path = folder / f"{self.name}.{format}"
        if format == "onnx":
            onnx_format.write_onnx(self.model, self.inputs[:2], path, opset, dynamic_size=self.form == "square01")
            onnx_format.add_properties(path, as_properties(self.description))
            run = onnx_format.runner(path)
        else:
            torchscript_format.write_torchscript(self.model, self.inputs[:2], path, self.description)
            run = torchscript_format.runner(path)
        beside = {**self.description, **for_boxmot(self.description)}
        path.with_name(f"{path.name}.metadata.json").write_text(json.dumps(beside, indent=1) + "\n")
        return max_difference(run, self.inputs, self.expected), [], None
