"""Acceptance: does the device compute what the CPU computes, and in the right order?"""

from __future__ import annotations

import contextlib
import importlib
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import numpy as np
import torch
import torch.nn.functional as F
from fastreid.modeling import build_model
from torch import Tensor

from benchmarks.acceptance_place import DATA, Findings, Place, load_numbers
from benchmarks.step import build, our_step, random_batch
from fastreid_ice.clustering import Clusterer, ClusteringConfig
from fastreid_ice.clustering.quality import agreement
from fastreid_ice.config_files import locate
from fastreid_ice.data.datasets import load_training_images
from fastreid_ice.data.inference_loaders import build_feature_loader
from fastreid_ice.engine import ICETrainer
from fastreid_ice.engine.amp import Precision
from fastreid_ice.engine.determinism import determinism
from fastreid_ice.engine.extraction import FeatureExtractor
from fastreid_ice.evaluation import FeatureRows, Identities, Similarities, rank_queries
from fastreid_ice.evaluation.rerank import RerankedSimilarities
from fastreid_ice.losses import agnostic_loss, cross_camera_loss, hard_instance_loss, soft_instance_loss
from fastreid_ice.modeling import ICE
from fastreid_ice.modeling.meta_arch import VIEWS
from tests import tiny  # noqa: F401  (registers a dataset and a backbone of test size)

TINY: dict[str, Any] = {
    "MODEL__BACKBONE__NAME": "build_two_convolutions",
    "MODEL__BACKBONE__FEAT_DIM": 32,
    "MODEL__ICE__CHANNELS_LAST": False,  # all chunks at once, as market.yml has it
    "DATASETS__NAMES": "('TinyReID',)",
    "DATASETS__TESTS": "()",
    "DATALOADER__NUM_WORKERS": 2,
    "SOLVER__IMS_PER_BATCH": 8,
    "SOLVER__ITERS_PER_EPOCH": 4,
    "CLUSTERING__K1": 6,
    "CLUSTERING__EPS": 0.4,
    "CLUSTERING__MIN_SAMPLES": 2,
    "REPORT__ENABLED": False,
}


def versions(place: Place, found: Findings) -> None:
    """What is here."""
    found.note("python", platform.python_version())
    for name in ("torch", "torchvision", "numpy", "numba", "faiss", "fastreid"):
        with contextlib.suppress(ImportError):
            found.note(name, getattr(importlib.import_module(name), "__version__", "no version"))
    found.note("device", torch.cuda.get_device_name(place.device) if place.on_gpu else "CPU")
    if place.on_gpu:
        found.note("CUDA", str(torch.version.cuda))
        found.note("capability", str(torch.cuda.get_device_capability(place.device)))
        found.note("memory GiB", torch.cuda.get_device_properties(place.device).total_memory / 2**30)


def losses(place: Place, found: Findings) -> None:
    """The reference code's losses and gradients, in full float32 and within autocast."""
    for name in ("losses_market_like", "losses_few_proxies", "losses_one_camera"):
        numbers = load_numbers(place.device, name)
        for mixed in (False, True):
            query = numbers["query"].clone().requires_grad_()
            with determinism(True):
                with Precision(place.device, torch.bfloat16 if mixed else None).autocast():
                    with torch.autocast(place.device.type, enabled=False):  # as the model computes them
                        values = _losses(numbers, query)
                (gradient,) = torch.autograd.grad(torch.stack(list(values.values())).sum(), query)
            case = f"{name}{' within autocast' if mixed else ''}"
            worst = max(abs(value.item() - numbers[key]) for key, value in values.items())
            found.at_most(f"{case}: losses", worst, 1e-5)
            found.at_most(f"{case}: gradient", (gradient - numbers["grad_query"]).abs().max().item(), 1e-6)


def _losses(numbers: dict[str, Any], query: Tensor) -> dict[str, Tensor]:
    labels, camids = (numbers[name][numbers["batch_rows"]] for name in ("pseudo_labels", "camids"))
    proxies = numbers["proxies"], numbers["proxy_labels"], numbers["proxy_camids"]
    weak = numbers["weak"]
    return {
        "loss_agnostic": agnostic_loss(query, labels, numbers["centroids"]),
        "loss_cross_camera": 0.5 * cross_camera_loss(query, labels, camids, *proxies),
        "loss_hard_instance": hard_instance_loss(query, numbers["key"], labels, labels),
        "loss_soft_instance": 10 * soft_instance_loss(query, numbers["key"], weak, weak),
    }


def trajectories(place: Place, found: Findings) -> None:
    """Twelve steps of the reference code; with TF32 and in bfloat16 the distance is only noted."""
    for chunks in (1, 4):
        numbers = load_numbers(place.device, *_files(chunks))
        exact = _trajectory(place, numbers, chunks, None, full=True)
        found.at_most(f"{chunks} chunks: losses", exact[0], 1e-4)
        found.at_most(f"{chunks} chunks: parameters", exact[1], 1e-4)
        found.note(f"{chunks} chunks: losses, torch's precision", _trajectory(place, numbers, chunks, None, False)[0])
        mixed = _trajectory(place, numbers, chunks, torch.bfloat16, False)[0]
        found.note(f"{chunks} chunks: losses, bfloat16", mixed)


def _files(chunks: int) -> list[str]:
    name = f"trajectory_{chunks}_chunk"
    return [name, *(f"{name}_{view}" for view in ("strong_1", "strong_2", "weak"))]


def _trajectory(
    place: Place, numbers: dict[str, Any], chunks: int, dtype: torch.dtype | None, full: bool
) -> tuple[float, float]:
    """Largest difference of a loss, and of a parameter at the end."""
    plain = {"MODEL__PIXEL_MEAN": [0.0] * 3, "MODEL__PIXEL_STD": [1.0] * 3, "MODEL__ICE__MOMENTUM": 0.999}
    plain |= {"SOLVER__BASE_LR": 3.5e-4, "MODEL__ICE__BN_CHUNKS": chunks, "MODEL__ICE__UNUSED_PASSES": True}
    cfg = place.config("demo.yml", **{**TINY, **plain})
    model = build_model(cfg).train()
    model.load_state_dict(_state(numbers, "init"))
    model.memory.rebuild(numbers["features"], numbers["pseudo_labels"], numbers["camids"])
    if "shuffles" in numbers:
        orders = iter(numbers["shuffles"])
        model._permutation = lambda size: next(orders)
    optimizer = ICETrainer.build_optimizer(cfg, model)[0]
    worst = 0.0
    with determinism(full):
        for step in range(len(numbers["targets"])):
            batch = {ours: numbers[view][step].float() for ours, view in zip(VIEWS, ("strong_1", "strong_2", "weak"))}
            batch |= {"targets": numbers["targets"][step], "camids": numbers["batch_camids"][step]}
            with Precision(place.device, dtype).autocast():
                losses = model(batch)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            model.update_momentum_encoder()
            worst = max(worst, *(abs(loss.item() - numbers[name][step].item()) for name, loss in losses.items()))
    final = _state(numbers, "final")
    apart = [(value - final[name]).abs().max().item() for name, value in model.named_parameters()]
    return worst, max(apart)


def _state(numbers: dict[str, Any], moment: str) -> dict[str, Tensor]:
    """The reference's state at a moment under our names."""
    state = {}
    for encoder, prefix in (("online", ""), ("momentum", "momentum_encoder.")):
        start = f"{moment}_{encoder}/"
        for name, value in numbers.items():
            if name.startswith(start):
                own = name.removeprefix(start).replace("neck", "heads.bottleneck.0")
                state[prefix + own] = torch.as_tensor(value)
    return state


def labels(place: Place, found: Findings) -> None:
    """The reference's pseudo labels: by the device's own path, twice, and by the compiled kernels."""
    small = np.load(DATA / "clustering_small.npz")
    cases = [("1,500 images", torch.from_numpy(small["features"]), 0.55, small["labels"])]
    if place.on_gpu:
        cases += _market_labels()
    for name, features, eps, expected in cases:
        for backend in ("torch", "torch", "numba"):
            clusterer = Clusterer(ClusteringConfig(eps=eps, backend=backend))
            same = np.array_equal(clusterer(features.to(place.device)).labels.cpu().numpy(), expected)
            found.holds(f"{name}, eps {eps}: {backend}", same)
    features = cases[0][1]
    again = Clusterer(ClusteringConfig(wccn_rounds=1))
    on_device, on_cpu = (again(features.to(device)).labels.numpy() for device in (place.device, "cpu"))
    found.at_most(
        "clustered again after whitening: 1 - ARI with the CPU's labels", 1 - agreement(on_device, on_cpu), 0.01
    )


def approximate(place: Place, found: Findings) -> None:
    """Clusterings whose neighbours are an index's, of features on the device: faiss's indexes are the CPU's."""
    features = torch.from_numpy(np.load(DATA / "clustering_small.npz")["features"])
    for kind in ("hnsw", "ivf"):
        clusterer = Clusterer(ClusteringConfig(knn=kind))
        on_device, on_cpu = (clusterer(features.to(device)).labels.cpu().numpy() for device in (place.device, "cpu"))
        found.at_most(f"{kind}: 1 - ARI with the CPU's labels", 1 - agreement(on_device, on_cpu), 0.01)


def _market_labels() -> list[tuple[str, Tensor, float, np.ndarray]]:
    files = [np.load(DATA / f"clustering_market1501_features_{part}.npz") for part in range(4)]
    features = np.concatenate([file["features_float16"] for file in files]).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    golden = np.load(DATA / "clustering_market1501_labels.npz")
    names = [name for name in golden.files if name.startswith("labels")]
    return [("Market-1501", torch.from_numpy(features), float(name.rpartition("_")[2]), golden[name]) for name in names]


def degenerate_features(place: Place, found: Findings) -> None:
    """Many equal rows and rows of zeros among others; both paths, and TF32 for the candidates."""
    generator = torch.Generator().manual_seed(0)
    equal = place.pick(3000, 200)
    rows = F.normalize(torch.randn(2 * equal, 64, generator=generator), dim=1)
    rows[:equal] = rows[0]
    rows[equal : equal + 20] = 0
    expected = Clusterer(ClusteringConfig(backend="numba"))(rows).labels
    for tf32 in (False, True):
        config = ClusteringConfig(backend="torch", allow_tf32=tf32)
        same = torch.equal(Clusterer(config)(rows.to(place.device)).labels.cpu(), expected)
        if tf32:
            found.note("equal labels, TF32 (not promised)", same)
        else:
            found.holds("equal labels", same)


def reranking(place: Place, found: Findings) -> None:
    """Scores and re-ranked scores of features on the device."""
    generator, people = torch.Generator().manual_seed(0), torch.arange(400) % 40
    rows = torch.randn(40, 64, generator=generator)[people] + 1.5 * torch.randn(400, 64, generator=generator)
    cameras = (torch.arange(400) // 40 % 4).numpy()
    names = people.numpy()
    identities = Identities(names[:80], names[80:], cameras[:80], cameras[80:])
    scores: dict[str, list[float]] = {}
    for device in (torch.device("cpu"), place.device):
        features = F.normalize(rows, dim=1).to(device)
        plain = Similarities(FeatureRows.of(features), 80, "cosine")
        reranked = RerankedSimilarities(features, 80, plain)
        for name, similarities in (("plain", plain), ("re-ranked", reranked)):
            ranking = rank_queries(similarities, identities, 80)
            scores.setdefault(name, []).append(ranking.mean_average_precision)
    for name, (on_cpu, on_device) in scores.items():
        found.at_most(f"mAP, {name}", abs(on_cpu - on_device), 1e-6)


def configs(place: Place, found: Findings) -> None:
    """One step of every config; small: of every backbone, on small images."""
    seen = set()
    for path in sorted(locate("ICE/demo.yml").parent.glob("*.yml")):
        small = {} if place.on_gpu else {"INPUT__SIZE_TRAIN": [64, 32], "SOLVER__IMS_PER_BATCH": 8}
        cfg = place.config(path.name, **small)
        backbone = (cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.WITH_IBN)
        kind = (*backbone, bool(cfg.DATASETS.SOURCE))
        if place.on_gpu or kind not in seen:
            seen.add(kind)
            model, batch = model_and_batch(cfg, place)
            before = next(model.backbone.parameters()).detach().clone()
            total = our_step(cfg, model)(batch)
            moved = not torch.equal(next(model.backbone.parameters()), before)
            found.holds(path.name, np.isfinite(total) and moved)


def model_and_batch(cfg: Any, place: Place) -> tuple[ICE, dict[str, Tensor]]:
    """A model with clusters, and a batch on its device."""
    batch = {name: value.to(place.device) for name, value in random_batch(cfg).items()}
    return build(cfg), batch


def graphs(place: Place, found: Findings) -> None:
    """Ten steps with MODEL.ICE.CUDA_GRAPHS equal those without, bit for bit; elsewhere nothing is recorded."""
    for name, keys in _precisions(place).items():
        for chunks, last in ((1, False), (4, False), (1, True)):
            runs = []
            for graphed in (False, place.on_gpu):
                keys = {**place.pick({}, TINY), **keys}
                keys |= {"MODEL__ICE__BN_CHUNKS": chunks, "MODEL__ICE__CHANNELS_LAST": last}
                cfg = place.config("demo.yml", **keys, MODEL__ICE__CUDA_GRAPHS=graphed)
                with determinism(True):  # the memory too: its sums on a GPU are otherwise in no fixed order
                    model, batch = model_and_batch(cfg, place)
                    model.seed_shuffle(0)
                    step = our_step(cfg, model)
                    losses = torch.tensor([step(batch) for _ in range(place.pick(10, 1))])
                runs.append([losses, *(value.cpu() for value in model.state_dict().values())])
            found.holds(f"{name}, {chunks} chunks{', channels last' if last else ''}", all(map(torch.equal, *runs)))


def like_the_cpu(place: Place, found: Findings) -> None:
    """Twenty steps of OSNet on the CPU and on the device, in full float32: the sums of the losses."""
    sums = []
    for device in ("cpu", str(place.device)):
        cfg = place.config("demo.yml", MODEL__DEVICE=device, SOLVER__BASE_LR=1e-4, SOLVER__IMS_PER_BATCH=16)
        there = Place(torch.device(device), place.folder)
        model, batch = model_and_batch(cfg, there)
        step = our_step(cfg, model)
        with determinism(True):
            sums.append([step(batch) for _ in range(place.pick(20, 3))])
    apart = [abs(first - second) / abs(first) for first, second in zip(*sums)]
    found.at_most("first step, relative", apart[0], 1e-5)
    found.at_most("last step, relative", apart[-1], 1e-2)


def order_of_extraction(place: Place, found: Findings) -> None:
    """The device is slower than the loader: no batch may be overwritten before it was read."""
    cfg = place.config("demo.yml", **TINY, TEST__IMS_PER_BATCH=4)
    model, images = build_model(cfg).eval(), load_training_images(cfg)

    def extract(hook: Any) -> Tensor:
        handle = model.register_forward_pre_hook(lambda *args: hook())
        try:
            return FeatureExtractor(len(images))(model, build_feature_loader(cfg, images)).clone()
        finally:
            handle.remove()

    with determinism(True):
        expected = extract(place.wait)
        for attempt in range(3):
            hurried = extract(lambda: torch.cuda._sleep(20_000_000) if place.on_gpu else None)
            found.holds(f"equal features, attempt {attempt + 1}", torch.equal(hurried, expected))


def resume(place: Place, found: Findings) -> None:
    """Two epochs and two resumed ones equal four, bit for bit, with SOLVER.DETERMINISTIC; so do four with graphs."""
    epochs = place.pick(4, 2)
    for name, keys in _precisions(place).items():
        with tempfile.TemporaryDirectory() as folder:
            whole = _trained(place, f"{folder}/whole", keys, epochs)
            _trained(place, f"{folder}/resumed", keys, epochs // 2)
            resumed = _trained(place, f"{folder}/resumed", keys, epochs)
            found.holds(name, all(torch.equal(whole[key], resumed[key]) for key in whole))
            if place.on_gpu:
                graphed = _trained(place, f"{folder}/graphs", {**keys, "MODEL__ICE__CUDA_GRAPHS": True}, epochs)
                found.holds(f"{name}, graphs", all(torch.equal(whole[key], graphed[key]) for key in whole))


def _trained(place: Place, folder: str, keys: dict[str, Any], epochs: int) -> dict[str, Tensor]:
    """The weights after so many epochs of a run that is planned for four; it goes on where it was left."""
    output = {"OUTPUT_DIR": folder, "SOLVER__MAX_EPOCH": 4, "SOLVER__DETERMINISTIC": True}
    trainer = ICETrainer(place.config("demo.yml", **{**TINY, **keys, **output}))
    trainer.resume_or_load(resume=True)
    trainer.max_epoch = epochs
    trainer.train()
    return torch.load(Path(folder) / "model_final.pth", map_location="cpu", weights_only=True)["model"]


def _precisions(place: Place) -> dict[str, dict[str, Any]]:
    mixed = {"SOLVER__AMP__ENABLED": True}
    kinds = {"float32": {}, "bfloat16": mixed | {"SOLVER__AMP__DTYPE": "bfloat16"}}
    return kinds | ({"float16": mixed} if place.on_gpu else {})


@contextlib.contextmanager
def _process_group(place: Place) -> Iterator[None]:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group(place.pick("nccl", "gloo"), store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def one_process_group(place: Place, found: Findings) -> None:
    """A step within DistributedDataParallel, in a group of one: the collectives run, and change nothing."""
    cfg = place.config("demo.yml", **TINY)
    sums = []
    for parallel in (False, True):
        with determinism(True), _process_group(place) if parallel else contextlib.nullcontext():
            model, batch = model_and_batch(cfg, place)
            whole = torch.nn.parallel.DistributedDataParallel(model) if parallel else model
            losses = whole(batch)
            sum(losses.values()).backward()
            gradient = next(model.backbone.parameters()).grad
            assert gradient is not None
            sums.append((sum(loss.item() for loss in losses.values()), gradient.norm().item()))
            del whole
    found.at_most("losses", abs(sums[0][0] - sums[1][0]), 1e-6)
    found.at_most("gradient", abs(sums[0][1] - sums[1][1]), 1e-6)
