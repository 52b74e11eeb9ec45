"""The CLUSTERING node of a config as the clustering package wants it, epoch by epoch."""

from __future__ import annotations

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from fastreid.config import CfgNode

from fastreid_ice.clustering import ClusteringConfig, config_defaults

# Keys of CLUSTERING that are for the training, not for one clustering: when, with what eps then, and what it is for.
TRAINING_KEYS = ("PERIOD", "EPS_END", "OUTLIERS")


def clustering_config(cfg: CfgNode, seed: int, epoch: int | None = None) -> ClusteringConfig:
    """The config's CLUSTERING node as the clustering package wants it.

    Args:
        cfg: the whole config. Keys of CLUSTERING that a user's module has added go into ``extra``.
        seed: that of the run.
        epoch: the epoch, from 0, that CLUSTERING.EPS_END gives an eps of its own; default the last one.

    Raises:
        ValueError: a key of CLUSTERING is out of range.
    """
    known = {key.lower(): cfg.CLUSTERING[key] for key in config_defaults()}
    known["eps"] = _eps(cfg, epoch)
    extra = {
        key.lower(): value
        for key, value in cfg.CLUSTERING.items()
        if key.lower() not in known and key not in TRAINING_KEYS
    }
    return ClusteringConfig(**known, seed=seed, extra=extra)


def _eps(cfg: CfgNode, epoch: int | None) -> float:
    """CLUSTERING.EPS in the first epoch, CLUSTERING.EPS_END in the last, linear in between."""
    first, last = cfg.CLUSTERING.EPS, cfg.CLUSTERING.EPS_END
    if not last:
        return first
    steps = cfg.SOLVER.MAX_EPOCH - 1
    share = 1.0 if epoch is None or epoch >= steps else epoch / steps
    return first + (last - first) * share
