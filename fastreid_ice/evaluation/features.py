"""The features of the query and gallery images, in blocks of rows, normalised in place. Never imports fastreid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastreid_ice.camera_normalization import normalize_cameras

# Size of a block of rows; at most one block is not full.
BLOCK_BYTES = 64 * 2**20


class FeatureRows:
    """(N, D) float32 rows on one device, appended batch by batch. Growing never copies what is there."""

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []
        self._rows = 0

    @classmethod
    def of(cls, features: Tensor) -> FeatureRows:
        """The rows of one matrix (N, D), without a copy if it is contiguous float32."""
        rows = cls()
        rows._blocks, rows._rows = [features.detach().float().contiguous()], len(features)
        return rows

    def __len__(self) -> int:
        return self._rows

    @property
    def device(self) -> torch.device:
        return self._blocks[0].device

    def append(self, features: Tensor) -> None:
        """Copy (b, D) features of any float type; the first batch decides about the device."""
        while len(features):
            free = sum(len(block) for block in self._blocks) - self._rows
            if free == 0:
                size = max(len(features), BLOCK_BYTES // (4 * features.shape[1]))
                device = self._blocks[0].device if self._blocks else features.device
                self._blocks.append(torch.empty(size, features.shape[1], dtype=torch.float32, device=device))
                free = size
            taken = min(free, len(features))
            block = self._blocks[-1]
            block[len(block) - free : len(block) - free + taken] = features[:taken].detach()
            self._rows += taken
            features = features[taken:]

    def parts(self, start: int = 0, stop: int | None = None) -> list[Tensor]:
        """Views that together are the rows start..stop."""
        stop = self._rows if stop is None else stop
        views, first = [], 0
        for block in self._blocks:
            view = block[max(start - first, 0) : max(min(stop - first, len(block)), 0)]
            if len(view):
                views.append(view)
            first += len(block)
        return views

    def matrix(self, start: int = 0, stop: int | None = None) -> Tensor:
        """The rows start..stop as one matrix; a copy if they lie in several blocks."""
        views = self.parts(start, stop)
        return views[0] if len(views) == 1 else torch.cat(views)

    def check_finite(self, names: Sequence[str] | None = None, num_query: int = 0) -> None:
        """Raise ValueError for a NaN or infinite feature; the message names the first such image.

        Args:
            names: N file names, optional.
            num_query: the first rows are the queries, the others the gallery.
        """
        norms = torch.cat([torch.linalg.vector_norm(part, dim=1) for part in self.parts()])
        bad = (~norms.isfinite()).nonzero().flatten().tolist()
        if not bad:
            return
        kind = f"query {bad[0]}" if bad[0] < num_query else f"gallery image {bad[0] - num_query}"
        name = f" ({names[bad[0]]})" if names is not None else ""
        raise ValueError(
            f"The features of {len(bad)} of {len(self)} images are NaN or infinite, first of {kind}{name}. The network "
            "that made them has diverged or the image cannot be read; lower SOLVER.BASE_LR or check the image."
        )

    def normalize(self) -> None:
        """Give each row unit length, in place; a zero row stays zero."""
        for part in self.parts():
            F.normalize(part, dim=1, out=part)

    def normalize_cameras(self, cameras: Tensor) -> None:
        """Subtract each camera's mean and divide by its standard deviation, per dimension, in place; then unit length.

        See :func:`fastreid_ice.camera_normalization.normalize_cameras`.

        Args:
            cameras: (N,) int64.
        """
        normalize_cameras(self.parts(), cameras)
