"""Write a trained model for others: fastreid's model zoo, ONNX, TorchScript, safetensors."""

from __future__ import annotations

import logging
import sys
from argparse import ArgumentParser
from collections.abc import Sequence

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from fastreid_ice.errors import told_in_one_line
from fastreid_ice.export import FORMATS, ExportResult, export_model
from fastreid_ice.export.card import TABLE_HEAD
from fastreid_ice.export.encoder import INPUT_FORMS


def parser() -> ArgumentParser:
    """The command line."""
    built = ArgumentParser(description=__doc__)
    built.add_argument("run", metavar="RUN", help="folder of a run, finished or not, or a checkpoint")
    built.add_argument("--format", default="fastreid", help=f"one of {', '.join(FORMATS)}; default %(default)s")
    built.add_argument("--output", required=True, metavar="DIR", help="folder to write into")
    built.add_argument("--config-file", metavar="FILE", help="the run's config; default config.yaml in its folder")
    built.add_argument(
        "--input",
        metavar="FORM",
        help=f"of onnx and torchscript: one of {', '.join(INPUT_FORMS)} (see docs/export.md); default normalized",
    )
    built.add_argument("--raw-output", action="store_true", help="embeddings that are not L2-normalised")
    built.add_argument(
        "--images", nargs="+", metavar="PATH", help="folder or files to compare on; default: of the run's datasets"
    )
    built.add_argument("--opset", type=int, help="of onnx; default 17")
    built.add_argument("--name", help="of the method, for the files and the table; default ice (see docs/export.md)")
    built.add_argument("--debug", action="store_true", help="show the traceback of an error")
    built.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to change")
    return built


def told(result: ExportResult) -> str:
    """What the screen shows of an export."""
    lines = [f"wrote {path}" for path in result.files]
    lines.append(f"largest difference from torch: {result.max_difference:.2g} on {result.images}")
    lines += [f"note: {note}" for note in result.notes]
    if result.table_row:
        lines += ["", TABLE_HEAD, result.table_row]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Parse a command line (default: the program's) and export."""
    args = parser().parse_intermixed_args(argv)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")  # the result says all that a warning does
    with told_in_one_line(args.debug):
        result = export_model(
            args.run,
            format=args.format,
            output=args.output,
            config_file=args.config_file,
            input_form=args.input,
            raw_output=args.raw_output,
            images=args.images,
            opset=args.opset,
            name=args.name,
            opts=args.opts,
        )
        sys.stdout.write(told(result))
