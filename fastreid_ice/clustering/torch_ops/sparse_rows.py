"""A sparse matrix in plain tensors, and the operations on sorted keys that make one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Rough number of bytes alive per expanded entry: keys, sorted keys, their order, values and copies of these.
BYTES_PER_ENTRY = 64


class SparseRows(NamedTuple):
    """A square sparse matrix in rows, columns sorted; plain tensors, as torch's own CSR tensors are in beta.

    Attributes:
        indptr: (N + 1,) int64, where each row's entries begin.
        indices: (E,) int64, their columns.
        values: (E,) float32.
    """

    indptr: Tensor
    indices: Tensor
    values: Tensor


def from_keys(keys: Tensor, values: Tensor, images: int) -> SparseRows:
    """Sorted keys i * N + j (E,) int64 and their values (E,) float32 -> SparseRows."""
    sizes = torch.bincount(keys // images, minlength=images)
    return SparseRows(torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]), keys % images, values)


def expand_ranges(bounds: Tensor) -> tuple[Tensor, Tensor]:
    """The positions of ranges, one behind the other: (M, 2) begins and ends -> owner (P,), position (P,), int64.

    Example:
        >>> [part.tolist() for part in expand_ranges(torch.tensor([[5, 7], [0, 0], [2, 3]]))]
        [[0, 0, 2], [5, 6, 2]]
    """
    sizes = bounds[:, 1] - bounds[:, 0]
    owner = torch.repeat_interleave(sizes)
    shift = bounds[:, 0] - (sizes.cumsum(0) - sizes)
    return owner, shift[owner] + torch.arange(len(owner), device=bounds.device)


def sum_by_key(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Add the values of equal keys: the keys sorted, each once, and their sums."""
    keys, order = keys.sort(stable=True)
    keys, sizes = keys.unique_consecutive(return_counts=True)
    return keys, torch.segment_reduce(values[order], "sum", lengths=sizes)
