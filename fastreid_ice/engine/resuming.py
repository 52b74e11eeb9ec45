"""Where a run goes on that was ended, or killed, before its end."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from fastreid.config import CfgNode
from fastreid.utils import comm
from torch import Tensor, nn

from fastreid_ice.config_files import read_settings
from fastreid_ice.errors import UnreadableCheckpointError, one_line
from fastreid_ice.report.derived import is_of_a_training, scored_otherwise
from fastreid_ice.report.manifest import FILE_NAME, SET_ASIDE, flatten, known_manifest, plain_config
from fastreid_ice.report.run_files import CLUSTERS_FILE, CONFIG_FILE, PAGE_FILE, RECORDS_FILE

logger = logging.getLogger(__name__)

LAST_CHECKPOINT = "last_checkpoint"

# What says of a run's checkpoints what they are.
_DESCRIPTIONS = (CONFIG_FILE, FILE_NAME, RECORDS_FILE, CLUSTERS_FILE, PAGE_FILE, "metrics.json")

# What a run writes under a temporary name first.
RUN_FILES = ("model_*.pth", LAST_CHECKPOINT, *_DESCRIPTIONS)

# What a schedule keeps in its state, and the keys that it is made from.
_CONSTANTS = {
    "T_max": "SOLVER.MAX_EPOCH",
    "eta_min": "SOLVER.ETA_MIN_LR",
    "milestones": "SOLVER.STEPS",
    "gamma": "SOLVER.GAMMA",
    "total_iters": "SOLVER.WARMUP_EPOCHS",
    "start_factor": "SOLVER.WARMUP_FACTOR",
    "base_lrs": "SOLVER.BASE_LR",
}

# Keys whose change makes a checkpoint another model's or another optimizer's.
_FIXED = (
    "MODEL.BACKBONE.NAME",
    "MODEL.BACKBONE.DEPTH",
    "MODEL.BACKBONE.WITH_IBN",
    "MODEL.BACKBONE.WITH_SE",
    "MODEL.BACKBONE.WITH_NL",
    "MODEL.HEADS.EMBEDDING_DIM",
    "MODEL.HEADS.WITH_BNNECK",
    "MODEL.HEADS.POOL_LAYER",
    "SOLVER.OPT",
    "SOLVER.SCHED",
)
# What the optimizer's state holds, so that another value would have no effect, or make other groups of parameters.
_OPTIMIZER = (
    "SOLVER.WEIGHT_DECAY",
    "SOLVER.WEIGHT_DECAY_NORM",
    "SOLVER.WEIGHT_DECAY_BIAS",
    "SOLVER.HEADS_LR_FACTOR",
    "SOLVER.BIAS_LR_FACTOR",
)
_OF_SGD = ("SOLVER.MOMENTUM", "SOLVER.NESTEROV")
# To or from 0 they make another schedule; other lengths of the same have no effect (warn_of_other_schedule).
_WARMUP = ("SOLVER.WARMUP_EPOCHS", "SOLVER.WARMUP_ITERS")

_CHECKPOINT = re.compile(r"model_(best|final|\d+)")


def resumable_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints of a run, the one to resume from first.

    That is the one that ``last_checkpoint`` names, there or not; then the others, the last written first.
    """
    folder = Path(folder)
    others = _checkpoints(folder)
    others.sort(key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
    try:
        name = (folder / LAST_CHECKPOINT).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        name = ""
    noted = [folder / name] if name else []
    return noted + [path for path in others if path not in noted]


def set_aside_checkpoints(folder: str | Path) -> Path | None:
    """Move the checkpoints of a run before into a folder of their own, with config, results and curves.

    An evaluation's files too.

    A new run in the same folder could be killed before its first checkpoint; to resume would then go on with the old
    run. And the old run's best epoch could pass for the new one's.

    Returns:
        ``earlier_run_1`` in the folder, or the next number that is free; None where there was neither.
    """
    folder = Path(folder)
    checkpoints = _checkpoints(folder)
    there = known_manifest(folder)
    if not checkpoints and (there is None or is_of_a_training(there)):
        return None
    number = 1
    while (folder / f"{SET_ASIDE}_{number}").exists():
        number += 1
    target = folder / f"{SET_ASIDE}_{number}"
    target.mkdir()
    own = f".{os.getpid()}."  # in the name of the file that this process has opened
    events = [path for path in folder.glob("events.out.tfevents.*") if own not in path.name]
    for path in [folder / LAST_CHECKPOINT, *checkpoints, *(folder / name for name in _DESCRIPTIONS), *events]:
        if path.is_file():
            path.rename(target / path.name)
    return target


def schedule_constants(schedules: Mapping[str, Any]) -> dict[str, Any]:
    """What the schedules of a learning rate are made from, by config key."""
    found: dict[str, Any] = {}
    for schedule in schedules.values():
        for part in getattr(schedule, "_schedulers", [schedule]):
            found.update({key: vars(part)[name] for name, key in _CONSTANTS.items() if name in vars(part)})
    return found


def warn_of_other_schedule(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Say which keys of the config have no effect, because the schedule goes on as the checkpoint has it.

    Args:
        before: :func:`schedule_constants` as the config makes them.
        after: as the checkpoint has them.
    """
    ignored = [key for key, value in before.items() if key in after and after[key] != value]
    if ignored:
        logger.warning(
            "%s changed since the checkpoint, but its learning rate goes on as it was planned then. Start a new run "
            "(another OUTPUT_DIR, MODEL.WEIGHTS this checkpoint) for another schedule.",
            " and ".join(ignored),
        )


def check_same_run(cfg: CfgNode) -> None:
    """Compare a config with that of the run in its ``OUTPUT_DIR`` that it goes on with.

    Logs a warning where CLUSTERING.EPS would jump, because its way to CLUSTERING.EPS_END is as long as the run.

    Raises:
        ValueError: a key of the model, of what the optimizer's state holds, of an epoch's length or of how it is scored
            has another value.
    """
    path = Path(cfg.OUTPUT_DIR) / CONFIG_FILE
    try:
        before = flatten(read_settings(path))
    except (OSError, ValueError):  # the checkpoints alone say what they are
        return
    now = flatten(cfg)
    switched = [key for key in _WARMUP if bool(before.get(key, now[key])) != bool(now[key])]
    for key in (*_FIXED, *switched, *_OPTIMIZER, *(_OF_SGD if cfg.SOLVER.OPT == "SGD" else ())):
        if key in before and before[key] != now[key]:
            what = (
                "its optimizer would go on with that"
                if key in (*_OPTIMIZER, *_OF_SGD)
                else "checkpoints of that run do not fit"
            )
            raise ValueError(
                f"{key} is {now[key]!r}, but {path} has {before[key]!r}: {what}. Set it back, or start a new run in "
                "another OUTPUT_DIR (MODEL.WEIGHTS its checkpoint)."
            )
    _check_epochs_alike(path, before, now)
    epochs = "SOLVER.MAX_EPOCH"
    if cfg.CLUSTERING.EPS_END and before.get(epochs, now[epochs]) != now[epochs]:
        logger.warning(
            "%s was %s and is %s: the way from CLUSTERING.EPS %g to CLUSTERING.EPS_END %g is as long, so that eps "
            "jumps back here. Set CLUSTERING.EPS to CLUSTERING.EPS_END to go on with the last value.",
            epochs,
            before[epochs],
            now[epochs],
            cfg.CLUSTERING.EPS,
            cfg.CLUSTERING.EPS_END,
        )


def _check_epochs_alike(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ValueError where the epochs to come would be of another length, or scored otherwise, than those before."""
    length, tests = "SOLVER.ITERS_PER_EPOCH", "DATASETS.TESTS"
    if before.get(length, now[length]) != now[length]:
        raise ValueError(
            f"{length} is {now[length]}, but {path} has {before[length]}, and the epochs that are done are counted in "
            "it. Set it back, or start a new run in another OUTPUT_DIR (MODEL.WEIGHTS its checkpoint)."
        )
    others = [tests] * (list(before.get(tests, now[tests])) != list(now[tests]))
    others += [key for key in scored_otherwise(plain_config(before), plain_config(now)) if key in before]
    if others:
        key = others[0]
        raise ValueError(
            f"{key} is {now[key]!r}, but {path} has {before[key]!r}: the scores of the epochs to come would not be "
            "made as those of the epochs before. Set it back, and score a checkpoint apart (--eval-only, with another "
            "OUTPUT_DIR)."
        )


def check_fits(path: str, weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raise ValueError where a checkpoint to resume from is of another model; fastreid would leave such tensors out."""
    own = model.state_dict()
    stored = {name.removeprefix("module."): value for name, value in weights.items()}
    wrong = [name for name in own if name not in stored or stored[name].shape != own[name].shape]
    if wrong:
        found = tuple(stored[wrong[0]].shape) if wrong[0] in stored else "missing"
        raise ValueError(
            f"{path} is not of this model: {wrong[0]} is {found} there, {tuple(own[wrong[0]].shape)} here "
            f"({len(wrong)} such tensors). Resume with the MODEL keys of that run, or start a new one in another "
            "OUTPUT_DIR."
        )


def agree_on_epoch(stored: Mapping[str, Any] | None, problem: Exception | None, folder: str) -> None:
    """Raise in all processes, where they cannot all go on from the same epoch.

    Args:
        stored: the checkpoint that this process has loaded, or None for none.
        problem: why it could not, or None.
        folder: of the run.

    Note:
        A collective.
    """
    mine = None if stored is None else stored.get("epoch", -1) + 1
    found = comm.all_gather((mine, None if problem is None else one_line(problem)))
    if problem is not None:
        raise problem
    if any(other for _, other in found):
        raise RuntimeError(f"Another process cannot resume: {next(other for _, other in found if other)}")
    if len({epoch for epoch, _ in found}) > 1:
        told = ", ".join(
            f"process {rank}: {'none' if epoch is None else epoch}" for rank, (epoch, _) in enumerate(found)
        )
        raise FileNotFoundError(
            f"The processes find other checkpoints in OUTPUT_DIR ({folder}), epochs done: {told}. All machines of a "
            "run need the same folder; the first process alone writes checkpoints."
        )


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("model_*.pth") if _CHECKPOINT.fullmatch(path.stem)]


def load_newest(folder: str | Path, load: Callable[[str], Any]) -> Any:
    """Load the newest checkpoint of a run that can be read; warn where that is not the newest there is.

    Args:
        folder: of the run.
        load: loads a checkpoint by its path, and changes nothing where it raises :class:`UnreadableCheckpointError`.

    Returns:
        What ``load`` returns; None where the folder holds no checkpoint.

    Raises:
        UnreadableCheckpointError: there are checkpoints, but none can be read; lists them.
    """
    checkpoints = resumable_checkpoints(folder)
    if checkpoints and not (Path(folder) / LAST_CHECKPOINT).is_file():
        logger.warning("%s has no file %s: resuming from %s, the last written", folder, LAST_CHECKPOINT, checkpoints[0])
    problems: list[str] = []
    for path in checkpoints:
        if not path.is_file():
            problems.append(f"There is no checkpoint {path}")
            continue
        try:
            stored = load(str(path))
        except (UnreadableCheckpointError, FileNotFoundError) as error:
            problems.append(one_line(error))
            continue
        if problems:
            logger.warning("Resuming from %s instead: %s", path, "; ".join(problems))
        return stored
    if problems:
        raise UnreadableCheckpointError(
            f"No checkpoint in {folder} can be resumed from: {'; '.join(problems)}. Start without --resume, or in "
            "another OUTPUT_DIR."
        )
    return None
