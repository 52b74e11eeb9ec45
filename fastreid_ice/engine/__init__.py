"""The trainer and the hooks with which stock fastreid's loop trains ICE."""

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from fastreid_ice.engine.clustering_hook import ClusteringHook
from fastreid_ice.engine.hooks import BufferSyncHook, CheckpointHook, EvaluationHook, MomentumHook
from fastreid_ice.engine.recorder import EpochRecorder
from fastreid_ice.engine.setup import setup
from fastreid_ice.engine.trainer import ICETrainer

__all__ = [
    "BufferSyncHook",
    "CheckpointHook",
    "ClusteringHook",
    "EpochRecorder",
    "EvaluationHook",
    "ICETrainer",
    "MomentumHook",
    "setup",
]
