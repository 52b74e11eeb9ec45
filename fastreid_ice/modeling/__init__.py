"""The ICE meta-architecture, its memory-bank head and its losses, registered with fastreid."""

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from fastreid_ice.modeling.bn_chunks import ChunkedBatchNorm, set_bn_chunks
from fastreid_ice.modeling.heads import MemoryBankHead
from fastreid_ice.modeling.losses import LOSS_REGISTRY, build_losses
from fastreid_ice.modeling.memory_bank import (
    MEMORY_REGISTRY,
    HardMeanMemory,
    MemoryBank,
    MomentumMemory,
    camera_proxies,
    cluster_centroids,
)
from fastreid_ice.modeling.meta_arch import ICE, Encoder
from fastreid_ice.modeling.step import StepFeatures

__all__ = [
    "ICE",
    "LOSS_REGISTRY",
    "MEMORY_REGISTRY",
    "ChunkedBatchNorm",
    "Encoder",
    "HardMeanMemory",
    "MemoryBank",
    "MomentumMemory",
    "MemoryBankHead",
    "StepFeatures",
    "build_losses",
    "camera_proxies",
    "cluster_centroids",
    "set_bn_chunks",
]
