"""Acceptance: time and memory on the device, with limits for a data centre's GPU; a CPU is held to none."""

from __future__ import annotations

import contextlib
import math
import tempfile
from typing import Any

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
import torch.nn.functional as F
from fastreid.modeling import build_model
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.acceptance_numbers import model_and_batch
from benchmarks.acceptance_place import Findings, Place
from benchmarks.evaluate import Size, problem
from benchmarks.step import our_step, write_images
from fastreid_ice.clustering import Clusterer, ClusteringConfig, nearest_neighbors
from fastreid_ice.data.datasets import TrainingImages
from fastreid_ice.data.inference_loaders import build_feature_loader
from fastreid_ice.engine.extraction import FeatureExtractor
from fastreid_ice.engine.inference import FOLDED, TORCH
from fastreid_ice.evaluation import Identities, Similarities, rank_queries
from fastreid_ice.precision import without_tf32

TF32 = "torch's default, convolutions in TF32"


def _limit(place: Place, limit: float) -> float:
    return place.pick(limit, math.inf)


def _features(place: Place, images: int, dimensions: int) -> Tensor:
    """Identities of about 25 images, on the device."""
    generator = torch.Generator(place.device).manual_seed(0)
    made: dict[str, Any] = {"generator": generator, "device": place.device}
    centers = torch.randn(images // 25 + 1, dimensions, **made)
    rows = centers[torch.randint(len(centers), (images,), **made)]
    return F.normalize(rows.add_(torch.randn(images, dimensions, **made), alpha=0.8), dim=1)


def clustering(place: Place, found: Findings) -> None:
    """MSMT17's size: the device's labels are those of the compiled kernels; seconds and memory of all stages."""
    features = _features(place, place.pick(32_621, 1_000), place.pick(2_048, 64))
    clusterer = Clusterer(ClusteringConfig(backend="torch"))
    clusterer(features[:500])  # libraries, kernels
    results: list[Any] = []
    peak = place.peak_mb(lambda: results.append(clusterer(features)))
    seconds = place.seconds(lambda: clusterer(features))
    found.at_most("all stages, s", seconds, _limit(place, 5))
    if place.on_gpu:
        found.at_most("peak over the features, MiB", peak, 3 * 1024)
    expected = Clusterer(ClusteringConfig(backend="numba"))(features)
    found.holds("labels of the compiled kernels", torch.equal(results[0].labels.cpu(), expected.labels.cpu()))
    found.note("clusters", expected.num_clusters)


def million(place: Place, found: Findings) -> None:
    """Exact neighbours of a million images, from the time for some of the rows."""
    images, some = place.pick(1_000_000, 3_000), place.pick(8_192, 500)
    features = _features(place, images, place.pick(2_048, 32))
    nearest_neighbors(features, 30, rows=(0, some), backend="torch")
    peak = place.peak_mb(lambda: nearest_neighbors(features, 30, rows=(some, 2 * some), backend="torch"))
    seconds = place.seconds(lambda: nearest_neighbors(features, 30, rows=(some, 2 * some), backend="torch"))
    found.at_most("search, projected s", seconds * images / some, _limit(place, 300))
    if place.on_gpu:
        found.at_most("peak over the features, MiB", peak, 512)  # CLUSTERING.MEMORY_BUDGET_MB and libraries
    large = place.seconds(
        lambda: nearest_neighbors(features, 30, rows=(some, 2 * some), backend="torch", memory_budget_mb=2048)
    )
    found.note("with CLUSTERING.MEMORY_BUDGET_MB 2048, projected s", large * images / some)


def ranking(place: Place, found: Findings) -> None:
    """Every query of MSMT17 on the device."""
    size = place.pick(Size(11_659, 82_161, 3_060, 15), Size(50, 1_000, 50, 4))
    features, labels = problem(size, size.queries, place.pick(2_048, 32))
    there = type(features)()
    for part in features.parts():
        there.append(part.to(place.device))
    identities = Identities(*labels)
    there.normalize()
    similarities = Similarities(there, size.queries, "cosine")
    at_once = similarities.queries_at_once
    peak = place.peak_mb(lambda: rank_queries(similarities, identities, at_once))
    found.at_most("s", place.seconds(lambda: rank_queries(similarities, identities, at_once)), _limit(place, 15))
    if place.on_gpu:
        found.at_most("peak over the features, MiB", peak, 8 * 1024)


def steps(place: Place, found: Findings) -> None:
    """Steps a second of the default model, in every precision; kernels and waits of a step, memory."""
    mixed = {"SOLVER__AMP__ENABLED": True}
    kinds: dict[str, dict[str, Any]] = {"float32": {}, "bfloat16": mixed | {"SOLVER__AMP__DTYPE": "bfloat16"}}
    if place.on_gpu:
        kinds |= {TF32: {}, "float16": mixed, "float16, channels last": mixed | {"MODEL__ICE__CHANNELS_LAST": True}}
    for name, keys in kinds.items():
        for chunks in (4, 1):
            small = {} if place.on_gpu else {"INPUT__SIZE_TRAIN": [64, 32], "SOLVER__IMS_PER_BATCH": 8}
            cfg = place.config(place.pick("Base-ICE.yml", "demo.yml"), **keys, **small, MODEL__ICE__BN_CHUNKS=chunks)
            with contextlib.nullcontext() if name == TF32 else without_tf32():
                _measure_steps(place, found, f"{name}, {chunks} chunks", cfg)
                if place.on_gpu:
                    cfg.MODEL.ICE.CUDA_GRAPHS = True
                    _measure_steps(place, found, f"{name}, {chunks} chunks, graphs", cfg)


def _measure_steps(place: Place, found: Findings, name: str, cfg: Any) -> None:
    model, batch = model_and_batch(cfg, place)
    step = our_step(cfg, model, read_every=10**9)
    count = place.pick(40, 2)

    def run() -> None:
        for _ in range(count):
            step(batch)

    peak = place.peak_mb(lambda: [step(batch) for _ in range(place.pick(10, 1))])
    found.note(f"{name}: steps/s", count / place.seconds(run))
    if not place.on_gpu:
        return
    found.note(f"{name}: peak, MiB", peak)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step(batch)
        step(batch)
    events = profiler.key_averages()
    kernels = sum(event.count for event in events if "LaunchKernel" in event.key)
    waits = sum(event.count for event in events if event.key.startswith(("cudaStreamSync", "cudaMemcpy ")))
    found.note(f"{name}: kernels a step", kernels / 2)
    scaled = cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "float16"  # whether a gradient overflowed is asked
    found.at_most(f"{name}: waits a step", waits / 2, int(scaled))


def images(place: Place, found: Findings) -> None:
    """Features from JPEG files, decoding and all; the loader alone, and mixed precision with folded layers beside."""
    count, workers = place.pick(12_000, 32), place.pick(16, 2)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_images(folder, place.pick(1_000, 32), (64, 128)) * (count // place.pick(1_000, 32))
        keys = {"DATALOADER__NUM_WORKERS": workers}
        small = {} if place.on_gpu else {"INPUT__SIZE_TEST": [64, 32]}
        cfg = place.config(place.pick("Base-ICE.yml", "demo.yml"), **keys, **small)
        there = TrainingImages(tuple(paths), torch.zeros(count, dtype=torch.int64))
        model = build_model(cfg).eval()
        rates = {}
        for name, mixed, engine in (("images/s", False, TORCH), ("bfloat16, folded, images/s", True, FOLDED)):
            model.eval_dtype = torch.bfloat16 if mixed else None
            extract = FeatureExtractor(count, engine)
            rates[name] = count / place.seconds(lambda: extract(model, build_feature_loader(cfg, there)))  # noqa: B023
        rates["loader alone, images/s"] = count / place.seconds(
            lambda: sum(1 for _ in build_feature_loader(cfg, there))
        )
    for name, rate in rates.items():
        found.note(name, rate)
    if place.on_gpu and rates["images/s"] < 3_000:
        found.failures.append(f"{rates['images/s']:.0f} images/s, at least 3,000 are needed")
