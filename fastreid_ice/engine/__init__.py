"""The trainer and the hooks with which stock fastreid's loop trains ICE."""

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from fastreid_ice.engine.checkpoints import TrainedModel, find_checkpoint, load_trained_model
from fastreid_ice.engine.configure import setup
from fastreid_ice.engine.hooks.checkpointing import CheckpointHook, RunState
from fastreid_ice.engine.hooks.clustering import ClusteringHook
from fastreid_ice.engine.hooks.evaluation import EvaluationHook
from fastreid_ice.engine.hooks.recorder import EpochRecorder
from fastreid_ice.engine.hooks.training import BufferSyncHook, StepHook
from fastreid_ice.engine.trainer import ICETrainer

__all__ = [
    "BufferSyncHook",
    "CheckpointHook",
    "ClusteringHook",
    "EpochRecorder",
    "EvaluationHook",
    "ICETrainer",
    "RunState",
    "StepHook",
    "TrainedModel",
    "find_checkpoint",
    "load_trained_model",
    "setup",
]
