"""From the command line to a checked and frozen config, and where the run logs to."""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from pathlib import Path

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
from fastreid.config import CfgNode
from fastreid.utils import comm
from fastreid.utils.collect_env import collect_env_info
from fastreid.utils.logger import setup_logger

from fastreid_ice.config_files import load_config, locate
from fastreid_ice.engine.checks import check_config, check_evaluation, check_model
from fastreid_ice.files import write_text
from fastreid_ice.report.run_files import CONFIG_FILE

logger = logging.getLogger(__name__)


def setup(args: Namespace) -> CfgNode:
    """Build the config from ``args.config_file`` and ``args.opts``, check it, and set logging up.

    Nothing is written before all keys are checked. Without CUDA, ``MODEL.DEVICE`` becomes "cpu", and float16 and
    CUDA graphs are switched off, each with a log line.

    Args:
        args: ``config_file``, ``opts`` and ``eval_only``; ``debug`` may say that the screen shows tracebacks too.

    Raises:
        ValueError: a key or value that cannot be, or keys that contradict each other.
        FileNotFoundError: a file that the config names is not there.
        NotADirectoryError: OUTPUT_DIR cannot be a folder.
    """
    args = Namespace(**{**vars(args), "config_file": str(locate(args.config_file))})
    cfg = load_config(args.config_file, args.opts)
    notes = adapt_to_device(cfg)
    if args.eval_only:
        _check_evaluation_only(cfg)
    else:
        check_config(cfg)
    _check_output(cfg.OUTPUT_DIR)
    cfg.freeze()
    _forget_loggers()
    _log_setup(cfg, args)
    if comm.is_main_process() and not (Path(cfg.OUTPUT_DIR) / CONFIG_FILE).exists():
        write_config(cfg)
    if not args.eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if not getattr(args, "debug", False):
        _keep_tracebacks_off_the_screen()
    for note in notes:
        logger.info(note)
    return cfg


def write_config(cfg: CfgNode) -> None:
    """Write ``<OUTPUT_DIR>/config.yaml``, by which the run's checkpoints are loaded.

    Not where one is that may be of another run: an evaluation leaves it, and a training writes its own when the files
    of the run before are out of the way (:meth:`fastreid_ice.engine.trainer.ICETrainer.resume_or_load`).
    """
    write_text(Path(cfg.OUTPUT_DIR) / CONFIG_FILE, cfg.dump())


def adapt_to_device(cfg: CfgNode) -> list[str]:
    """Move the config to the CPU where there is no CUDA, and what needs CUDA off; return what to log."""
    notes = []
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        notes.append(f"CUDA is not available: MODEL.DEVICE is cpu instead of {cfg.MODEL.DEVICE}")
        cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.DEVICE == "cpu" and cfg.SOLVER.AMP.DTYPE == "float16":
        for name, node, key in (("SOLVER.AMP.ENABLED", cfg.SOLVER.AMP, "ENABLED"), ("TEST.AMP", cfg.TEST, "AMP")):
            if node[key]:
                notes.append(f"float16 needs CUDA: {name} is False. SOLVER.AMP.DTYPE bfloat16 works on the CPU")
                node[key] = False
    if cfg.MODEL.DEVICE == "cpu" and cfg.MODEL.ICE.CUDA_GRAPHS:
        notes.append("MODEL.ICE.CUDA_GRAPHS is False: it needs CUDA")
        cfg.MODEL.ICE.CUDA_GRAPHS = False
    return notes


def _check_evaluation_only(cfg: CfgNode) -> None:
    cfg.MODEL.BACKBONE.PRETRAIN = False
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("--eval-only needs MODEL.WEIGHTS, the checkpoint to evaluate")
    if not cfg.DATASETS.TESTS:
        raise ValueError("--eval-only needs DATASETS.TESTS, the datasets to evaluate on")
    check_model(cfg)
    check_evaluation(cfg)


def _check_output(folder: str) -> None:
    """Raise where the output folder cannot be one, before anything is done for it."""
    if not folder:
        raise ValueError("OUTPUT_DIR is empty; it names the folder for checkpoints and logs")
    for path in (Path(folder), *Path(folder).parents):
        if path.exists():
            if not path.is_dir():
                raise NotADirectoryError(f"OUTPUT_DIR is {folder}, but {path} is a file")
            return


def _log_setup(cfg: CfgNode, args: Namespace) -> None:
    """Set logging up, and log what fastreid's ``default_setup`` logs.

    That one writes ``config.yaml`` in place (engine/defaults.py:111): half of it stays where a run is killed.
    """
    log, _ = (
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=name)
        for name in ("fastreid", "fastreid_ice")
    )
    log.info("Rank of current process: %d. World size: %d", comm.get_rank(), comm.get_world_size())
    log.info("Environment info:\n%s", collect_env_info())
    log.info("Command line arguments: %s", args)
    log.info("Contents of %s:\n%s", args.config_file, Path(args.config_file).read_text(encoding="utf-8"))
    log.info("Running with full config:\n%s", cfg)


def _forget_loggers() -> None:
    """Let a second run in this process log into its own folder only; fastreid would go on adding handlers."""
    setup_logger.cache_clear()
    for name in ("fastreid", "fastreid_ice"):
        logging.getLogger(name).handlers.clear()


def _keep_tracebacks_off_the_screen() -> None:
    """The screen gets the last line of an error from the command line; ``log.txt`` keeps the traceback."""
    for name in ("fastreid", "fastreid_ice"):
        for handler in logging.getLogger(name).handlers:
            if getattr(handler, "stream", None) is sys.stdout:
                handler.addFilter(lambda record: record.exc_info is None)
