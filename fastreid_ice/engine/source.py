"""The classes of the source (``DATASETS.SOURCE``) beside the clusters of each epoch."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
from fastreid.config import CfgNode
from torch import Tensor

from fastreid_ice.data.datasets import TrainingImages
from fastreid_ice.data.image_cache import ImageCache
from fastreid_ice.data.inference_loaders import build_feature_loader
from fastreid_ice.data.source import sample_by_class_and_camera
from fastreid_ice.engine.extraction import FeatureExtractor
from fastreid_ice.modeling import ICE

logger = logging.getLogger(__name__)


class SourceClasses:
    """Puts the source's classes behind the clusters: in the labels, and in the memory.

    Their rows are made of the source's features under the true labels, extracted with the source's own statistics of
    the batch normalisations: anew with each clustering, or where the memory keeps them (``MemoryBank.keeps_source``)
    before the first epoch only. What an epoch leaves for the next is its state, so that a resumed run goes on with it.

    Args:
        cfg: the config.
        model: whose memory is filled.
        images: of the source, with identities, cameras behind those of the target.
        cache: of these images.
    """

    def __init__(self, cfg: CfgNode, model: ICE, images: TrainingImages, cache: ImageCache | None = None):
        assert images.identities is not None
        self.cfg = cfg
        self.model = model
        self.images = images
        self.classes = images.identities
        self._cache = cache
        self._restored: Mapping[str, Tensor] = {}  # rows of a checkpoint, until the first clustering

    def rebuild(self, features: Tensor, labels: Tensor, camids: Tensor, seed: int) -> Tensor:
        """Fill the memory with the clusters of the target and the classes of the source.

        Args:
            features: (N, D) of the target's images.
            labels: (N,) int64 pseudo labels; -1 = outlier.
            camids: (N,) int64.
            seed: of DATASETS.SOURCE_SAMPLE.

        Returns:
            (M,) int64 labels of the source's images.
        """
        memory, first = self.model.memory, int(labels.max()) + 1
        rows, self._restored = self._kept_rows(), {}
        if not rows:
            own, chosen = self._extract(seed)
            source = self.classes[chosen] + first
            features, labels = torch.cat([features, own]), torch.cat([labels, source.to(labels.device)])
            camids = torch.cat([camids, self.images.camids[chosen].to(camids.device)])
        memory.rebuild(features, labels, camids)
        if rows:
            memory.append_source(rows)
        memory.mark_source(first)
        return self.classes + first

    def _extract(self, seed: int) -> tuple[Tensor, Tensor]:
        """(n, D) features and the (n,) numbers of the images that they are of."""
        start, count = time.perf_counter(), self.cfg.DATASETS.SOURCE_SAMPLE
        chosen = sample_by_class_and_camera(self.images, count or len(self.images), seed)
        loader = build_feature_loader(self.cfg, self.images, self._cache, chosen)
        with self.model.source_statistics.in_place():
            features = FeatureExtractor(len(chosen), self.cfg.TEST.ENGINE)(self.model, loader)
        logger.info(
            "Source: %d classes of %d images, features of %d in %.1f s",
            int(self.classes.max()) + 1,
            len(self.images),
            len(chosen),
            time.perf_counter() - start,
        )
        return features, chosen

    def state_dict(self) -> dict[str, Any]:
        """The source's statistics, and the rows of a memory that keeps them."""
        return {"statistics": self.model.source_statistics.state_dict(), "memory": dict(self._kept_rows())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with a state; rows of a source with another number of classes are made anew."""
        self.model.source_statistics.load_state_dict(state["statistics"])
        rows = state["memory"]
        self._restored = rows if rows and len(rows["centroids"]) == int(self.classes.max()) + 1 else {}

    def _kept_rows(self) -> Mapping[str, Tensor]:
        memory = self.model.memory
        return (self._restored or memory.source_rows()) if memory.keeps_source else {}
