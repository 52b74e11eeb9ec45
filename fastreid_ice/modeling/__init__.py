"""The ICE meta-architecture, its memory-bank head and its losses, registered with fastreid."""

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from fastreid_ice.modeling.bn_chunks import ChunkedBatchNorm, set_bn_chunks
from fastreid_ice.modeling.heads import MemoryBankHead
from fastreid_ice.modeling.loss_registry import LOSS_REGISTRY, StepFeatures, build_losses
from fastreid_ice.modeling.memory_bank import MemoryBank, camera_proxies, cluster_centroids
from fastreid_ice.modeling.meta_arch import ICE, Encoder

__all__ = [
    "ICE",
    "LOSS_REGISTRY",
    "ChunkedBatchNorm",
    "Encoder",
    "MemoryBank",
    "MemoryBankHead",
    "StepFeatures",
    "build_losses",
    "camera_proxies",
    "cluster_centroids",
    "set_bn_chunks",
]
