"""DBSCAN on a sparse graph of the distances within eps."""

import numpy as np
from numba import njit
from scipy import sparse


def dbscan(graph: sparse.csr_array, min_samples: int = 4) -> np.ndarray:
    """Cluster a symmetric graph that holds every pair within eps, and every image's distance to itself.

    A core image has at least ``min_samples`` neighbours, itself included. Core images that are neighbours
    share a cluster; clusters are numbered by their first core image; another image joins the lowest-numbered
    cluster among its core neighbours, as in the sequential algorithm of Ester et al. (KDD 1996).

    Args:
        graph: (N, N) csr_array, symmetric; only the stored positions matter, not the values.
        min_samples: neighbours that make an image a core image.

    Returns:
        (N,) int64 labels, -1 = outlier.

    Example:
        >>> pairs = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]])
        >>> dbscan(sparse.csr_array(pairs), min_samples=3).tolist()
        [0, 0, 0, -1]
    """
    return _label(graph.indptr, graph.indices, min_samples)


@njit(cache=True, nogil=True)
def _root(parents, image):
    while parents[image] != image:
        parents[image] = parents[parents[image]]
        image = parents[image]
    return image


@njit(cache=True, nogil=True)
def _label(indptr, indices, min_samples):
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
def _join_borders(indptr, indices, core, labels):
    """Give each image beside a core image the lowest label among its core neighbours."""
    for i in range(core.shape[0]):
        if core[i]:
            continue
        for entry in range(indptr[i], indptr[i + 1]):
            j = indices[entry]
            if core[j] and (labels[i] < 0 or labels[j] < labels[i]):
                labels[i] = labels[j]
    return labels
