"""What an evaluation by itself has found, written down as a run that tables and model cards read."""

from __future__ import annotations

import json
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
from fastreid_ice.files import replacing
from fastreid_ice.report.derived import evaluated_manifest, is_of_a_training, scored_otherwise
from fastreid_ice.report.manifest import FILE_NAME, plain_config, read_manifest, write_manifest
from fastreid_ice.report.run_files import RECORDS_FILE

logger = logging.getLogger(__name__)


def record_evaluation(cfg: CfgNode, extras: Mapping[str, Any], scores: Mapping[str, Any]) -> bool:
    """Write ``results.json`` and ``run.json`` into ``OUTPUT_DIR``: the run that the weights are of, with these scores.

    Nothing is written, and the log says why, where that would say the same twice (the run was evaluated so itself),
    where the folder is that of a training or of weights that are evaluated otherwise, or where there is no ``run.json``
    beside the weights.

    Args:
        cfg: of the evaluation; its ``MODEL.WEIGHTS`` are those of the run.
        extras: what the checkpoint holds beside the weights: its ``epoch``, counted from 0.
        scores: in percent, as fastreid's ``test`` returns them.

    Returns:
        Whether they were written.
    """
    checkpoint = Path(PathManager.get_local_path(cfg.MODEL.WEIGHTS)).expanduser()
    folder = Path(cfg.OUTPUT_DIR)
    try:
        source = read_manifest(checkpoint.parent)
    except (OSError, ValueError) as error:
        logger.info("The scores are not written down as a run, for want of the run of the weights: %s", one_line(error))
        return False
    if reason := _why_not(source, checkpoint.parent, cfg, folder):
        logger.info("The scores are not written down as a run: %s", reason)
        return False
    epoch = int(extras["epoch"]) + 1 if "epoch" in extras else source["epochs_done"]
    records = [{"epoch": epoch, **flatten_results_dict(scores), "best": True}]
    with replacing(folder / RECORDS_FILE) as temporary:
        temporary.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    manifest = evaluated_manifest(
        source, cfg, load_config(BASE_CONFIG), checkpoint=checkpoint.name, epoch=epoch, records=records
    )
    write_manifest(folder / FILE_NAME, manifest)
    return True


def _why_not(source: Mapping[str, Any], home: Path, cfg: CfgNode, folder: Path) -> str:
    """Why a folder cannot have the scores of the weights of a run whose folder is ``home``; "" where it can."""
    same_tests = list(cfg.DATASETS.TESTS) == source["datasets"]["tests"]
    alike = same_tests and not scored_otherwise(source["config"], plain_config(cfg))
    in_place = folder.resolve() == home.resolve()
    if alike and not in_place and source["scores"]["last"] is not None:
        return f"{home} is evaluated in this way itself"
    if (in_place and not alike) or not _is_free(folder):
        return f"OUTPUT_DIR {folder} has a run of its own; name another to have them in tables"
    return ""


def _is_free(folder: Path) -> bool:
    """Whether an evaluation may write here: there is no run, or one that was not trained here."""
    if not (folder / FILE_NAME).exists():
        return not (folder / RECORDS_FILE).exists()
    try:
        return not is_of_a_training(read_manifest(folder))
    except (OSError, ValueError):
        return False
