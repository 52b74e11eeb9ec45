"""Which of fastreid's backbones export: each is built from random weights, exported, and compared with torch.

    python -m benchmarks.export_backbones [--only resnet osnet] [--smallest] [--size 128 64] > table.md

Prints a Markdown table: the largest difference from torch per format, or why there is none. Each backbone has a process
of its own, since fastreid's RegNet and EfficientNet keep state between models. The images are people of the embedded
dataset; the statistics of the batch normalisations are theirs too, as after a training.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
FORMATS = ("fastreid", "onnx", "torchscript")

DEPTHS: dict[str, tuple[str, ...]] = {
    "resnet": ("18x", "34x", "50x", "101x"),
    "resnext": ("50x", "101x", "152x"),
    "resnest": ("50x", "101x", "200x", "269x"),
    "osnet": ("x0_25", "x0_5", "x0_75", "x1_0"),
    "mobilenetv2": ("0.1x", "0.25x", "0.35x", "0.5x", "0.75x", "1.0x"),
    "mobilenetv3": ("Small", "Large"),
    "shufflenetv2": ("0.5x", "1.0x", "1.5x", "2.0x"),
    "repvgg": ("A0", "A1", "A2", "B0", "B1", "B1g2", "B1g4", "B2", "B2g2", "B2g4", "B3", "B3g2", "B3g4"),
    "effnet": ("b0", "b1", "b2", "b3", "b4", "b5"),
    "regnet": tuple(f"{size}{kind}" for size in (200, 400, 800, 1600, 3200, 4000, 6400) for kind in "xy"),
    "vit": ("small", "base"),
}
EXTRAS: dict[str, tuple[str, ...]] = {"resnet": ("IBN", "SE", "NL"), "resnext": ("IBN",), "osnet": ("IBN",)}
EXTRA_DEPTHS = ("18x", "50x", "x0_25")


class Case(NamedTuple):
    """One backbone to try."""

    family: str
    depth: str
    extra: str
    size: tuple[int, int]
    most_parameters: float

    @property
    def options(self) -> list[Any]:
        """Config keys and values."""
        options: list[Any] = [
            "MODEL.BACKBONE.NAME",
            f"build_{self.family}_backbone",
            "MODEL.BACKBONE.DEPTH",
            self.depth,
        ]
        options += ["MODEL.BACKBONE.PRETRAIN", False, "MODEL.DEVICE", "cpu", "MODEL.ICE.BN_CHUNKS", 1]
        options += ["INPUT.SIZE_TRAIN", list(self.size), "INPUT.SIZE_TEST", list(self.size)]
        options += ["DATASETS.NAMES", ("SyntheticReID",), "DATASETS.TESTS", ()]
        if self.extra:
            options += [f"MODEL.BACKBONE.WITH_{self.extra}", True]
        if self.family == "vit":
            options += ["MODEL.HEADS.POOL_LAYER", "Identity"]
        return options


def cases(only: list[str], size: tuple[int, int], most_parameters: float, smallest: bool = False) -> list[Case]:
    """All backbones of the tables above whose family is asked for, or the smallest of each family."""
    found = []
    for family, depths in DEPTHS.items():
        if only and family not in only:
            continue
        if smallest:
            found.append(Case(family, depths[0], "", size, most_parameters))
            continue
        found += [Case(family, depth, "", size, most_parameters) for depth in depths]
        chosen = [depth for depth in depths if depth in EXTRA_DEPTHS]
        found += [Case(family, d, extra, size, most_parameters) for extra in EXTRAS.get(family, ()) for d in chosen]
    return found


def untrained_run(folder: Path, options: list[Any], images: torch.Tensor) -> int:
    """Write a run's folder whose weights are random and whose statistics are those of the images.

    Returns:
        Number of the encoder's parameters.
    """
    from fastreid.modeling import build_model
    from fastreid.modeling.backbones import build_backbone

    import fastreid_ice.modeling  # noqa: F401
    from fastreid_ice.config_files import load_config

    torch.manual_seed(0)
    cfg = load_config(ROOT / "configs" / "ICE" / "Base-ICE.yml", options)
    with torch.no_grad():
        cfg.MODEL.BACKBONE.FEAT_DIM = build_backbone(cfg).eval()(images[:1] / 255).shape[1]
        model = build_model(cfg).train()
        for layer in model.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.momentum = None  # the mean over all batches
        for module in (model.backbone, model.momentum_encoder.backbone):
            for parameter in module.parameters():
                parameter.mul_(1 + 0.01 * torch.randn_like(parameter))  # so that the two encoders differ
        model({"images": images})  # in training mode without gradient: the statistics alone
    folder.mkdir(parents=True)
    torch.save({"model": model.state_dict(), "epoch": 0}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return sum(parameter.numel() for parameter in model.momentum_encoder.parameters())


def try_case(case: Case) -> dict[str, str]:
    """A row of the table."""
    import fastreid_ice.compat  # noqa: F401

    import fastreid

    os.chdir(Path(fastreid.__file__).parent.parent)  # its RegNet and EfficientNet look for files from here
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    name = " ".join(part for part in (case.family, case.depth, case.extra) if part)
    row = {"backbone": name, "parameters": "", **dict.fromkeys(FORMATS, "")}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        try:
            parameters = untrained_run(run, case.options, people(case.size))
        except Exception as error:
            return {**row, **dict.fromkeys(FORMATS, f"cannot be built: {said(error)}")}
        row["parameters"] = f"{parameters / 1e6:.1f} M"
        if parameters > case.most_parameters * 1e6:
            return {**row, **dict.fromkeys(FORMATS, "not tried: too large here")}
        for file_format in FORMATS:
            row[file_format] = exported(run, file_format, Path(folder) / "out")
    return row


def exported(run: Path, file_format: str, output: Path) -> str:
    """The difference of one export, or what went wrong."""
    from fastreid_ice.export import export_model

    try:
        return f"{export_model(run, format=file_format, output=output).max_difference:.1e}"
    except Exception as error:
        return f"no: {said(error)}"


def people(size: tuple[int, int]) -> torch.Tensor:
    """(64, 3, H, W) float RGB in 0..255 of the embedded dataset."""
    from fastreid.data.data_utils import read_image
    from fastreid.data.transforms.transforms import ToTensor

    from fastreid_ice.data.datasets import SyntheticReID

    dataset = SyntheticReID(root=os.environ.get("FASTREID_DATASETS", "datasets"))
    paths = [item[0] for item in dataset.train][::11][:64]
    return torch.stack([ToTensor()(read_image(path).resize(size[::-1])) for path in paths])


def said(error: Exception) -> str:
    """An error in a table's cell."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}".replace("|", "/")
    return text if len(text) < 160 else text[:157] + "..."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], choices=sorted(DEPTHS), help="families to try")
    parser.add_argument("--size", nargs=2, type=int, default=[128, 64], metavar=("H", "W"))
    parser.add_argument("--most-parameters", type=float, default=100, help="in millions; larger ones are not tried")
    parser.add_argument("--smallest", action="store_true", help="try only the smallest of each family")
    args = parser.parse_args()
    os.environ["FASTREID_DATASETS"] = os.path.abspath(os.environ.get("FASTREID_DATASETS", "datasets"))
    columns = ("backbone", "parameters", *FORMATS)
    sys.stdout.write(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}\n")
    chosen = cases(args.only, tuple(args.size), args.most_parameters, args.smallest)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for row in pool.imap(try_case, chosen, chunksize=1):
            sys.stdout.write("| " + " | ".join(row[column] for column in columns) + " |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
