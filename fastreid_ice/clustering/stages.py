"""The stages after the neighbour search as public functions, for both kinds of sparse matrix."""

import numpy as np
import torch

from . import device
from .components import label_graph
from .jaccard import jaccard_rows
from .reciprocal import encode


def k_reciprocal_encoding(features, ranks, similarities, k1=30, k2=6, backend="auto", memory_budget_mb=256):
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
    if backend == "torch" or (backend == "auto" and features.device.type != "cpu"):
        return device.encode_on_device(features, ranks, k1, k2, memory_budget_mb)
    return encode(features.numpy(), ranks.numpy().astype(np.int32), similarities.numpy(), k1, k2)


def jaccard_distances(encoding, eps=0.55, memory_budget_mb=256):
    """Jaccard distances d = 1 - m / (2 - m) <= eps between rows, m = sum of their element-wise minima.

    Args:
        encoding: what :func:`k_reciprocal_encoding` returns.
        eps: largest distance that is kept, in (0, 1).
        memory_budget_mb: bounds the scratch memory of the torch path, in MiB.

    Returns:
        (N, N) sparse matrix of the same kind, symmetric; distances of 0, such as the diagonal, are stored.
    """
    if isinstance(encoding, device.SparseRows):
        return device.jaccard_on_device(encoding, eps, memory_budget_mb)
    return jaccard_rows(encoding, eps)


def dbscan(graph, min_samples=4):
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
    if isinstance(graph, device.SparseRows):
        return device.dbscan_on_device(graph, min_samples)
    return torch.from_numpy(label_graph(graph.indptr, graph.indices, min_samples))
