"""Images decoded and resized once (``DATALOADER.CACHE``): the pixels that would be made anew in every epoch."""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import numpy as np
import PIL
from fastreid.config import CfgNode
from fastreid.data.data_utils import read_image
from fastreid.utils import comm
from PIL import Image

from fastreid_ice.cores import usable_cores
from fastreid_ice.data.views import resize_of
from fastreid_ice.errors import one_line
from fastreid_ice.files import flush_to_disk, remove_leftovers, replacing

logger = logging.getLogger(__name__)

KINDS = ("none", "ram", "disk")
VERSION = 2  # 1 kept palettes' indices
BLOCK = 256  # images that are decoded before they are written
ABANDONED = 3600.0  # seconds after which a temporary file that nobody writes to is nobody's


class ResizedImages:
    """Pixels of N images, (N, H, W, 3) uint8, that all workers of a loader share.

    Args:
        pixels: of memory that forked processes share, or mapped from a file.
        file: from which they are mapped; a spawned worker maps it too, instead of copying all.
        first: number of the first image; those before it are not here.
    """

    def __init__(self, pixels: np.ndarray, file: Path | None = None, first: int = 0):
        self.pixels = pixels
        self._file = file
        self._first = first

    def __len__(self) -> int:
        return len(self.pixels)

    def array(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8, not a copy."""
        return self.pixels[index - self._first]

    def __getitem__(self, index: int) -> Image.Image:
        """A copy, as a picture."""
        return Image.fromarray(self.array(index))

    def __reduce__(self) -> tuple:
        return (_map, (self._file,)) if self._file is not None else (ResizedImages, (self.pixels, None, self._first))


class ImageCache:
    """``DATALOADER.CACHE`` for one list of images.

    none: there is none; images are decoded whenever they are asked for.
    ram: in memory that the workers of this process share. Other processes have their own.
    disk: in a file of ``DATALOADER.CACHE_DIR``, mapped into memory, which all processes of a machine share and later
        runs find again. Its name tells of which files it was made, each with its size and time: when one of them
        changes, another is made, and it is removed.

    A picture that is left of its resize is equal bit for bit, whether from here or decoded anew. One array serves all
    transforms that begin with the same resize. All images are decoded when it is first asked for.

    Args:
        cfg: its DATALOADER node and OUTPUT_DIR.
        paths: of the images, by their numbers.
        share: consecutive numbers of the images that this process asks for, of which ``ram`` keeps no others. Default:
            all.

    Note:
        :meth:`resized` is a collective with ``disk``: the first process of a machine makes the file.
    """

    def __init__(self, cfg: CfgNode, paths: Sequence[str], share: Sequence[int] | None = None):
        self._kind = cfg.DATALOADER.CACHE
        self._folder = Path(cfg.DATALOADER.CACHE_DIR or Path(cfg.OUTPUT_DIR) / "image_cache").expanduser()
        self._threads = max(1, min(cfg.DATALOADER.NUM_WORKERS, usable_cores()))
        self._paths = tuple(paths)
        self._first = share[0] if share else 0
        self._size = len(self._paths) if share is None else len(share)
        self._made: dict[tuple, ResizedImages] = {}

    def resized(self, transform: Any) -> ResizedImages | None:
        """The images behind the resize that a transform begins with; None without a cache.

        Raises:
            ValueError: it does not begin with a resize.
            RuntimeError: an image cannot be read; names it.
        """
        if self._kind == "none":
            return None
        resize = resize_of(transform)
        key = (tuple(resize.size), str(resize.interpolation))
        if key not in self._made:
            make = self._in_memory if self._kind == "ram" else self._on_disk
            self._made[key] = make(resize)
        return self._made[key]

    def _in_memory(self, resize: Any) -> ResizedImages:
        start = time.perf_counter()
        shape = (self._size, *resize.size, 3)
        # Shared with forked workers; not limited, as /dev/shm is in a container.
        memory = mmap.mmap(-1, max(1, int(np.prod(shape))))
        pixels: np.ndarray = np.frombuffer(memory, np.uint8)[: int(np.prod(shape))].reshape(shape)
        for first, block in self._decoded(resize, self._paths[self._first : self._first + self._size]):
            pixels[first : first + len(block)] = block
        _log(pixels, "memory", start)
        pixels.flags.writeable = False
        return ResizedImages(pixels, first=self._first)

    def _on_disk(self, resize: Any) -> ResizedImages:
        path = self._folder / self._file_name(resize)
        if comm.get_local_rank() == 0:
            remove_leftovers(self._folder, (f"{path.name[:-20]}*.npy",), older_than=ABANDONED)
            if not self._is_whole(path, resize):
                self._write(path, resize)
        comm.synchronize()
        return _map(path)

    def _file_name(self, resize: Any) -> str:
        """Of the images' paths, then of their sizes and times: two files that differ in the latter only follow."""
        names, states = hashlib.sha256(), hashlib.sha256()
        names.update(repr((VERSION, PIL.__version__, resize.size, str(resize.interpolation))).encode())
        for path in self._paths:
            state = os.stat(path)
            names.update(os.path.abspath(path).encode("utf-8", "surrogateescape") + b"\0")
            states.update(f"{state.st_size} {state.st_mtime_ns}\n".encode())
        height, width = resize.size
        return f"images_{height}x{width}_{names.hexdigest()[:16]}_{states.hexdigest()[:15]}.npy"

    def _is_whole(self, path: Path, resize: Any) -> bool:
        if not path.is_file():
            return False
        try:
            pixels = _map(path).pixels
        except (OSError, ValueError) as error:
            logger.warning("The cache %s is damaged and made anew: %s", path, one_line(error))
            return False
        logger.info("The decoded images of an earlier run are in %s", path)
        return pixels.shape == (len(self._paths), *resize.size, 3) and pixels.dtype == np.uint8

    def _write(self, path: Path, resize: Any) -> None:
        start = time.perf_counter()
        with replacing(path) as temporary:
            with open(temporary, "wb") as file:
                _write_header(file, (len(self._paths), *resize.size, 3))
                for _, block in self._decoded(resize, self._paths):
                    file.write(block.tobytes())
            flush_to_disk(temporary)
        for other in self._folder.glob(f"{path.name[:-20]}_*.npy"):
            if other != path:
                with suppress(OSError):  # another run may have removed it, or may use it on a system that minds
                    other.unlink()
        _log(_map(path).pixels, str(path), start)

    def _decoded(self, resize: Any, paths: Sequence[str]) -> Iterator[tuple[int, np.ndarray]]:
        """(place of the first, (n, H, W, 3) uint8) of images, in blocks."""
        with ThreadPoolExecutor(self._threads) as pool:
            for first in range(0, len(paths), BLOCK):
                yield first, np.stack(list(pool.map(_resizer(resize), paths[first : first + BLOCK])))


def _resizer(resize: Any) -> Callable[[str], np.ndarray]:
    def pixels(path: str) -> np.ndarray:
        try:
            return np.asarray(resize(read_image(path)))
        except Exception as error:
            raise RuntimeError(f"{path} cannot be read as an image ({error}). Repair or remove the file.") from error

    return pixels


def _map(path: Path) -> ResizedImages:
    return ResizedImages(np.load(path, mmap_mode="r"), path)


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _log(pixels: np.ndarray, place: str, start: float) -> None:
    seconds, size = time.perf_counter() - start, pixels.nbytes / 2**20
    logger.info("Decoded %d images into %s: %.0f MB in %.1f s", len(pixels), place, size, seconds)
