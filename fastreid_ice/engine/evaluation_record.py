"""What an evaluation by itself has found, written down as a run that tables and model cards read."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from fastreid.config import CfgNode
from fastreid.evaluation.testing import flatten_results_dict
from fastreid.utils.file_io import PathManager

from fastreid_ice.config_files import BASE_CONFIG, load_config
from fastreid_ice.errors import one_line
from fastreid_ice.files import write_json
from fastreid_ice.report.derived import evaluated_manifest, is_of_a_training, scored_alike
from fastreid_ice.report.manifest import FILE_NAME, known_manifest, read_manifest, write_manifest
from fastreid_ice.report.run_files import RECORDS_FILE

logger = logging.getLogger(__name__)

_IDENTITY = ("name", "seed", "config", "digests", "evaluated")  # two evaluations with the same are one


def record_evaluation(cfg: CfgNode, extras: Mapping[str, Any], scores: Mapping[str, Any]) -> bool:
    """Write ``results.json`` and ``run.json`` into ``OUTPUT_DIR``: the run that the weights are of, with these scores.

    Nothing is written, and the log says why, where a table would count the same twice (the run was evaluated on one of
    these test sets in the same way itself), where the folder has another run, or where there is no ``run.json`` beside
    the weights. Weights that were not trained where they are (``tools/whiten.py``) have their scores beside them.

    Args:
        cfg: of the evaluation; its ``MODEL.WEIGHTS`` are those of the run.
        extras: what the checkpoint holds beside the weights: its ``epoch``, counted from 0.
        scores: in percent, as fastreid's ``test`` returns them.

    Returns:
        Whether they were written. It fails nothing: the scores are in the log.
    """
    try:
        reason = _record(cfg, extras, scores)
    except Exception as error:
        logger.warning("The scores could not be written down as a run: %s", one_line(error))
        logger.debug("Why they could not be", exc_info=True)
        return False
    if reason:
        logger.info("The scores are not written down as a run: %s", reason)
    return not reason


def _record(cfg: CfgNode, extras: Mapping[str, Any], scores: Mapping[str, Any]) -> str:
    """Why nothing was written; "" where it was."""
    checkpoint = Path(PathManager.get_local_path(cfg.MODEL.WEIGHTS)).expanduser()
    home, folder = checkpoint.parent, Path(cfg.OUTPUT_DIR)
    if not (home / FILE_NAME).is_file():
        return f"there is no {FILE_NAME} beside {checkpoint}"
    source = read_manifest(home)
    epoch = source["epochs_done"] if extras.get("epoch") is None else int(extras["epoch"]) + 1
    records = [{"epoch": epoch, **flatten_results_dict(scores), "best": True}]
    manifest = evaluated_manifest(
        source, cfg, load_config(BASE_CONFIG), checkpoint=checkpoint.name, epoch=epoch, records=records
    )
    if reason := _why_not(source, home, manifest, folder):
        return reason
    write_json(folder / RECORDS_FILE, records)
    write_manifest(folder / FILE_NAME, manifest)
    return ""


def _why_not(source: Mapping[str, Any], home: Path, manifest: Mapping[str, Any], folder: Path) -> str:
    """Why a folder cannot have an evaluation of the weights in ``home``; "" where it can."""
    shared = [test for test in manifest["datasets"]["tests"] if test in source["datasets"]["tests"]]
    alike = scored_alike(source, manifest) and bool(shared)
    if folder.resolve() == home.resolve():
        if alike and not is_of_a_training(source):
            return ""
        return f"OUTPUT_DIR {folder} has a run of its own; name another to have them in tables"
    if alike:
        return f"{home} is evaluated on {', '.join(shared)} in this way itself, and tables would count it twice"
    if not _is_free(folder, manifest):
        return f"OUTPUT_DIR {folder} has another run; name another folder to have them in tables"
    return ""


def _is_free(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether a folder has no run, or this very evaluation."""
    if not (folder / FILE_NAME).exists():
        return not (folder / RECORDS_FILE).exists()
    there = known_manifest(folder)
    return there is not None and all(there.get(key) == manifest.get(key) for key in _IDENTITY)
