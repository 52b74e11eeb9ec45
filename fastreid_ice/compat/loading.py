"""Repairs of the loaders."""

from __future__ import annotations

import multiprocessing
import queue
import warnings
from collections.abc import Iterator
from typing import Any

from fastreid_ice.compat.device import device_in_use
from fastreid_ice.compat.rebinding import replace, upstream, wrap

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from fastreid_ice.cores import usable_cores
from fastreid_ice.image_files import as_rgb


class DeviceLoader(DataLoader):
    """Stands in for fastreid's ``DataLoaderX``: its batches go where the model is, to a GPU or nowhere.

    The device is asked for when the loading begins, since fastreid builds its loaders before its model.

    Workers are forked where the system can: in a spawned rank they would be spawned too, and each would import torch
    and fastreid anew, several seconds per worker and loader, in every epoch. On the CPU there are no more workers than
    cores: data/build.py:124 asks for four in every evaluation, which only cost time where the cores compute as well.

    Args:
        local_rank: the GPU of the batches, where ``MODEL.DEVICE`` names none.
        kwargs: those of torch's ``DataLoader``.
    """

    def __init__(self, local_rank: int, **kwargs: Any):
        if kwargs.get("num_workers", 0) > 0 and "fork" in multiprocessing.get_all_start_methods():
            kwargs.setdefault("multiprocessing_context", "fork")
        with warnings.catch_warnings():  # the number of workers is settled when the loading begins
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            super().__init__(**kwargs)
        self._local_rank = local_rank
        self._batches: DeviceBatches | None = None

    def __iter__(self) -> Any:
        device = device_in_use()
        if device.type != "cuda":
            self.pin_memory = False
            self.num_workers = min(self.num_workers, usable_cores())
            return super().__iter__()
        index = self._local_rank if device.index is None else device.index
        self._batches = DeviceBatches(super().__iter__(), torch.device("cuda", index))
        return self._batches

    def shutdown(self) -> None:
        """End the thread that loads ahead; the workers end with it, or with the iterator of a plain loader."""
        if self._batches is not None:
            self._batches.close()


class DeviceBatches:
    """The batches of an iterator on a GPU, ten ahead in a thread, one ahead on the device.

    As data/data_utils.py:142-197, but every tensor is marked as used by the stream that it is handed to. Upstream
    leaves that out, so that the memory of a batch may be filled anew while the model still computes on it.
    """

    def __init__(self, batches: Iterator[dict], device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._thread = upstream("data.data_utils").BackgroundGenerator(batches, device.index)
        self._ahead = self._load()

    def __iter__(self) -> DeviceBatches:
        return self

    def __next__(self) -> dict:
        batch = self._ahead
        if batch is None:
            raise StopIteration
        consumer = torch.cuda.current_stream(self._device)
        consumer.wait_stream(self._stream)  # the copies are done before the model reads them
        for value in batch.values():
            if isinstance(value, Tensor):
                value.record_stream(consumer)  # and their memory is free only when the model has read them
        self._ahead = self._load()
        return batch

    def _load(self) -> dict | None:
        """Begin to copy the next batch; only tensors at its top level are moved, as upstream."""
        batch = next(self._thread, None)
        if batch is None:
            return None
        with torch.cuda.stream(self._stream):
            return {
                key: value.to(device=self._device, non_blocking=True) if isinstance(value, Tensor) else value
                for key, value in batch.items()
            }

    def close(self) -> None:
        """End the thread, and drop what it had loaded."""
        self._thread.exit_event.set()
        self._ahead = None
        while self._thread.is_alive():  # it may be waiting for a place in its queue
            try:
                self._thread.queue.get(timeout=0.1)
            except queue.Empty:
                continue


def repair_reading() -> None:
    """data/data_utils.py:17: without a format, palettes are read as their indices, and opacity is a fourth colour.

    Every picture has three colours of a byte each now, as the other views of a file have them (checks, sheets).
    """

    @wrap(upstream("data.data_utils"), "read_image", upstream("data.common"))
    def read_image(original, file_name, format=None):
        if format is not None:
            return original(file_name, format)
        with Image.open(file_name) as opened:
            return as_rgb(opened)


def repair_loader_device() -> None:
    """data/data_utils.py:127,151,190: ``DataLoaderX`` needs CUDA, or blocks for ever, and refills what is in use."""
    replace(upstream("data.data_utils"), "DataLoaderX", lambda original: DeviceLoader, upstream("data.build"))


def repair_loader_thread() -> None:
    """data/data_utils.py:126-137: an exception in the loader's thread leaves the training waiting for ever.

    The exception now travels through the queue and is raised where the batch is asked for. Behind the last batch every
    further call ends too, instead of waiting for a thread that is gone.
    """
    generator = upstream("data.data_utils").BackgroundGenerator

    @wrap(generator, "run")
    def run(original, self):
        try:
            original(self)
        except Exception as error:  # whatever it is, the consumer must see it
            self.queue.put(error)
            self.queue.put(None)

    @wrap(generator, "next")
    def next_item(original, self):
        item = self.queue.get()
        if item is None:
            self.queue.put(None)
            raise StopIteration
        if isinstance(item, Exception):
            raise item
        return item
