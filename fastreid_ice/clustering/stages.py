"""The four stages as public functions, and the one decision which backend runs them.

Both backends have the same four modules and functions: ``numba_kernels`` compiles them for the CPU, ``torch_ops``
writes them in tensor operations for any device. They give the same labels. The backend is imported when it is first
used, so that the torch path needs no numba.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastreid_ice.clustering.torch_ops.sparse_rows import SparseRows

if TYPE_CHECKING:
    from scipy.sparse import csr_array


def _backend(choice: str, device: torch.device) -> ModuleType:
    """The package whose modules search, encoding, jaccard and dbscan are to run."""
    if choice == "torch" or (choice == "auto" and device.type != "cpu"):
        from fastreid_ice.clustering import torch_ops

        return torch_ops
    from fastreid_ice.clustering import numba_kernels

    return numba_kernels


def _backend_of(matrix: csr_array | SparseRows) -> ModuleType:
    """The backend that made a sparse matrix."""
    if isinstance(matrix, SparseRows):
        return _backend("torch", matrix.values.device)
    return _backend("numba", torch.device("cpu"))


def for_backend(encoding: SparseRows, backend: str) -> csr_array | SparseRows:
    """A sparse matrix in the kind of the backend that is to compute with it: "numba", "torch" or "auto"."""
    device = encoding.values.device
    if _backend(backend, device) is _backend("torch", device):
        return encoding
    return as_csr(encoding)


def as_csr(matrix: csr_array | SparseRows) -> csr_array:
    """A sparse matrix of either backend, of N x N numbers, as scipy's on the CPU."""
    if not isinstance(matrix, SparseRows):
        return matrix
    from scipy.sparse import csr_array

    indptr, columns, values = (part.cpu().numpy() for part in matrix)
    images = len(indptr) - 1
    return csr_array((values, columns.astype("int32"), indptr), shape=(images, images))


def nearest_neighbors(
    features: Tensor,
    k: int,
    rows: tuple[int, int] | None = None,
    backend: str = "auto",
    memory_budget_mb: int = 256,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor]:
    """Find the k most similar images of each image, itself included.

    Neighbours are ranked by similarity (inner product, summed in float64, on a grid of 2^-32), equal ones by
    index, as a plain exact search ranks them. With more than k identical images an image need not be
    in its own list.

    Args:
        features: (N, D) float32 unit rows (see prepare_features), on any device.
        k: length of a list, capped at N.
        rows: (start, stop) to search for only these images, default all.
        backend: "numba" (CPU), "torch" or "auto"; the result does not depend on it.
        memory_budget_mb: bounds the scratch memory of the torch path, in MiB.
        allow_tf32: let CUDA find the candidates in TF32: faster, and no longer guaranteed to be exact.

    Returns:
        similarities (n, K) float32 and ranks (n, K) int64 on the device of the features, K = min(k, N).
    """
    rows = rows if rows is not None else (0, len(features))
    search = _backend(backend, features.device).search
    return search.nearest_neighbors(features, min(k, len(features)), rows, memory_budget_mb, allow_tf32)


def k_reciprocal_encoding(
    features: Tensor,
    ranks: Tensor,
    similarities: Tensor,
    k1: int = 30,
    k2: int = 6,
    backend: str = "auto",
    memory_budget_mb: int = 256,
) -> csr_array | SparseRows:
    """Encode each image as a sparse row of weights over its k-reciprocal neighbours (Zhong et al., CVPR 2017).

    R(i) = images in i's list that have i in theirs. The half set of a member (the same over the first
    round(k1 / 2) + 1 entries) joins when more than 2/3 of it lies in R(i). Weights: softmax of minus the squared
    Euclidean distance over the expanded set. Query expansion: the mean of the rows of the k2 nearest images.

    Args:
        features: (N, D) float32 unit rows.
        ranks: (N, K) int64, K = min(k1, N), nearest first.
        similarities: (N, K) float32.
        k1: length of a neighbour list.
        k2: rows to average; 1 leaves the rows as they are.
        backend: "numba", "torch" or "auto" (torch for features on an accelerator).
        memory_budget_mb: bounds the scratch memory of the torch path, in MiB.

    Returns:
        (N, N) sparse matrix, rows sum to 1: scipy csr_array (numba) or SparseRows (torch).
    """
    encoding = _backend(backend, features.device).encoding
    return encoding.k_reciprocal_encoding(features, ranks, similarities, k1, k2, memory_budget_mb)


def jaccard_distances(
    encoding: csr_array | SparseRows, eps: float = 0.55, memory_budget_mb: int = 256
) -> csr_array | SparseRows:
    """Jaccard distances d = 1 - m / (2 - m) <= eps between rows, m = sum of their element-wise minima.

    Args:
        encoding: what :func:`k_reciprocal_encoding` returns.
        eps: largest distance that is kept, in (0, 1).
        memory_budget_mb: bounds the scratch memory of the torch path, in MiB.

    Returns:
        (N, N) sparse matrix of the same kind, symmetric; distances of 0, such as the diagonal, are stored.
    """
    return _backend_of(encoding).jaccard.jaccard_distances(encoding, eps, memory_budget_mb)


def dbscan(graph: csr_array | SparseRows, min_samples: int = 4) -> Tensor:
    """Cluster a symmetric graph that holds every pair within eps, and every image's distance to itself.

    A core image has at least ``min_samples`` neighbours, itself included. Core images that are neighbours
    share a cluster; clusters are numbered by their first core image; another image joins the lowest-numbered
    cluster among its core neighbours, as in the sequential algorithm (Ester et al., KDD 1996).

    Args:
        graph: (N, N) scipy csr_array or SparseRows; only the stored positions matter.
        min_samples: neighbours that make an image a core image.

    Returns:
        (N,) int64 labels, -1 = outlier, on the device of the graph.

    Example:
        >>> from scipy.sparse import csr_array
        >>> pairs = csr_array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]])
        >>> dbscan(pairs, min_samples=3).tolist()
        [0, 0, 0, -1]
    """
    return _backend_of(graph).dbscan.dbscan(graph, min_samples)
