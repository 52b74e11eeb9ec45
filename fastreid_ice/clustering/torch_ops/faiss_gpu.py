"""The brute-force search of faiss-gpu, where it is installed: candidates for the exact search on CUDA."""

from __future__ import annotations

import functools
from typing import Any

import faiss
import torch
from torch import Tensor

SCRATCH_BYTES = 256 << 20
MOST_NEIGHBORS = 2048  # of faiss's brute-force kernel


def is_usable(features: Tensor, k: int) -> bool:
    """Whether faiss-gpu can search these features: it is installed, sees a GPU, and they lie on one."""
    installed = hasattr(faiss, "StandardGpuResources") and hasattr(faiss, "knn_gpu")
    return features.is_cuda and installed and faiss.get_num_gpus() > 0 and k <= MOST_NEIGHBORS


@functools.cache
def _resources(device: int) -> Any:
    """faiss's scratch memory on a GPU, made once; its work runs on torch's current stream."""
    import faiss.contrib.torch_utils  # noqa: F401  (lets faiss take torch tensors)

    with torch.cuda.device(device):
        resources = faiss.StandardGpuResources()
        resources.setTempMemory(SCRATCH_BYTES)  # else it keeps up to 1.5 GiB of the GPU for ever
        return resources


def largest_products(queries: Tensor, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest inner products of each query, without a copy to the host.

    Args:
        queries: (B, D) float32 on a GPU.
        features: (N, D) float32 on the same GPU.
        k: at most MOST_NEIGHBORS.

    Returns:
        products (B, k) float32, largest first, and indices (B, k) int64.
    """
    device = features.device.index or 0
    resources = _resources(device)  # before faiss.knn_gpu is looked up: it puts the one that takes tensors there
    with torch.cuda.device(device):  # faiss takes the stream of the current device
        return faiss.knn_gpu(
            resources, queries.contiguous(), features, k, metric=faiss.METRIC_INNER_PRODUCT, device=device
        )
