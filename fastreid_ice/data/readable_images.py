"""Images that are read one by one, or taken from the cache of decoded ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from fastreid.data.common import CommDataset
from torchvision import transforms as T

from fastreid_ice.data.image_cache import ResizedImages
from fastreid_ice.data.views import takes_arrays, without_resize


class ReadableImages(CommDataset):
    """fastreid's dataset with an error that names the file that cannot be read.

    Args:
        items: (path, identity, camera) of each image.
        transform: of a picture; None: pictures are given as they are.
        relabel: number identities and cameras of these items.
        resized: the images behind the resize that ``transform`` begins with, which is then left out.
    """

    def __init__(
        self,
        items: Sequence[tuple],
        transform: T.Compose | None,
        relabel: bool = False,
        resized: ResizedImages | None = None,
    ):
        super().__init__(items, transform, relabel)
        self.resized = resized
        if resized is not None and transform is not None:
            self.transform = without_resize(transform)
        self.arrays = self.transform is not None and takes_arrays(self.transform)  # no picture has to be made

    def __getitem__(self, index: Any) -> dict[str, Any]:
        if self.resized is not None:
            return self._kept(index)
        try:
            return super().__getitem__(index)
        except Exception as error:
            path = self.img_items[index][0]
            raise RuntimeError(f"{path} cannot be read as an image ({error}). Repair or remove the file.") from error

    def _kept(self, index: int) -> dict[str, Any]:
        """The item from the resized images; without the way through a picture where only a tensor is made of it."""
        assert self.resized is not None and not self.relabel
        path, identity, camera = self.img_items[index][:3]
        image = self.resized.array(index) if self.arrays else self.resized[index]
        if self.transform is not None:
            image = self.transform(image)
        return {"images": image, "targets": identity, "camids": camera, "img_paths": path}
