"""Numbers for names: the same for the same names, numbers within names by size."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np


def number_names(values: Sequence[Any]) -> np.ndarray:
    """(N,) int64: the place of each name or whole number among the different ones.

    Number query and gallery together, so that both give an identity the same number.

    Example:
        >>> number_names(["cam10", "cam9", "cam10"]).tolist()
        [1, 0, 1]
    """
    place = {value: number for number, value in enumerate(sorted(set(values), key=natural_key))}
    return np.array([place[value] for value in values], dtype=np.int64)


def natural_key(value: Any) -> tuple:
    """A key by which "cam9" comes before "cam10"; different values have different keys, so that no order is chance."""
    if not isinstance(value, str):
        return (), value
    parts = re.split(r"(\d+)", value)
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), value
