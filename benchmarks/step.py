"""Time of a training step: beside a plain one in the reference's order of work, beside its own bare passes, in chunks.

    python benchmarks/step.py                                  # all of it: about a quarter of an hour on one core
    python benchmarks/step.py --only passes --models osnet     # parts of it

Runs of the two things compared alternate; medians are printed, and the quartiles of the pairs' ratios, so that other
work on the machine meets both. "cpu" is the processor time of all threads: it hardly depends on other work. The
batch is Market-1501's: 8 clusters of 4 images, three views each. Each part runs in a process of its own, which keeps
the memory it has freed (with glibc), but for the part that compares just that.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Callable

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from fastreid.modeling import build_model
from fastreid.utils.events import EventStorage
from PIL import Image
from torch import Tensor

from benchmarks.operations import Operations
from benchmarks.plain_step import PlainStep, PlainViews
from benchmarks.timing import Seconds, alternate, ratios, run_parts, timed
from fastreid_ice.config import source_ims_per_batch
from fastreid_ice.config_files import load_config, locate
from fastreid_ice.data.datasets import TrainingImages
from fastreid_ice.data.loaders import Drawn, PseudoLabeledViews
from fastreid_ice.data.views import build_strong_view, build_weak_view
from fastreid_ice.engine.amp import Precision
from fastreid_ice.engine.loss_log import LossLog
from fastreid_ice.engine.optimizer import build_optimizer
from fastreid_ice.engine.process_memory import keep_freed_memory
from fastreid_ice.engine.step import TrainingStep
from fastreid_ice.modeling import ICE
from fastreid_ice.modeling.meta_arch import AMP_DTYPES, VIEWS

MODELS = {"osnet": "OSNet x0.25", "resnet": "ResNet-50", "mobilenet": "MobileNetV2"}
BACKBONES: dict[str, dict[str, Any]] = {
    "osnet": {"NAME": "build_osnet_backbone", "DEPTH": "x0_25", "FEAT_DIM": 128},
    "mobilenet": {"NAME": "build_mobilenetv2_backbone", "DEPTH": "1.0x", "FEAT_DIM": 1280},
}
CLUSTERS, CAMERAS = 700, 6
# glibc hands freed memory back or not by what else was allocated: page faults would blur what is compared.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_MMAP_THRESHOLD_": str(2**40)}


def config(model: str, chunks: int, args: argparse.Namespace, opts: Sequence[Any] = ()) -> CfgNode:
    own: list[Any] = ["MODEL.DEVICE", args.device, "MODEL.BACKBONE.PRETRAIN", False, "MODEL.ICE.BN_CHUNKS", chunks]
    own += ["INPUT.SIZE_TRAIN", args.size, "INPUT.SIZE_TEST", args.size]
    for key, value in BACKBONES.get(model, {}).items():
        own += [f"MODEL.BACKBONE.{key}", value]
    return load_config(locate("ICE/Base-ICE.yml"), [*own, *opts])


def place(batch: dict[str, Tensor], args: argparse.Namespace) -> dict[str, Tensor]:
    return {name: value.to(args.device) for name, value in batch.items()}


def build(cfg: CfgNode) -> ICE:
    """A model with random weights, whose memory holds an epoch's clusters; those behind a batch's are the source's."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    labels, cameras = torch.arange(CLUSTERS * CAMERAS) % CLUSTERS, torch.arange(CLUSTERS * CAMERAS) // CLUSTERS
    features = F.normalize(torch.randn(len(labels), model.heads.bottleneck[0].num_features), dim=1).to(model.device)
    if cfg.DATASETS.SOURCE:
        first_class = cfg.SOLVER.IMS_PER_BATCH // 4
        cameras[labels >= first_class] += CAMERAS
        model.memory.rebuild(features, labels, cameras)
        model.memory.mark_source(first_class)
    else:
        model.memory.rebuild(features, labels, cameras)
    return model


def random_batch(cfg: CfgNode) -> dict[str, Tensor]:
    size, source = cfg.SOLVER.IMS_PER_BATCH, source_ims_per_batch(cfg)
    shape, images = (size + source, 3, *cfg.INPUT.SIZE_TRAIN), torch.arange(size + source)
    generator = torch.Generator().manual_seed(0)
    batch = {view: 255 * torch.rand(shape, generator=generator) for view in VIEWS}
    return batch | {"targets": images // 4, "camids": images % CAMERAS + CAMERAS * (images >= size)}


def our_step(cfg: CfgNode, model: ICE, read_every: int = 1) -> Callable[[dict[str, Tensor]], float]:
    """What a run does in a step, from the batch to the momentum encoder.

    Returns:
        a function that trains on a batch and returns the sum of the losses; nan where they are not read in this step.
    """
    batches: list[dict[str, Tensor]] = []
    dtype = AMP_DTYPES[cfg.SOLVER.AMP.DTYPE] if cfg.SOLVER.AMP.ENABLED else None
    precision = Precision(torch.device(cfg.MODEL.DEVICE), dtype)
    optimizer, log = build_optimizer(cfg, model), LossLog(read_every, str)
    step = TrainingStep(model, iter(batches.pop, None), optimizer, precision, log)
    step.iter = 0

    def run(batch: dict[str, Tensor]) -> float:
        batches.append(batch)
        with EventStorage(step.iter) as storage:
            step.run_step()
        model.after_step()
        step.iter += 1
        return storage.latest()["total_loss"][0] if "total_loss" in storage.latest() else float("nan")

    return run


def our_views(cfg: CfgNode, paths: list[str]) -> Callable[[], dict[str, Tensor]]:
    labels = torch.zeros(len(paths), dtype=torch.int64)
    images = TrainingImages(tuple(paths), labels)
    views = PseudoLabeledViews(images, build_strong_view(cfg), build_weak_view(cfg))

    def make() -> dict[str, Tensor]:
        items = [views[Drawn(i, i, label=0, seed=0)] for i in range(len(paths))]
        return {view: torch.stack([item[view] for item in items]) for view in VIEWS}

    return make


def write_images(folder: str, count: int, size: tuple[int, int]) -> list[str]:
    """JPEG files of (width, height) with soft colours, of a photograph's size in bytes."""
    rng, paths = np.random.default_rng(0), []
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8))
        paths.append(f"{folder}/{i:04d}.jpg")
        coarse.resize(size, Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def head(*cells: str) -> None:
    row(*cells)
    row(*["---"] * len(cells))


def milliseconds(seconds: np.ndarray) -> list[str]:
    """The medians of both things, wall and cpu."""
    return [f"{wall:.0f}, {cpu:.0f}" for wall, cpu in np.median(seconds, axis=0) * 1e3]


def reference(args: argparse.Namespace) -> None:
    """A step on a batch in memory beside the plain one, which always has torch's default layout."""
    print("\nplain / ours, one step of a batch in memory")
    head("model", "chunks", "our layout", "ours: wall, cpu ms", "plain: wall, cpu ms", "ratio: wall", "cpu")
    for name in args.models:
        for chunks, channels_last in ((1, False), (1, True), (4, False)):
            cfg = config(name, chunks, args, ["MODEL.ICE.CHANNELS_LAST", channels_last, *args.opts])
            ours, plain = build(cfg), PlainStep(cfg, build(config(name, 1, args)), chunks)
            run, batch = our_step(cfg, ours, args.read_every), place(random_batch(cfg), args)
            seconds = alternate(lambda: run(batch), lambda: plain(batch), args.pairs)  # noqa: B023
            layout = "channels last" if channels_last else "default"
            row(MODELS[name], chunks, layout, *milliseconds(seconds), ratios(seconds))


def views(args: argparse.Namespace) -> None:
    """A batch from JPEG files beside one whose views are each decoded and resized by themselves."""
    print("\nplain / ours, 32 images from JPEG files, three views each, one process")
    head("file", "training", "ours: wall, cpu ms", "plain: wall, cpu ms", "ratio: wall", "cpu")
    for size in ((64, 128), (128, 256)):
        with tempfile.TemporaryDirectory() as folder:
            cfg = config("osnet", 1, args)
            paths = write_images(folder, cfg.SOLVER.IMS_PER_BATCH, size)
            seconds = alternate(our_views(cfg, paths), PlainViews(cfg, paths), args.pairs)
            training = "{} x {}".format(*args.size)
            row(f"{size[1]} x {size[0]}", training, *milliseconds(seconds), ratios(seconds))


def passes(args: argparse.Namespace) -> None:
    """A step beside the passes in it: three forwards, one backward, nothing else."""
    print("\nstep / its bare passes, one chunk")
    head("model", "passes: wall, cpu ms", "step: wall, cpu ms", "ratio: wall", "cpu")
    for name in args.models:
        cfg = config(name, 1, args, args.opts)
        model, batch = build(cfg), place(random_batch(cfg), args)
        bare, run = build(cfg), our_step(cfg, model, args.read_every)
        strong, key, weak = (bare.preprocess_image(batch, view) for view in VIEWS)

        def pass_through() -> None:
            bare.zero_grad()  # noqa: B023
            features = bare.heads(bare.backbone(strong))  # noqa: B023
            with torch.no_grad():
                bare.momentum_encoder(key), bare.momentum_encoder(weak)  # noqa: B023
            features.sum().backward()

        seconds = alternate(pass_through, lambda: run(batch), args.pairs)  # noqa: B023
        row(MODELS[name], *milliseconds(seconds), ratios(seconds))


def chunks(args: argparse.Namespace) -> None:
    """Four chunks beside one, whole steps."""
    print("\nfour chunks / one, whole steps")
    head("model", "one: wall, cpu ms", "four: wall, cpu ms", "ratio: wall", "cpu")
    for name in args.models:
        runs = []
        for count in (1, 4):
            cfg = config(name, count, args, args.opts)
            runs.append((our_step(cfg, build(cfg), args.read_every), place(random_batch(cfg), args)))
        (first, batch), (second, _) = runs
        seconds = alternate(lambda: first(batch), lambda: second(batch), args.pairs)  # noqa: B023
        row(MODELS[name], *milliseconds(seconds), ratios(seconds))


def operations(args: argparse.Namespace) -> None:
    """Operations that a step dispatches, views left out."""
    print("\noperations of a step")
    head("model", "one chunk", "four chunks", "ratio")
    for name in args.models:
        counts = []
        for count in (1, 4):
            cfg = config(name, count, args, [*args.opts, "INPUT.SIZE_TRAIN", [64, 32]])
            run, batch = our_step(cfg, build(cfg)), place(random_batch(cfg), args)
            run(batch)  # makes what is made once
            with Operations() as counted:
                run(batch)
            counts.append(counted.total)
        row(MODELS[name], *counts, f"{counts[1] / counts[0]:.3f}")


def memory(args: argparse.Namespace) -> None:
    """A process that keeps the memory it frees, as tools/train_net.py does on a CPU, beside one that gives it back."""
    print("\nmemory given back / kept, one chunk, channels last")
    head("model", "kept: wall, cpu ms", "given back: wall, cpu ms", "ratio: wall", "cpu", "peak MiB: kept, given back")
    for variable in KEEP_MEMORY:  # read by glibc when the processes below begin
        os.environ.pop(variable, None)
    for name in args.models:
        with ExitStack() as stack:
            kept, given_back = (
                stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"), _prepare_step, (name, args, keeps)))
                for keeps in (True, False)
            )

            def step_in(pool: ProcessPoolExecutor) -> Seconds:
                return pool.submit(_timed_step).result()

            seconds = alternate(lambda: step_in(kept), lambda: step_in(given_back), args.pairs, lambda step: step())  # noqa: B023
            peaks = [f"{pool.submit(_peak).result():.0f}" for pool in (kept, given_back)]
            row(MODELS[name], *milliseconds(seconds), ratios(seconds), ", ".join(peaks))


_prepared: list[Callable[[], float]] = []


def _prepare_step(name: str, args: argparse.Namespace, keeps: bool) -> None:
    if keeps:
        keep_freed_memory()
    torch.set_num_threads(args.threads)
    cfg = config(name, 1, args, ["MODEL.ICE.CHANNELS_LAST", True, *args.opts])
    run, batch = our_step(cfg, build(cfg), args.read_every), place(random_batch(cfg), args)
    _prepared.append(lambda: run(batch))


def _timed_step() -> Seconds:
    return timed(_prepared[0])


def _peak() -> float:
    """Of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


PARTS = {part.__name__: part for part in (reference, views, passes, chunks, operations, memory)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=["osnet", "resnet"])
    parser.add_argument("--size", type=int, nargs=2, default=[128, 64], help="height and width of the images")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("opts", nargs="*", help="KEY VALUE ... for our step; behind --")
    args = parser.parse_args()
    args.read_every = 1 if args.device == "cpu" else 10**9  # as a run reads its losses, but for the last of an epoch
    os.environ.update(KEEP_MEMORY)
    print(f"torch {torch.__version__}, {args.device}, threads {args.threads}", end=", ")
    print(f"load {os.getloadavg()[0]:.1f}, {args.pairs} pairs")
    run_parts([PARTS[name] for name in args.only], args)


if __name__ == "__main__":
    main()
