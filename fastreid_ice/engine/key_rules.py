"""What a value of each key must be by itself; what contradicts another key is in :mod:`fastreid_ice.engine.checks`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
from fastreid.config import CfgNode
from fastreid.layers import pooling

from fastreid_ice.clustering import OUTLIERS
from fastreid_ice.data.image_cache import KINDS
from fastreid_ice.engine.inference import ENGINES
from fastreid_ice.evaluation.similarities import METRICS
from fastreid_ice.modeling.meta_arch import AMP_DTYPES, ENCODERS

SAMPLER = "IdentityCameraSampler"
NORMS = ("BN", "syncBN", "GhostBN", "FrozenBN", "GN")
HEAD_NORMS = tuple(name for name in NORMS if name != "FrozenBN")  # the neck is trained
SCHEDULES = ("MultiStepLR", "CosineAnnealingLR")
OPTIMIZERS = tuple(
    sorted(name for name, kind in vars(torch.optim).items() if isinstance(kind, type) and name != "Optimizer")
)

Rule = tuple[Callable[[Any], bool], str]  # whether a value is allowed, and what is, in words


def _between(low: float, high: float) -> Rule:
    return lambda value: low <= value <= high, f"in [{low}, {high}]"


def _at_least(low: float) -> Rule:
    return lambda value: value >= low, f"at least {low}"


_POSITIVE: Rule = (lambda value: value > 0, "above 0")
_SIZE: Rule = (
    lambda value: len(value) == 2 and all(isinstance(side, int) and side >= 8 for side in value),
    "[height, width] in pixels, each at least 8",
)
_RANGE: Rule = (
    lambda value: len(value) == 2 and 0 <= value[0] <= value[1],
    "[smallest, largest], 0 or more",
)


def _one_of(choices: Sequence[Any]) -> Rule:
    return lambda value: value in choices, f"one of {', '.join(map(str, choices))}"


# What a value of each key must be, in the order in which they are looked at.
MODEL_RULES: dict[str, Rule] = {
    "MODEL.BACKBONE.FEAT_DIM": _at_least(1),
    "MODEL.BACKBONE.NORM": _one_of(NORMS),
    "MODEL.HEADS.NORM": _one_of(HEAD_NORMS),
    "MODEL.HEADS.POOL_LAYER": _one_of(pooling.__all__),
    "MODEL.HEADS.EMBEDDING_DIM": _at_least(0),
    "MODEL.ICE.MOMENTUM": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "MODEL.ICE.EVAL_ENCODER": _one_of(ENCODERS),
    "MODEL.ICE.BN_CHUNKS": _at_least(0),
    "MODEL.ICE.BN_MOMENTUM": (lambda value: 0 < value <= 1, "in (0, 1]"),
    "MODEL.PIXEL_MEAN": (lambda value: len(value) == 3, "three numbers"),
    "MODEL.PIXEL_STD": (lambda value: len(value) == 3 and min(value) > 0, "three numbers above 0"),
    "INPUT.SIZE_TEST": _SIZE,
    "INPUT.CROP.ENABLED": (lambda value: not value, "False: exports, search and reports know whole images only"),
    "SEED": (lambda value: value < 2**32, "below 2**32; below 0 draws one"),
    "SOLVER.AMP.DTYPE": _one_of(tuple(AMP_DTYPES)),
}
TEST_RULES: dict[str, Rule] = {
    "TEST.IMS_PER_BATCH": _at_least(1),
    "TEST.ENGINE": _one_of(ENGINES),
    "TEST.EVAL_PERIOD": _at_least(0),
    "TEST.METRIC": _one_of(METRICS),
    "TEST.AQE.QE_TIME": _at_least(1),
    "TEST.AQE.QE_K": _at_least(1),
    "TEST.RERANK.K1": _at_least(1),
    "TEST.RERANK.K2": _at_least(1),
    "TEST.RERANK.LAMBDA": _between(0, 1),
    "TEST.PRECISE_BN.NUM_ITER": _at_least(1),
    "DATALOADER.NUM_WORKERS": _at_least(0),
}
TRAINING_RULES: dict[str, Rule] = {
    "INPUT.SIZE_TRAIN": _SIZE,
    "INPUT.PADDING.SIZE": _at_least(0),
    "INPUT.FLIP.PROB": _between(0, 1),
    "INPUT.BLUR.PROB": _between(0, 1),
    "INPUT.BLUR.RADIUS": _RANGE,
    "INPUT.REA.PROB": _between(0, 1),
    "INPUT.REA.AREA": (lambda value: _RANGE[0](value) and value[1] <= 1, "[smallest, largest], each in [0, 1]"),
    "INPUT.REA.ASPECT": (lambda value: _RANGE[0](value) and value[0] > 0, "[smallest, largest], above 0"),
    "INPUT.REA.VALUE": (lambda value: len(value) == 3, "three numbers in 0..255"),
    "DATASETS.SOURCE_IMS_PER_BATCH": _at_least(0),
    "DATASETS.SOURCE_SAMPLE": _at_least(0),
    "MODEL.LOSSES.SOURCE_SCALE": _POSITIVE,
    "DATALOADER.SAMPLER_TRAIN": _one_of((SAMPLER,)),
    "DATALOADER.NUM_INSTANCE": _at_least(1),
    "DATALOADER.CACHE": _one_of(KINDS),
    "DATALOADER.CACHE_DIR": (lambda value: isinstance(value, str), "the name of a folder, or empty"),
    "SOLVER.IMS_PER_BATCH": _at_least(1),
    "SOLVER.ITERS_PER_EPOCH": _at_least(1),
    "SOLVER.MAX_EPOCH": _at_least(1),
    "SOLVER.ACCUMULATION": _at_least(1),
    "SOLVER.OPT": _one_of(OPTIMIZERS),
    "SOLVER.BASE_LR": _POSITIVE,
    "SOLVER.HEADS_LR_FACTOR": _POSITIVE,
    "SOLVER.BIAS_LR_FACTOR": _POSITIVE,
    "SOLVER.MOMENTUM": _between(0, 1),
    "SOLVER.WEIGHT_DECAY": _at_least(0),
    "SOLVER.WEIGHT_DECAY_NORM": _at_least(0),
    "SOLVER.WEIGHT_DECAY_BIAS": _at_least(0),
    "SOLVER.SCHED": _one_of(SCHEDULES),
    "SOLVER.STEPS": (
        lambda value: all(type(epoch) is int and epoch > 0 for epoch in value) and sorted(value) == list(value),
        "epochs, whole numbers above 0 in ascending order, such as [20, 40]",
    ),
    "SOLVER.GAMMA": _POSITIVE,
    "SOLVER.WARMUP_FACTOR": _between(0, 1),
    "SOLVER.WARMUP_ITERS": _at_least(0),
    "SOLVER.WARMUP_EPOCHS": _at_least(0),
    "SOLVER.DELAY_EPOCHS": _at_least(0),
    "SOLVER.CHECKPOINT_PERIOD": _at_least(0),
    "SOLVER.CHECKPOINT_KEEP": _at_least(0),
    "DATALOADER.OUTLIER_SHARE": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "CLUSTERING.PERIOD": _at_least(1),
    "CLUSTERING.OUTLIERS": _one_of(OUTLIERS),
    "CLUSTERING.EPS_END": (lambda value: 0 <= value < 1, "in (0, 1), or 0 for CLUSTERING.EPS throughout"),
}


def value_of(cfg: CfgNode, key: str) -> Any:
    """Value of a key such as ``"MODEL.DEVICE"``."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def apply_rules(cfg: CfgNode, rules: dict[str, Rule]) -> None:
    """Raise ValueError at the first key whose value its rule does not allow, with the key, the value and the rule."""
    for key, (holds, needed) in rules.items():
        value = value_of(cfg, key)
        try:
            right = holds(value)
        except TypeError:  # such as text among numbers
            right = False
        if not right:
            raise ValueError(f"{key} is {value!r}; it must be {needed}")
