"""Numbers as people are told them."""

from __future__ import annotations

import math


def count(amount: int, one: str, more: str | None = None) -> str:
    """An amount with its noun.

    Example:
        >>> count(1, "query", "queries"), count(1200, "image")
        ('1 query', '1,200 images')
    """
    return f"{amount:,} {one if amount == 1 else more or one + 's'}"


def percent(share: float) -> str:
    """A share in whole percent, rounded; 100 % is all, and 0 % none.

    Example:
        >>> percent(1), percent(399 / 400), percent(0.125), percent(0.001)
        ('100%', '99%', '12%', '1%')
    """
    rounded = round(100 * share)
    if rounded == 100:
        rounded = math.floor(100 * share)
    elif rounded == 0:
        rounded = math.ceil(100 * share)
    return f"{rounded}%"
