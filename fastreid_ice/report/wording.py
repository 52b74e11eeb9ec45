"""Numbers with their nouns."""

from __future__ import annotations


def count(amount: int, one: str, more: str | None = None) -> str:
    """An amount with its noun.

    Example:
        >>> count(1, "query", "queries"), count(1200, "image")
        ('1 query', '1,200 images')
    """
    return f"{amount:,} {one if amount == 1 else more or one + 's'}"
