"""From the command line to a frozen config."""

from __future__ import annotations

import logging

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
from fastreid.config import get_cfg
from fastreid.engine import default_setup
from fastreid.utils import comm
from fastreid.utils.logger import setup_logger

from fastreid_ice.config import add_ice_config
from fastreid_ice.data.samplers import check_batch
from fastreid_ice.modeling.bn_chunks import chunks_per_process

logger = logging.getLogger(__name__)

SAMPLER = "IdentityCameraSampler"


def setup(args):
    """Build the config from ``args.config_file`` and ``args.opts``, check it, and set logging up.

    Without CUDA, ``MODEL.DEVICE`` becomes "cpu" and mixed precision is switched off, each with a log line.

    Raises:
        ValueError: keys that contradict each other.
    """
    cfg = get_cfg()
    add_ice_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    notes = _adapt_to_device(cfg)
    if not args.eval_only:
        check_config(cfg)
    cfg.freeze()
    _forget_loggers()
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="fastreid_ice")
    for note in notes:
        logger.info(note)
    return cfg


def _forget_loggers() -> None:
    """Let a second run in this process log into its own folder only; fastreid would go on adding handlers."""
    setup_logger.cache_clear()
    for name in ("fastreid", "fastreid_ice"):
        logging.getLogger(name).handlers.clear()


def _adapt_to_device(cfg) -> list[str]:
    """Move the config to the CPU where there is no CUDA; return what to log."""
    notes = []
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        notes.append(f"CUDA is not available: MODEL.DEVICE is cpu instead of {cfg.MODEL.DEVICE}")
        cfg.MODEL.DEVICE = "cpu"
    if cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cpu":
        notes.append("Mixed precision needs CUDA: SOLVER.AMP.ENABLED is False")
        cfg.SOLVER.AMP.ENABLED = False
    return notes


def check_config(cfg) -> None:
    """Raise ValueError for keys that contradict each other, before anything is loaded."""
    processes = comm.get_world_size()
    check_batch(cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_INSTANCE, processes)
    share = cfg.SOLVER.IMS_PER_BATCH // processes
    chunks = chunks_per_process(cfg.MODEL.ICE.BN_CHUNKS, processes)
    if share % chunks or share // chunks < 2:
        raise ValueError(
            f"MODEL.ICE.BN_CHUNKS ({chunks}) must divide the {share} images that a process has "
            "(SOLVER.IMS_PER_BATCH / processes) into parts of at least 2"
        )
    if cfg.SOLVER.WARMUP_EPOCHS > 0 and cfg.SOLVER.WARMUP_ITERS > 0:
        raise ValueError(
            f"SOLVER.WARMUP_EPOCHS ({cfg.SOLVER.WARMUP_EPOCHS}) and SOLVER.WARMUP_ITERS ({cfg.SOLVER.WARMUP_ITERS}) "
            "are both set; set one of them to 0"
        )
    if cfg.SOLVER.WARMUP_EPOCHS > 0 and cfg.SOLVER.DELAY_EPOCHS > 0:
        raise ValueError(
            f"SOLVER.DELAY_EPOCHS ({cfg.SOLVER.DELAY_EPOCHS}) would hold the warm-up over SOLVER.WARMUP_EPOCHS "
            f"({cfg.SOLVER.WARMUP_EPOCHS}) too; set one of them to 0"
        )
    if cfg.DATALOADER.SAMPLER_TRAIN != SAMPLER:
        raise ValueError(f"DATALOADER.SAMPLER_TRAIN is {cfg.DATALOADER.SAMPLER_TRAIN!r}; ICE has {SAMPLER!r} only")
    for key, value in (("ITERS_PER_EPOCH", cfg.SOLVER.ITERS_PER_EPOCH), ("MAX_EPOCH", cfg.SOLVER.MAX_EPOCH)):
        if value < 1:
            raise ValueError(f"SOLVER.{key} is {value}; it must be at least 1")
    if cfg.CLUSTERING.PERIOD < 1:
        raise ValueError(f"CLUSTERING.PERIOD is {cfg.CLUSTERING.PERIOD}; it must be at least 1")
