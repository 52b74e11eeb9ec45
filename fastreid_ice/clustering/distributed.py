"""Share the neighbour search among the ranks of a torch.distributed job."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


def in_group() -> bool:
    """Whether there are other ranks to share with."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_first() -> bool:
    """Whether this is rank 0, or the only process."""
    return not in_group() or dist.get_rank() == 0


def own_rows(images: int) -> tuple[int, int]:
    """(start, stop) of the rows that this rank searches: contiguous, in the order of the ranks; all without a group."""
    if not in_group():
        return 0, images
    size = -(-images // dist.get_world_size())
    start = min(dist.get_rank() * size, images)
    return start, min(start + size, images)


def gather_rows(part: Tensor, images: int) -> Tensor:
    """Concatenate the rows of all ranks: (n, K) on each -> (N, K) on all, on the device of ``part``."""
    size = -(-images // dist.get_world_size())
    whole = part.new_zeros(dist.get_world_size() * size, part.shape[1], device=_wire())
    start = dist.get_rank() * size
    whole[start : start + len(part)] = part.to(whole.device)
    gather_in_place(whole)
    return whole[:images].to(part.device)


def gather_in_place(whole: Tensor) -> None:
    """Complete a tensor in which each rank has written its share: equally many rows, in the order of the ranks.

    A list of the ranks' shares, put together behind it, would take the memory twice.

    Args:
        whole: (W n, ...) contiguous, on a device that the process group can carry; rows r n to (r + 1) n of rank r.
    """
    size = len(whole) // dist.get_world_size()
    start = dist.get_rank() * size
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name in newer torch
    gather(whole, whole[start : start + size])


def broadcast_labels(labels: Tensor | None, images: int) -> Tensor:
    """Give every rank the labels (N,) int64 of rank 0; the others pass None. Returns them on the CPU."""
    wire = labels.to(_wire()) if labels is not None else torch.empty(images, dtype=torch.int64, device=_wire())
    dist.broadcast(wire, src=0)
    return wire.cpu()


def broadcast_arrays(arrays: list[np.ndarray] | None) -> list[np.ndarray]:
    """Give every rank the arrays of rank 0; the others pass None."""
    described: list[list[tuple]] = [[(each.shape, each.dtype.str) for each in arrays or []]]
    dist.broadcast_object_list(described, src=0)
    received = arrays or [np.empty(shape, dtype) for shape, dtype in described[0]]
    for array in received:
        there = torch.from_numpy(array).to(_wire())
        dist.broadcast(there, src=0)
        if there.device.type != "cpu":
            array[...] = there.cpu().numpy()
    return received


def lowest(value: float) -> float:
    """The smallest of the ranks' values."""
    wire = torch.tensor([value], dtype=torch.float64, device=_wire())
    dist.all_reduce(wire, op=dist.ReduceOp.MIN)
    return wire.item()


def _wire() -> torch.device:
    """The device whose tensors the process group can carry."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
