"""Counts what a piece of code dispatches: operations that compute, and those for which the host waits."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Within ``with Operations() as counted:`` operations are counted by name in ``counted.names``.

    Views are left out, for they compute nothing and start no kernel. A foreach operation counts once: on a GPU it is a
    kernel or a few, on the CPU it goes from tensor to tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return sum(self.names.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if not is_view(func):
            self.names[str(func)] += 1
        return func(*args, **(kwargs or {}))


def is_view(func: Any) -> bool:
    """Whether the result shares its memory with an argument and writes nothing."""
    aliases = [returned.alias_info for returned in func._schema.returns]
    return "_unsafe_view" in str(func) or any(alias is not None and not alias.is_write for alias in aliases)
