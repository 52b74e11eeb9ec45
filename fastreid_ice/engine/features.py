"""Features of all training images by the encoder that is clustered, each process its share."""

from __future__ import annotations

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
import torch.nn.functional as F
from fastreid.evaluation.evaluator import inference_context
from fastreid.modeling.losses.utils import concat_all_gather
from fastreid.utils import comm
from torch import Tensor, nn
from tqdm import tqdm


@torch.no_grad()
def extract_features(model: nn.Module, loader, num_images: int) -> Tensor:
    """Features of the loader's images in evaluation mode, the same on every process.

    Args:
        model: maps a batch to (b, D) embeddings in evaluation mode; its mode is restored.
        loader: this process's contiguous share, see :func:`fastreid_ice.data.loaders.build_feature_loader`.
        num_images: N, over all processes.

    Returns:
        (N, D) float32, L2-normalised, on the model's device.
    """
    features = []
    with inference_context(model):
        # disable=None: a bar on a terminal, nothing in a log file
        for batch in tqdm(loader, desc="Features", unit="batch", leave=False, disable=_bar_disabled()):
            features.append(F.normalize(model(batch).float(), dim=1))
    return _gather_shares(torch.cat(features), num_images)


def _bar_disabled() -> bool | None:
    return None if comm.is_main_process() else True


def _gather_shares(share: Tensor, num_images: int) -> Tensor:
    """Concatenate the processes' shares; all but the last ones have ceil(N / processes) rows."""
    world_size = comm.get_world_size()
    if world_size == 1:
        return share
    rows = (num_images - 1) // world_size + 1
    padded = F.pad(share, (0, 0, 0, rows - len(share)))
    return concat_all_gather(padded)[:num_images]
