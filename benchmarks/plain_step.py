"""A training step in the order of work of the reference code, as plainly as possible. For benchmarks and their test."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
from fastreid.config import CfgNode
from fastreid.data.data_utils import read_image
from fastreid.solver import build_optimizer
from torch import Tensor, nn

from fastreid_ice.data.views import build_strong_view, build_weak_view
from fastreid_ice.losses import agnostic_loss, cross_camera_loss, hard_instance_loss, soft_instance_loss
from fastreid_ice.modeling import ICE


class PlainStep:
    """Five passes, the last of which keep no graph; losses camera by camera; an optimizer group for each parameter.

    With several chunks each pass goes from chunk to chunk, as on so many GPUs, one after another.
    """

    def __init__(self, cfg: CfgNode, model: ICE, chunks: int):
        """
        Args:
            cfg: the whole config, its losses in the reference's variants.
            model: in one chunk; its encoders and its memory are copied.
            chunks: parts of a batch that are normalised by themselves.
        """
        own = copy.deepcopy(model).train()
        self.online = nn.ModuleList([own.backbone, own.heads])
        self.momentum = own.momentum_encoder
        self.memory, self.losses = own.memory, cfg.MODEL.LOSSES
        self.mean, self.std = own.pixel_mean, own.pixel_std
        self.rate, self.chunks = cfg.MODEL.ICE.MOMENTUM, chunks
        self.optimizer = build_optimizer(cfg, self.online)[0]

    def __call__(self, batch: Mapping[str, Tensor]) -> list[float]:
        """Train on a batch; the four losses, read at once."""
        strong, key, weak = ((batch[view] - self.mean) / self.std for view in ("images", "images_key", "images_weak"))
        query = self._encode(strong, self._online)
        with torch.no_grad():
            self._encode(key, self._online)  # nobody uses it
            self._encode(strong, self.momentum)  # nor this
            keys, weak_keys = self._encode(key, self.momentum), self._encode(weak, self.momentum)
        losses = self._losses(query, keys, weak_keys, batch["targets"], batch["camids"])
        self.optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        self.optimizer.step()
        for momentum, online in zip(self.momentum.parameters(), self.online.parameters()):
            momentum.data = momentum.data * self.rate + online.data * (1 - self.rate)
        return [loss.item() for loss in losses]

    def _online(self, images: Tensor) -> Tensor:
        backbone, heads = self.online
        return heads(backbone(images))

    def _encode(self, images: Tensor, encoder) -> Tensor:
        return torch.cat([encoder(part) for part in images.chunk(self.chunks)])

    def _losses(self, query: Tensor, keys: Tensor, weak: Tensor, labels: Tensor, camids: Tensor) -> list[Tensor]:
        agnostic, cross, hard, soft = (self.losses[name] for name in NODES)
        memory = self.memory
        proxies = (memory.proxies, memory.proxy_labels, memory.proxy_camids)
        of_cameras = []
        for camera in camids.unique():
            own = camids == camera
            of_cameras.append(cross_camera_loss(query[own], labels[own], camids[own], *proxies, cross.TEMPERATURE))
        return [
            agnostic.SCALE * agnostic_loss(query, labels, memory.centroids, agnostic.TEMPERATURE, agnostic.SMOOTHING),
            cross.SCALE * torch.stack(of_cameras).sum(),
            hard.SCALE * hard_instance_loss(query, keys, labels, labels, hard.TEMPERATURE),
            soft.SCALE * soft_instance_loss(query, keys, weak, weak, soft.TEMPERATURE),
        ]


NODES = ("AGNOSTIC", "CROSS_CAMERA", "HARD_INSTANCE", "SOFT_INSTANCE")


class PlainViews:
    """Each view from a decoding and a resizing of its own."""

    def __init__(self, cfg: CfgNode, paths: Sequence[str]):
        self.paths = paths
        self.views = {
            "images": build_strong_view(cfg),
            "images_key": build_strong_view(cfg),
            "images_weak": build_weak_view(cfg),
        }

    def __call__(self) -> dict[str, Tensor]:
        """A batch of all images."""
        return {name: torch.stack([view(read_image(path)) for path in self.paths]) for name, view in self.views.items()}
