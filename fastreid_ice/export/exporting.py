"""``export_model``: from a run to files, compared with torch before they take their place."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, NamedTuple

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch.nn.functional as F
from fastreid.config import CfgNode
from torch import Tensor

from fastreid_ice.config_files import IMPORTS, load_config, read_overrides
from fastreid_ice.engine.checkpoints import TrainedModel, load_trained_model
from fastreid_ice.errors import closest
from fastreid_ice.export import onnx_format, safetensors_format, torchscript_format
from fastreid_ice.export.card import derived_name
from fastreid_ice.export.comparison import expected_embeddings, max_difference, require_equal
from fastreid_ice.export.description import as_properties, describe, for_boxmot
from fastreid_ice.export.encoder import Embedder, check_input_form, stock_encoder, to_input_form
from fastreid_ice.export.images import CheckImages, check_images
from fastreid_ice.export.naming import own_losses, tracker_name
from fastreid_ice.export.packages import need
from fastreid_ice.export.staging import staged
from fastreid_ice.export.zoo import write_zoo
from fastreid_ice.modeling import onnx_graph
from fastreid_ice.modeling.meta_arch import Encoder
from fastreid_ice.report.run_files import CONFIG_FILE

logger = logging.getLogger(__name__)

SQUARE = (224, 224)  # pixels: what the square01 form is traced and compared with


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        files: their paths.
        max_difference: from torch, at most 1e-4; see :func:`fastreid_ice.export.comparison.max_difference`.
        images: what it was measured on, for people.
        notes: what was left out or is to be known.
        table_row: row for the zoo's table, of the fastreid format; of several test sets a line each.
    """

    files: tuple[Path, ...]
    max_difference: float
    images: str
    notes: tuple[str, ...] = ()
    table_row: str | None = None


def export_model(
    run: str | Path,
    *,
    format: str = "fastreid",
    output: str | Path,
    config_file: str | Path | None = None,
    input_form: str | None = None,
    raw_output: bool = False,
    images: str | Path | Sequence[str | Path] | None = None,
    opset: int | None = None,
    name: str | None = None,
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
        name: of the method, for the files and the table; default "ice", or what
            :func:`fastreid_ice.export.naming.method_name` finds, and for weights that were derived from a run's what
            their manifest says, such as "ICE, whitened".
        opts: KEY, VALUE, ... on top of the config. Where they change what scores depend on, the files have none of
            what is exported.

    Raises:
        FileNotFoundError: a run, config or image that is not there.
        ValueError: an option, config or checkpoint that cannot be.
        RuntimeError: a package is missing, or the export differs from torch.
    """
    _check_options(format, input_form, raw_output, opset, name)
    trained = load_trained_model(run, config_file=config_file, opts=opts, device="cpu")
    vars(trained.model)["eval_dtype"] = None  # compared in float32, in which exports compute, whatever TEST.AMP says
    config = config_file or trained.checkpoint.parent / CONFIG_FILE
    shown = check_images(trained.cfg, images)
    form = input_form or "normalized"
    imports = [text for pair in read_overrides(opts) if pair[0] == IMPORTS for text in pair]
    evaluated = load_config(config, imports)
    named = name or derived_name(trained.checkpoint.parent)
    job = Job(trained, load_config(config, opts), evaluated, shown, form, not raw_output, opset, named)
    output = Path(output).expanduser()
    with staged(output) as folder:
        difference, notes, row = FORMATS[format].write(folder, job)
        require_equal(difference, shown.source)
        names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        other = _other_method(job.cfg) if name is None else []
        notes = [*notes, *other, *_replaced(output, folder, names)]
    files = tuple(output / name for name in names)
    logger.info("Exported %s: largest difference from torch %.2g on %s", files[0], difference, shown.source)
    for note in notes:
        logger.warning("%s", note)
    return ExportResult(files, difference, shown.source, tuple(notes), row)


def _other_method(cfg: CfgNode) -> list[str]:
    others = own_losses(cfg)
    if not others:
        return []
    return [f"MODEL.LOSSES.NAME has {', '.join(others)}, but the files are called ICE's: --name names the method"]


def _replaced(output: Path, folder: Path, names: Sequence[Path]) -> list[str]:
    """What is said of older files that were exported from another checkpoint: by the descriptions beside them."""
    said = []
    for name in names:
        if name.suffix == ".json" and (output / name).is_file():
            try:
                earlier = json.loads((output / name).read_text(encoding="utf-8"))["source_sha256"]
            except (ValueError, LookupError, TypeError):  # not a description of ours
                continue
            if earlier != json.loads((folder / name).read_text(encoding="utf-8")).get("source_sha256", earlier):
                said.append(f"{output / name} was of another checkpoint, whose files these have replaced (see --name)")
    return said


def _check_options(format: str, input_form: str | None, raw_output: bool, opset: int | None, name: str | None) -> None:
    if name is not None and not re.search("[A-Za-z0-9]", name):
        raise ValueError(f"--name is {name!r}; it must have a letter or digit")
    if format not in FORMATS:
        raise ValueError(f"--format is {format!r}{closest(format, FORMATS)}; choose one of {', '.join(FORMATS)}")
    if input_form is not None:
        check_input_form(input_form)
    if not FORMATS[format].is_graph and (input_form is not None or raw_output):
        graphs = " and ".join(name for name, known in FORMATS.items() if known.is_graph)
        raise ValueError(
            f"--input and --raw-output are for --format {graphs}; {format} holds weights, whose reader prepares the "
            "images and normalises the embeddings"
        )
    if opset is not None:
        first, last = onnx_graph.OPSETS
        if format != "onnx":
            raise ValueError(f"--opset is for --format onnx, not {format}")
        if not first <= opset <= last:
            raise ValueError(f"--opset is {opset}; it must be in {first}..{last}")
    need(format, FORMATS[format].packages)


class Job(NamedTuple):
    """What a format is given to write.

    Attributes:
        trained: the model.
        cfg: the run's config as it was trained with, start weights included, and changed by the options.
        evaluated: the run's config as it was evaluated with.
        shown: the images that it is compared on.
        form: of the input, for a graph.
        normalized: whether a graph's embeddings have length 1.
        opset: ONNX's, or None for the default.
        name: of the method, as it was given or as the weights were derived, or None for that of the config.
    """

    trained: TrainedModel
    cfg: CfgNode
    evaluated: CfgNode
    shown: CheckImages
    form: str
    normalized: bool
    opset: int | None
    name: str | None


class Written(NamedTuple):
    """What came of it: the largest difference from torch, what is to be known, the row of a table."""

    difference: float
    notes: Sequence[str] = ()
    table_row: str | None = None


def _write_fastreid(folder: Path, job: Job) -> Written:
    stock, notes, row = write_zoo(folder, job.trained, job.cfg, job.evaluated, job.name)
    expected = expected_embeddings(job.trained.model, job.shown.pixels, normalized=False)
    run = partial(expected_embeddings, stock, normalized=False)
    return Written(max_difference(run, job.shown.pixels, expected), notes, row)


def _write_safetensors(folder: Path, job: Job) -> Written:
    encoder = stock_encoder(job.trained.model)
    expected = expected_embeddings(job.trained.model, job.shown.pixels, normalized=False)
    description = describe(job.trained, job.cfg, "normalized", False, expected.shape[1], job.name)
    # The file holds weights alone: whoever loads it normalises the pixels, and must do it as the model does.
    model = job.cfg.MODEL
    description |= {
        name: [round(value / 255, 9) for value in values]
        for name, values in (("mean", model.PIXEL_MEAN), ("std", model.PIXEL_STD))
    }
    target = folder / tracker_name(job.cfg, name=job.name)
    architecture = safetensors_format.write_safetensors(target, encoder, model, description)
    notes = []
    if architecture != safetensors_format.SBS_RESNEST50:
        notes.append(
            f"Roboflow's reid has no architecture that computes {description['architecture']} with this head, so it "
            "cannot load this folder; give it --format torchscript (see docs/export.md)"
        )
    read = safetensors_format.read_encoder(target / safetensors_format.WEIGHTS, encoder)
    run = partial(expected_embeddings, _embedder(read, job.cfg, "raw255", False), normalized=False)
    return Written(max_difference(run, job.shown.pixels, expected), notes)


def _write_onnx(folder: Path, job: Job) -> Written:
    graph = _graph(job)
    path = folder / f"{graph.name}.onnx"
    opset = job.opset or onnx_graph.DEFAULT_OPSET
    onnx_graph.write_onnx(graph.model, graph.inputs[:2], path, opset, dynamic_size=job.form == "square01")
    onnx_format.add_properties(path, as_properties(graph.description))
    _describe_beside(path, graph.description)
    return Written(max_difference(onnx_format.runner(path), graph.inputs, graph.expected))


def _write_torchscript(folder: Path, job: Job) -> Written:
    graph = _graph(job)
    path = folder / f"{graph.name}.torchscript"
    torchscript_format.write_torchscript(graph.model, graph.inputs[:2], path, graph.description)
    _describe_beside(path, graph.description)
    return Written(max_difference(torchscript_format.runner(path), graph.inputs, graph.expected))


class Format(NamedTuple):
    """How a format is written; the packages that it needs; whether it is a graph, with an input of some form."""

    write: Callable[[Path, Job], Written]
    packages: tuple[str, ...] = ()
    is_graph: bool = False


FORMATS = {
    "fastreid": Format(_write_fastreid),
    "onnx": Format(_write_onnx, onnx_format.PACKAGES, is_graph=True),
    "torchscript": Format(_write_torchscript, is_graph=True),
    "safetensors": Format(_write_safetensors, safetensors_format.PACKAGES),
}


class _Graph(NamedTuple):
    """A model to trace, the inputs and outputs that it is compared on, its description and its file's name."""

    model: Embedder
    inputs: Tensor
    expected: Tensor
    description: dict[str, Any]
    name: str


def _graph(job: Job) -> _Graph:
    model = _embedder(stock_encoder(job.trained.model), job.cfg, job.form, job.normalized)
    deploy = getattr(model.encoder.backbone, "deploy", None)
    if callable(deploy):  # RepVGG: the branches of a training block become one
        deploy(True)
    pixels = given = job.shown.pixels
    if job.form == "square01":
        given = F.interpolate(pixels, SQUARE, mode="bilinear", align_corners=False)
        pixels = F.interpolate(given, tuple(job.cfg.INPUT.SIZE_TEST), mode="bilinear", align_corners=False)
    expected = expected_embeddings(job.trained.model, pixels, job.normalized)
    description = describe(job.trained, job.cfg, job.form, job.normalized, expected.shape[1], job.name)
    name = tracker_name(job.cfg, job.form, raw_output=not job.normalized, name=job.name)
    return _Graph(model, to_input_form(given, job.form), expected, description, name)


def _embedder(encoder: Encoder, cfg: CfgNode, form: str, normalized: bool) -> Embedder:
    model = cfg.MODEL
    return Embedder(encoder, form, cfg.INPUT.SIZE_TEST, model.PIXEL_MEAN, model.PIXEL_STD, normalized).eval()


def _describe_beside(path: Path, description: dict[str, Any]) -> None:
    beside = {**description, **for_boxmot(description)}
    path.with_name(f"{path.name}.metadata.json").write_text(json.dumps(beside, indent=1) + "\n")
