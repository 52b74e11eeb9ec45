"""Features of all training images by the encoder that is clustered, each process its share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
import torch.nn.functional as F
from fastreid.evaluation.evaluator import inference_context
from fastreid.utils import comm
from torch import Tensor, nn
from tqdm import tqdm

from fastreid_ice.clustering.distributed import gather_in_place
from fastreid_ice.engine.inference import TORCH, inference_engine


class FeatureExtractor:
    """Extracts the features of the same images again and again.

    It keeps none of them: all that an epoch's clustering takes is free while the epoch is trained.

    Args:
        num_images: over all processes.
        engine: what runs the encoder, see :func:`fastreid_ice.engine.inference.inference_engine`.
    """

    def __init__(self, num_images: int, engine: str = TORCH):
        self._num_images = num_images
        self._engine = engine

    @torch.no_grad()
    def __call__(self, model: nn.Module, loader: Iterable[Any]) -> Tensor:
        """Features of all images in evaluation mode, the same on every process.

        Args:
            model: maps a batch to (b, D) embeddings in evaluation mode; its mode is restored.
            loader: this process's contiguous share, see
                :func:`~fastreid_ice.data.inference_loaders.build_feature_loader`.

        Returns:
            (N, D) float32, L2-normalised, on the model's device.
        """
        whole: Tensor | None = None  # of all processes: each writes its share where it belongs
        done = comm.get_rank() * self._rows_of_a_process
        # disable=None: a bar on a terminal, nothing in a log file
        disable = None if comm.is_main_process() else True
        with inference_context(model), torch.inference_mode(), inference_engine(model, self._engine):
            for batch in tqdm(loader, desc="Features", unit="batch", leave=False, disable=disable):
                features = F.normalize(model(batch).float(), dim=1)
                if whole is None:
                    whole = self._memory(features.shape[1], features.device)
                whole[done : done + len(features)] = features
                done += len(features)
        if comm.get_world_size() > 1:
            whole = self._gathered(whole, next(model.parameters()).device)
        assert whole is not None
        return whole[: self._num_images]

    @property
    def _rows_of_a_process(self) -> int:
        """Those of the last processes may not be filled."""
        return (self._num_images - 1) // comm.get_world_size() + 1

    def _memory(self, width: int, device: torch.device) -> Tensor:
        with torch.inference_mode(False):  # the memory bank and the clustering compute on it afterwards
            return torch.zeros(self._rows_of_a_process * comm.get_world_size(), width, device=device)

    def _gathered(self, whole: Tensor | None, device: torch.device) -> Tensor:
        """All processes' shares, in the width that those with images have."""
        width = torch.tensor([0 if whole is None else whole.shape[1]], device=device)
        torch.distributed.all_reduce(width, op=torch.distributed.ReduceOp.MAX)
        if whole is None:
            whole = self._memory(int(width), device)
        gather_in_place(whole)
        return whole
