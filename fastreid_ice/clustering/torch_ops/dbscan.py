"""DBSCAN on a sparse graph in torch index operations; see :func:`fastreid_ice.clustering.dbscan`."""

from __future__ import annotations

import torch
from torch import Tensor

from fastreid_ice.clustering.torch_ops.sparse_rows import SparseRows


def dbscan(graph: SparseRows, min_samples: int) -> Tensor:
    """Labels (N,) int64 on the graph's device; see :func:`fastreid_ice.clustering.dbscan`."""
    indptr, column, _ = graph
    column = column.long()  # it is an index again and again
    images = len(indptr) - 1
    sizes = indptr[1:] - indptr[:-1]
    core = sizes >= min_samples  # (N,)
    row = torch.repeat_interleave(sizes)
    inner = core[row] & core[column]
    first = _components(row[inner], column[inner], images)  # (N,) first core image of each component
    founders = core & (first == torch.arange(images, device=first.device))
    labels = torch.where(core, (founders.cumsum(0) - 1)[first], images)
    border = core[column] & ~core[row]
    labels = labels.scatter_reduce(0, row[border], labels[column[border]], "amin")
    return labels.masked_fill(labels == images, -1)


def _components(row: Tensor, column: Tensor, images: int) -> Tensor:
    """Lowest image of each connected component, by passing minima along edges and pointer jumping."""
    first = torch.arange(images, device=row.device)
    while True:
        lowest = first.scatter_reduce(0, row, first[column], "amin")  # of the neighbours
        lowest = lowest.scatter_reduce(0, first, lowest, "amin")  # handed to the root
        lowest = lowest[lowest]
        if torch.equal(lowest, first):
            return first
        first = lowest
