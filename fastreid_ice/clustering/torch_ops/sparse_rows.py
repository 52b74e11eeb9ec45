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
        indices: (E,) int32, their columns (int64 from 2^31 images on).
        values: (E,) float32.
    """

    indptr: Tensor
    indices: Tensor
    values: Tensor


def index_type(count: int) -> torch.dtype:
    """The smallest type in which 0..count are numbers; half the memory of int64 nearly always.

    Example:
        >>> index_type(1_000_000), index_type(2**31)
        (torch.int32, torch.int64)
    """
    return torch.int32 if count < 2**31 else torch.int64


def from_keys(keys: Tensor, values: Tensor, images: int, rows: tuple[int, int] | None = None) -> SparseRows:
    """Sorted keys i * N + j (E,) int64 and their values (E,) float32 -> the rows (start, stop), default all."""
    start, stop = rows if rows is not None else (0, images)
    sizes = torch.bincount(keys // images - start, minlength=stop - start)
    return SparseRows(_begins(sizes), (keys % images).to(index_type(images)), values)


def stack_rows(parts: list[SparseRows]) -> SparseRows:
    """Join consecutive rows; ``parts`` is left empty, so that each goes as soon as it is copied."""
    sizes = torch.cat([part.indptr[1:] - part.indptr[:-1] for part in parts])
    indices = torch.cat([part.indices for part in parts])
    values = [part.values for part in parts]
    parts.clear()
    return SparseRows(_begins(sizes), indices, torch.cat(values))


def _begins(sizes: Tensor) -> Tensor:
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])


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
