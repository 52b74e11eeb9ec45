"""What torch makes while something runs."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Sizes(TorchDispatchMode):
    """Bytes of the memory behind each tensor that an operation gives, and the rows of each product of matrices.

    Attributes:
        made: bytes of what is new with an operation; what it writes in place, and views, are not.
        rows: of the first factor.
    """

    def __init__(self):
        super().__init__()
        self.made: list[int] = []
        self.rows: list[int] = []

    @property
    def largest(self) -> int:
        return max(self.made)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {each.untyped_storage().data_ptr() for each in args if isinstance(each, torch.Tensor)}
        for each in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(each, torch.Tensor) and each.untyped_storage().data_ptr() not in given:
                self.made.append(each.untyped_storage().nbytes())
        if function._schema.name == "aten::mm":
            self.rows.append(len(args[0]))
        return out
