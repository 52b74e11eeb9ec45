"""Images per second of the extraction that is clustered: decoding included and from the cache, with each engine.

    python benchmarks/extract.py                       # the embedded dataset, OSNet x0.25, 128 x 64
    python benchmarks/extract.py --threads 2 --pairs 9

Beside the plain order of work, which is fastreid's: its dataset, transform and loader, float32 images from the workers,
a forward pass without gradient, batch by batch. The two runs of a pair alternate; medians over the pairs are printed,
and the quartiles of the pairs' ratios, so that other work on the machine meets both. "cpu" is the processor time of the
process and its workers: it hardly depends on other work, and is the measure on a machine that has any.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import fastreid.data.build
import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from fastreid.data import build_reid_test_loader
from fastreid.data.common import CommDataset
from fastreid.data.transforms import build_transforms
from fastreid.modeling import build_model
from torch import Tensor

import fastreid_ice.modeling  # noqa: F401  (registers the ICE meta-architecture and its head)
from fastreid_ice.config_files import load_config
from fastreid_ice.data.datasets import TrainingImages, load_training_images
from fastreid_ice.data.image_cache import ImageCache
from fastreid_ice.data.inference_loaders import build_feature_loader
from fastreid_ice.engine.extraction import FeatureExtractor
from fastreid_ice.engine.inference import ENGINES, TORCH


def plain(cfg: CfgNode, model: torch.nn.Module, images: TrainingImages) -> Tensor:
    """fastreid's loader and the loop of its evaluation."""
    dataset = CommDataset([(path, 0, 0) for path in images.paths], build_transforms(cfg, is_train=False), relabel=False)
    loader, _ = build_reid_test_loader(
        dataset, test_batch_size=cfg.TEST.IMS_PER_BATCH, num_query=0, num_workers=cfg.DATALOADER.NUM_WORKERS
    )
    parts = []
    with torch.no_grad():
        for batch in loader:
            parts.append(F.normalize(model(batch).float(), dim=1))
    return torch.cat(parts)


def seconds(function: Callable[[], object]) -> tuple[float, float]:
    """Wall, and processor time of this process and the workers that have ended."""
    wall, before = time.perf_counter(), sum(os.times()[:4])
    function()
    return time.perf_counter() - wall, sum(os.times()[:4]) - before


def compare(first: Callable[[], object], second: Callable[[], object], pairs: int) -> np.ndarray:
    """(pairs, 2, 2): of each pair, wall and cpu seconds of both; the order changes from pair to pair."""
    rows = []
    for pair in range(pairs):
        both = (first, second) if pair % 2 == 0 else (second, first)
        rows.append([seconds(function) for function in both][:: 1 if pair % 2 == 0 else -1])
    return np.array(rows)


def show(name: str, measured: np.ndarray, images: int, difference: float) -> None:
    rates = images / np.median(measured, axis=0)  # (2, 2)
    low, middle, high = np.percentile(measured[:, 0] / measured[:, 1], [25, 50, 75], axis=0)
    ratios = " | ".join(f"{m:.2f} ({a:.2f} to {b:.2f})" for a, m, b in zip(low, middle, high))
    print(f"| {name} | {rates[0, 0]:.0f} | {rates[1, 0]:.0f} | {ratios} | {difference:.1e} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="ICE/demo.yml")
    parser.add_argument("--size", type=int, nargs=2, default=(128, 64), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("opts", nargs="*", help="KEY VALUE ...")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        fastreid.data.build._root = os.environ.get("FASTREID_DATASETS", folder)
        size = str(list(args.size))
        opts = ["MODEL.DEVICE", "cpu", "INPUT.SIZE_TRAIN", size, "INPUT.SIZE_TEST", size, "OUTPUT_DIR", folder]
        opts += ["TEST.IMS_PER_BATCH", args.batch, "DATALOADER.NUM_WORKERS", args.workers, *args.opts]
        measure(load_config(args.config_file, opts), args)


def measure(cfg: CfgNode, args: argparse.Namespace) -> None:
    images = load_training_images(cfg)
    model = build_model(cfg).eval()
    cached = load_config(args.config_file)
    cached.merge_from_other_cfg(cfg)
    cached.DATALOADER.CACHE = "ram"
    cache = ImageCache(cached, images.paths)
    expected = plain(cfg, model, images)
    print(f"{len(images)} images, {args.threads} threads, {args.workers} workers, load {os.getloadavg()[0]:.1f}")
    print("| ours | plain, images/s | ours, images/s | ratio, wall | ratio, cpu | largest difference of a feature |")
    print("| --- | --- | --- | --- | --- | --- |")
    for engine, kept in itertools.product(ENGINES, (None, cache)):
        name = ("decoded" if kept is None else "from the cache") + (f", {engine}" if engine != TORCH else "")
        extract = FeatureExtractor(len(images), engine)

        def ours(extract=extract, kept=kept) -> Tensor:
            return extract(model, build_feature_loader(cfg, images, kept))

        difference = float((ours() - expected).abs().max())  # the cache is filled here
        show(name, compare(lambda: plain(cfg, model, images), ours, args.pairs), len(images), difference)


if __name__ == "__main__":
    main()
