"""DBSCAN on a sparse graph, in a compiled CPU kernel."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from fastreid_ice.compiled import njit


def dbscan(graph: csr_array, min_samples: int) -> Tensor:
    """Labels (N,) int64, -1 = outlier; see :func:`fastreid_ice.clustering.dbscan`."""
    return torch.from_numpy(_label_graph(graph.indptr, graph.indices, min_samples))


@njit(cache=True, nogil=True)
def _root(parents: np.ndarray, image: int) -> int:
    while parents[image] != image:
        parents[image] = parents[parents[image]]
        image = parents[image]
    return image


@njit(cache=True, nogil=True)
def _label_graph(indptr: np.ndarray, indices: np.ndarray, min_samples: int) -> np.ndarray:
    """Labels (N,) int64 of a symmetric CSR graph with its diagonal; -1 = outlier."""
    images = indptr.shape[0] - 1
    core = indptr[1:] - indptr[:-1] >= min_samples
    parents = np.arange(images)
    for i in range(images):
        if not core[i]:
            continue
        for entry in range(indptr[i], indptr[i + 1]):
            j = indices[entry]
            if j < i and core[j]:
                a, b = _root(parents, i), _root(parents, j)
                parents[max(a, b)] = min(a, b)  # the root of a component is its first core image
    labels = np.full(images, -1, np.int64)
    clusters = 0
    for i in range(images):
        if core[i] and parents[i] == i:
            labels[i] = clusters
            clusters += 1
    for i in range(images):
        if core[i]:
            labels[i] = labels[_root(parents, i)]
    return _join_borders(indptr, indices, core, labels)


@njit(cache=True, nogil=True)
def _join_borders(indptr: np.ndarray, indices: np.ndarray, core: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Give each image beside a core image the lowest label among its core neighbours."""
    for i in range(core.shape[0]):
        if core[i]:
            continue
        for entry in range(indptr[i], indptr[i + 1]):
            j = indices[entry]
            if core[j] and (labels[i] < 0 or labels[j] < labels[i]):
                labels[i] = labels[j]
    return labels
