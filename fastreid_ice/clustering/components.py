"""DBSCAN on a sparse graph, in a compiled CPU kernel; see :func:`fastreid_ice.clustering.dbscan`."""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def _root(parents, image):
    while parents[image] != image:
        parents[image] = parents[parents[image]]
        image = parents[image]
    return image


@njit(cache=True, nogil=True)
def label_graph(indptr, indices, min_samples):
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
