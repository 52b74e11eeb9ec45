"""Features of all training images by the encoder that is clustered, each process its share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
import torch.nn.functional as F
from fastreid.evaluation.evaluator import inference_context
from fastreid.modeling.losses.utils import concat_all_gather
from fastreid.utils import comm
from torch import Tensor, nn
from tqdm import tqdm

from fastreid_ice.engine.inference import TORCH, inference_engine


class FeatureExtractor:
    """Extracts the features of the same images again and again, into the same memory.

    Args:
        num_images: over all processes.
        engine: what runs the encoder, see :func:`fastreid_ice.engine.inference.inference_engine`.
    """

    def __init__(self, num_images: int, engine: str = TORCH):
        self._num_images = num_images
        self._engine = engine
        self._share: Tensor | None = None  # (rows of this process, padded; D), made by the first extraction

    @torch.no_grad()
    def __call__(self, model: nn.Module, loader: Iterable[Any]) -> Tensor:
        """Features of all images in evaluation mode, the same on every process.

        Args:
            model: maps a batch to (b, D) embeddings in evaluation mode; its mode is restored.
            loader: this process's contiguous share, see :func:`fastreid_ice.data.loaders.build_feature_loader`.

        Returns:
            (N, D) float32, L2-normalised, on the model's device; valid until the next call.
        """
        done = 0
        # disable=None: a bar on a terminal, nothing in a log file
        disable = None if comm.is_main_process() else True
        with inference_context(model), torch.inference_mode(), inference_engine(model, self._engine):
            for batch in tqdm(loader, desc="Features", unit="batch", leave=False, disable=disable):
                features = F.normalize(model(batch).float(), dim=1)
                self._rows_like(features)[done : done + len(features)] = features
                done += len(features)
        if comm.get_world_size() == 1:
            assert self._share is not None
            return self._share
        return concat_all_gather(self._agreed_share(model))[: self._num_images]

    def _agreed_share(self, model: nn.Module) -> Tensor:
        """This process's share, in the width that the processes with images have; zeros where this one has none."""
        device = next(model.parameters()).device
        width = torch.tensor([0 if self._share is None else self._share.shape[1]], device=device)
        torch.distributed.all_reduce(width, op=torch.distributed.ReduceOp.MAX)
        if self._share is None:
            return self._rows_like(torch.empty(0, int(width), device=device))
        return self._share

    def _rows_like(self, features: Tensor) -> Tensor:
        """Memory for this process's share; those of the last processes may not be full."""
        if self._share is None or self._share.device != features.device:
            rows = (self._num_images - 1) // comm.get_world_size() + 1
            with torch.inference_mode(False):  # the memory bank and the clustering compute on it afterwards
                self._share = torch.zeros(rows, features.shape[1], dtype=features.dtype, device=features.device)
        return self._share
