"""Parts of Market-1501: one for choosing settings, one for ablations of many runs."""

from __future__ import annotations

from typing import Any

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset
from fastreid.data.datasets.market1501 import Market1501

# Every n-th identity of the training set, in the order of their names.
HELD_OUT = 4  # of Market1501Validation
LEFT_OUT = 2  # of Market1501Half

Items = list[tuple[str, Any, Any]]


def hold_out(items: Items, every: int = HELD_OUT) -> tuple[Items, Items, Items]:
    """Split labelled training images by identity.

    Args:
        items: (path, identity, camera).
        every: of the identities, sorted, the numbers every - 1, 2 every - 1, ... are held out.

    Returns:
        train: images of the other identities.
        query: the first image, by path, of each held-out identity under each camera.
        gallery: the other images of the held-out identities.

    Example:
        >>> images = [("a0", "x", 1), ("b0", "y", 1), ("b1", "y", 1), ("b2", "y", 2), ("c0", "z", 1)]
        >>> [[path for path, *_ in part] for part in hold_out(images, every=2)]
        [['a0', 'c0'], ['b0', 'b2'], ['b1']]
    """
    items = sorted(items)
    held_out = set(sorted({identity for _, identity, _ in items})[every - 1 :: every])
    query: Items = []
    gallery: Items = []
    seen = set()
    for item in items:
        if item[1] in held_out:
            first = item[1:] not in seen
            seen.add(item[1:])
            (query if first else gallery).append(item)
    return [item for item in items if item[1] not in held_out], query, gallery


@DATASET_REGISTRY.register()
class Market1501Validation(ImageDataset):
    """Market-1501's training images, a quarter of the identities held out as queries and gallery (:func:`hold_out`).

    Settings are chosen on it; the test set is for the final ones.
    """

    dataset_name = "market1501validation"

    def __init__(self, root: str = "datasets", **kwargs: Any):
        train, query, gallery = hold_out(Market1501(root=root).train)
        super().__init__(train, _plain(query), _plain(gallery), **kwargs)


@DATASET_REGISTRY.register()
class Market1501Half(ImageDataset):
    """Half of Market-1501's training identities, the same for everyone, and its whole query and gallery.

    For ablations: a run takes half the time of one on the whole set, and is scored by the usual protocol.
    """

    dataset_name = "market1501half"

    def __init__(self, root: str = "datasets", **kwargs: Any):
        whole = Market1501(root=root)
        train, _, _ = hold_out(whole.train, LEFT_OUT)
        super().__init__(train, whole.query, whole.gallery, **kwargs)


def _plain(items: Items) -> Items:
    """fastreid's training lists call identity 7 "market1501_7"; evaluation needs numbers."""
    return [(path, int(identity.split("_")[1]), int(camera.split("_")[1])) for path, identity, camera in items]
