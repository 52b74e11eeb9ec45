"""The head of ICE: pooling and BN neck of fastreid's EmbeddingHead, with a memory bank in place of a classifier."""

from __future__ import annotations

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from fastreid.config import CfgNode, configurable
from fastreid.layers import get_norm, pooling
from fastreid.layers.weight_init import weights_init_kaiming
from fastreid.modeling.heads import REID_HEADS_REGISTRY
from torch import Tensor, nn

from fastreid_ice.modeling.memory_bank import MemoryBank, build_memory


@REID_HEADS_REGISTRY.register()
class MemoryBankHead(nn.Module):
    """Feature map to embedding; the online encoder's holds the memory bank (the momentum encoder's has none).

    Names in the state dict are those of fastreid's ``EmbeddingHead`` (``bottleneck.0.weight`` ...), so that weights
    of the zoo load here and ours load there. The embedding is the neck's output: MODEL.HEADS.NECK_FEAT, which chooses
    what fastreid's triplet loss sees, has no meaning here.
    """

    @configurable
    def __init__(
        self,
        *,
        feat_dim: int,
        embedding_dim: int,
        pool_type: str,
        with_bnneck: bool,
        norm_type: str,
        memory: MemoryBank | None = None,
    ):
        """
        Args:
            feat_dim: channels of the backbone's feature map (MODEL.BACKBONE.FEAT_DIM).
            embedding_dim: channels of a 1x1 convolution before the neck; 0 = none (MODEL.HEADS.EMBEDDING_DIM).
            pool_type: a pooling class of fastreid.layers.pooling (MODEL.HEADS.POOL_LAYER).
            with_bnneck: end with a batch normalisation whose bias is frozen at 0 (MODEL.HEADS.WITH_BNNECK).
            norm_type: its kind (MODEL.HEADS.NORM).
            memory: what the losses compare with (MODEL.ICE.MEMORY); default a :class:`MemoryBank`.

        Raises:
            ValueError: an unknown pooling.
        """
        super().__init__()
        if pool_type not in pooling.__all__:
            raise ValueError(f"MODEL.HEADS.POOL_LAYER is {pool_type!r}; choose one of {', '.join(pooling.__all__)}")
        self.pool_layer = getattr(pooling, pool_type)()
        neck: list[nn.Module] = []
        if embedding_dim > 0:
            neck.append(nn.Conv2d(feat_dim, embedding_dim, 1, bias=False))
        if with_bnneck:
            neck.append(get_norm(norm_type, embedding_dim or feat_dim, bias_freeze=True))
        self.bottleneck = nn.Sequential(*neck)
        self.bottleneck.apply(weights_init_kaiming)
        self.memory: MemoryBank | None = memory or MemoryBank()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {
            "feat_dim": cfg.MODEL.BACKBONE.FEAT_DIM,
            "embedding_dim": cfg.MODEL.HEADS.EMBEDDING_DIM,
            "pool_type": cfg.MODEL.HEADS.POOL_LAYER,
            "with_bnneck": cfg.MODEL.HEADS.WITH_BNNECK,
            "norm_type": cfg.MODEL.HEADS.NORM,
            "memory": build_memory(cfg),
        }

    def forward(self, feature_map: Tensor, targets: Tensor | None = None) -> Tensor:
        """(B, C, H, W) feature map to (B, D) embedding, not L2-normalised. ``targets`` is fastreid's signature."""
        return self.bottleneck(self.pool_layer(feature_map))[..., 0, 0]
