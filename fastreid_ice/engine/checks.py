"""Every key of a config, before anything is built, downloaded or written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
from fastreid.config import CfgNode
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from fastreid.modeling.heads import REID_HEADS_REGISTRY
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from fastreid.utils import comm

from fastreid_ice.clustering import check_cameras
from fastreid_ice.config import source_ims_per_batch
from fastreid_ice.data.samplers import check_batch
from fastreid_ice.engine.amp import Precision
from fastreid_ice.engine.clustering_config import clustering_config
from fastreid_ice.engine.inference import check_engine
from fastreid_ice.engine.key_rules import MODEL_RULES, TEST_RULES, TRAINING_RULES, apply_rules, value_of
from fastreid_ice.engine.resuming import resumable_checkpoints
from fastreid_ice.errors import look_up, registered_names
from fastreid_ice.modeling.arithmetic import backbone_dimensions
from fastreid_ice.modeling.bn_chunks import chunks_per_process
from fastreid_ice.modeling.heads import MemoryBankHead
from fastreid_ice.modeling.losses import LOSS_REGISTRY, build_losses
from fastreid_ice.modeling.memory_bank import HardMeanMemory, build_memory
from fastreid_ice.modeling.meta_arch import AMP_DTYPES, ICE


def check_model(cfg: CfgNode) -> None:
    """The keys with which a model is built and run.

    Raises:
        ValueError: a value that cannot be, with the key and the choices.
        FileNotFoundError: a file of weights is not there.
    """
    apply_rules(cfg, MODEL_RULES)
    advice = "A backbone of your own is registered in a module that MODEL.ICE.IMPORTS names."
    look_up(BACKBONE_REGISTRY, cfg.MODEL.BACKBONE.NAME, "MODEL.BACKBONE.NAME", advice)
    _check_kind(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE, "MODEL.META_ARCHITECTURE", ICE)
    _check_kind(REID_HEADS_REGISTRY, cfg.MODEL.HEADS.NAME, "MODEL.HEADS.NAME", MemoryBankHead)
    build_memory(cfg)
    build_losses(cfg)
    found = backbone_dimensions(cfg)
    if found is not None and found != cfg.MODEL.BACKBONE.FEAT_DIM:
        raise ValueError(
            f"MODEL.BACKBONE.FEAT_DIM is {cfg.MODEL.BACKBONE.FEAT_DIM}, but {cfg.MODEL.BACKBONE.NAME} with "
            f"MODEL.BACKBONE.DEPTH {cfg.MODEL.BACKBONE.DEPTH} has {found} channels; set it to that"
        )
    _check_device(cfg.MODEL.DEVICE)
    if cfg.MODEL.BACKBONE.PRETRAIN:
        _check_file(cfg, "MODEL.BACKBONE.PRETRAIN_PATH")
    if not resumable_checkpoints(cfg.OUTPUT_DIR):
        check_start_weights(cfg)


def check_start_weights(cfg: CfgNode) -> None:
    """``MODEL.WEIGHTS``, which a run reads that goes on from no checkpoint. Raises FileNotFoundError."""
    _check_file(cfg, "MODEL.WEIGHTS")


def _check_file(cfg: CfgNode, key: str) -> None:
    path = value_of(cfg, key)
    if path and "://" not in path and not Path(path).expanduser().is_file():
        raise FileNotFoundError(f"{key}: there is no file {path}")


def check_evaluation(cfg: CfgNode) -> None:
    """The keys with which a model is evaluated. Raises ValueError."""
    apply_rules(cfg, TEST_RULES)
    check_engine(cfg)
    if cfg.TEST.IMS_PER_BATCH < comm.get_world_size():
        raise ValueError(
            f"TEST.IMS_PER_BATCH is {cfg.TEST.IMS_PER_BATCH}, less than the {comm.get_world_size()} processes"
        )
    _check_datasets(cfg.DATASETS.TESTS, "DATASETS.TESTS")


def check_config(cfg: CfgNode) -> None:
    """All keys of a training run, and what contradicts each other among them.

    Raises:
        ValueError: a value that cannot be, with the key and the choices.
        FileNotFoundError: a file of weights is not there.
    """
    check_model(cfg)
    check_evaluation(cfg)
    apply_rules(cfg, TRAINING_RULES)
    if not cfg.DATASETS.NAMES:
        raise ValueError("DATASETS.NAMES is empty; name at least one dataset to train on")
    _check_datasets(cfg.DATASETS.NAMES, "DATASETS.NAMES")
    _check_memory(cfg)
    _check_datasets(cfg.DATASETS.SOURCE, "DATASETS.SOURCE")
    if cfg.TEST.PRECISE_BN.ENABLED:
        _check_datasets((cfg.TEST.PRECISE_BN.DATASET,), "TEST.PRECISE_BN.DATASET")
    twice = [name for name in cfg.DATASETS.SOURCE if name in cfg.DATASETS.NAMES]
    if twice:
        raise ValueError(
            f"{twice[0]} is in DATASETS.SOURCE and in DATASETS.NAMES. The source is trained on with its labels, the "
            "target without: take it out of one of them."
        )
    needing = [name for name in cfg.MODEL.LOSSES.NAME if getattr(LOSS_REGISTRY.get(name), "needs_cameras", False)]
    if needing and not cfg.DATASETS.USE_CAMERAS:
        raise ValueError(
            f"MODEL.LOSSES.NAME has {needing[0]}, which needs camera ids, but DATASETS.USE_CAMERAS is False. "
            "Leave the loss out, as configs/ICE/market_agnostic.yml and own.yml do."
        )
    if cfg.CLUSTERING.CAMERA_NORMALIZATION and not cfg.DATASETS.USE_CAMERAS:
        raise ValueError(
            "CLUSTERING.CAMERA_NORMALIZATION needs camera ids, but DATASETS.USE_CAMERAS is False; set one of them "
            "otherwise."
        )
    config = clustering_config(cfg, seed=0)
    check_cameras(config.method, cfg.DATASETS.USE_CAMERAS)
    processes = comm.get_world_size()
    check_batch(cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_INSTANCE, processes)
    _check_chunks(cfg, cfg.SOLVER.IMS_PER_BATCH, processes, "SOLVER.IMS_PER_BATCH")
    if cfg.DATASETS.SOURCE:
        size, key = source_ims_per_batch(cfg), "DATASETS.SOURCE_IMS_PER_BATCH"
        check_batch(size, cfg.DATALOADER.NUM_INSTANCE, processes, key)
        _check_chunks(cfg, size, processes, key)
    _check_warmup(cfg)
    _check_solver(cfg)
    _check_graphs(cfg)
    _check_cache(cfg)


def _check_memory(cfg: CfgNode) -> None:
    if "HardMeanLoss" in cfg.MODEL.LOSSES.NAME and not isinstance(build_memory(cfg), HardMeanMemory):
        raise ValueError(
            "MODEL.LOSSES.NAME has HardMeanLoss, which needs MODEL.ICE.MEMORY HardMeanMemory, not "
            f"{cfg.MODEL.ICE.MEMORY}; set it, or leave the loss out."
        )


def _check_kind(registry: Any, name: str, key: str, kind: type) -> None:
    """Raise ValueError unless the registered class is ``kind`` or a subclass."""
    fitting = [known for known in registered_names(registry) if _is_subclass(registry.get(known), kind)]
    if name not in fitting:
        raise ValueError(f"{key} is {name!r}; ICE needs one of {', '.join(fitting)}")


def _is_subclass(value: Any, kind: type) -> bool:
    return isinstance(value, type) and issubclass(value, kind)


def _check_device(name: str) -> None:
    try:
        torch.device(name)
    except RuntimeError:
        raise ValueError(f"MODEL.DEVICE is {name!r}; it must be cpu, cuda or cuda:0, cuda:1 ...") from None


def _check_datasets(names: Sequence[str], key: str) -> None:
    for name in names:
        look_up(
            DATASET_REGISTRY, name, key, "A dataset of your own is registered in a module that MODEL.ICE.IMPORTS names."
        )


def _check_chunks(cfg: CfgNode, size: int, processes: int, key: str) -> None:
    share = size // processes
    synchronized = "syncBN" in (cfg.MODEL.BACKBONE.NORM, cfg.MODEL.HEADS.NORM)
    chunks = chunks_per_process(cfg.MODEL.ICE.BN_CHUNKS, processes, synchronized)
    if share % chunks or share // chunks < 2:
        raise ValueError(
            f"MODEL.ICE.BN_CHUNKS ({chunks}) must divide the {share} images that a process has "
            f"({key} / processes) into parts of at least 2"
        )


def _check_warmup(cfg: CfgNode) -> None:
    solver = cfg.SOLVER
    if solver.WARMUP_EPOCHS > 0 and solver.WARMUP_METHOD != "linear":
        raise ValueError(
            f"SOLVER.WARMUP_METHOD is {solver.WARMUP_METHOD!r}, but SOLVER.WARMUP_EPOCHS warms up linearly. Set it to "
            "linear, or SOLVER.WARMUP_EPOCHS to 0 and SOLVER.WARMUP_ITERS"
        )
    if solver.WARMUP_EPOCHS > 0 and not solver.WARMUP_FACTOR:
        raise ValueError(
            f"SOLVER.WARMUP_FACTOR is {solver.WARMUP_FACTOR}: the first of the {solver.WARMUP_EPOCHS} epochs of "
            "SOLVER.WARMUP_EPOCHS would learn nothing. It must be above 0 and at most 1"
        )
    if solver.WARMUP_EPOCHS > 0 and solver.WARMUP_ITERS > 0:
        raise ValueError(
            f"SOLVER.WARMUP_EPOCHS ({solver.WARMUP_EPOCHS}) and SOLVER.WARMUP_ITERS ({solver.WARMUP_ITERS}) "
            "are both set; set one of them to 0"
        )
    if solver.WARMUP_EPOCHS > 0 and solver.DELAY_EPOCHS > 0:
        raise ValueError(
            f"SOLVER.DELAY_EPOCHS ({solver.DELAY_EPOCHS}) would hold the warm-up over SOLVER.WARMUP_EPOCHS "
            f"({solver.WARMUP_EPOCHS}) too; set one of them to 0"
        )


def _check_solver(cfg: CfgNode) -> None:
    solver = cfg.SOLVER
    if solver.ITERS_PER_EPOCH % solver.ACCUMULATION:
        raise ValueError(
            f"SOLVER.ITERS_PER_EPOCH is {solver.ITERS_PER_EPOCH}; it must be a multiple of SOLVER.ACCUMULATION "
            f"({solver.ACCUMULATION}), so that an epoch ends with an update"
        )
    if solver.ACCUMULATION > 1 and solver.WARMUP_ITERS > 0:
        raise ValueError(
            f"SOLVER.WARMUP_ITERS ({solver.WARMUP_ITERS}) would change the learning rate between the batches of one "
            f"update (SOLVER.ACCUMULATION {solver.ACCUMULATION}); set it to 0 and warm up over SOLVER.WARMUP_EPOCHS"
        )
    if solver.DETERMINISTIC and cfg.CUDNN_BENCHMARK:
        raise ValueError(
            "SOLVER.DETERMINISTIC and CUDNN_BENCHMARK are both True, but the fastest algorithm is not the same one in "
            "each run; set one of them to False"
        )
    if solver.AMP.ENABLED:
        Precision(torch.device(cfg.MODEL.DEVICE), AMP_DTYPES[solver.AMP.DTYPE])


def _check_graphs(cfg: CfgNode) -> None:
    """What a recorded pass cannot follow, or what was never seen to work with it."""
    if not cfg.MODEL.ICE.CUDA_GRAPHS:
        return
    processes, solver = comm.get_world_size(), cfg.SOLVER
    norms = {cfg.MODEL.BACKBONE.NORM, cfg.MODEL.HEADS.NORM} & {"syncBN", "GhostBN"}
    against = {
        f"MODEL.DEVICE {cfg.MODEL.DEVICE}: it needs CUDA": torch.device(cfg.MODEL.DEVICE).type != "cuda",
        f"{processes} processes: DistributedDataParallel cannot be recorded": processes > 1,
        f"SOLVER.ACCUMULATION {solver.ACCUMULATION}: a replay writes over the last gradients": solver.ACCUMULATION > 1,
        "MODEL.FREEZE_LAYERS: the layers of a recorded pass cannot thaw": cfg.MODEL.FREEZE_LAYERS
        and solver.FREEZE_ITERS > 0,
        "DATASETS.SOURCE: the second domain cannot be recorded": cfg.DATASETS.SOURCE,
        f"the norm {', '.join(norms)}, whose statistics a recorded pass would not move": norms,
    }
    for problem, holds in against.items():
        if holds:
            raise ValueError(f"MODEL.ICE.CUDA_GRAPHS is True, which does not go with {problem}. Set it to False")


def _check_cache(cfg: CfgNode) -> None:
    loader = cfg.DATALOADER
    if loader.CACHE != "none" and cfg.INPUT.AUTOAUG.ENABLED:
        raise ValueError(
            f"DATALOADER.CACHE is {loader.CACHE!r}, which keeps resized images, but INPUT.AUTOAUG works on them before "
            "they are resized. Set DATALOADER.CACHE none or INPUT.AUTOAUG.ENABLED False."
        )
    folder = Path(loader.CACHE_DIR).expanduser()
    if loader.CACHE == "disk" and any(path.exists() and not path.is_dir() for path in (folder, *folder.parents)):
        raise NotADirectoryError(f"DATALOADER.CACHE_DIR is {loader.CACHE_DIR}, but a file is in its place")
