"""The loaders: where their batches go, and that nobody waits for ever. Stand-ins take the place of a GPU."""

import contextlib
import queue

from fastreid_ice.compat import device, loading

import pytest
import torch

from fastreid_ice import compat
from tests.conftest import ice_config


@pytest.fixture(autouse=True)
def unknown_device(monkeypatch):
    """Each test names the device itself."""
    monkeypatch.setattr(device, "_named", torch.device("cuda"))


@pytest.fixture
def gpu(monkeypatch):
    """torch.cuda as far as a loader sees it; yields the list of what happened, in order."""
    events = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            events.append(f"{self.name} waits for {other.name}")

    @contextlib.contextmanager
    def stream(current):
        events.append(f"on {current.name}")
        yield

    model = Stream("model")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(f"copies to {device}"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: model)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    return events


class GPUTensor(torch.Tensor):
    """Stays where it is and tells what was asked of it."""

    events: list

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    def to(self, device, non_blocking):
        self.events.append(f"copy {int(self)} to {device}")
        return self

    def record_stream(self, stream):
        self.events.append(f"{int(self)} used by {stream.name}")


def tensor(number, events):
    made = torch.tensor(number).as_subclass(GPUTensor)
    made.events = events
    return made


def loader(**options):
    return loading.DeviceLoader(0, dataset=range(5), batch_size=2, **options)


def test_fastreid_builds_this_loader():
    from fastreid.data import build, data_utils

    assert build.DataLoaderX is data_utils.DataLoaderX is loading.DeviceLoader


def test_without_cuda_the_batches_stay(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    batches = loader(pin_memory=True)
    assert [batch.tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    assert len(batches) == 3 and not batches.pin_memory
    batches.shutdown()


def test_no_more_workers_than_cores_on_the_cpu(monkeypatch):
    monkeypatch.setattr(loading, "usable_cores", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    batches = loader(num_workers=64)
    assert [batch.tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    assert batches.num_workers == 2 and batches.multiprocessing_context.get_start_method() == "fork"


def test_a_model_on_the_cpu_keeps_the_gpu_out_of_it(gpu):
    """The device of the model counts, not whether there is a GPU. The loader is built before the model, as upstream."""
    from fastreid.engine.defaults import build_model

    batches = loader(pin_memory=True)
    cfg = ice_config(
        MODEL__META_ARCHITECTURE="Baseline", MODEL__HEADS__NAME="EmbeddingHead", MODEL__BACKBONE__PRETRAIN=False
    )
    build_model(cfg)
    assert [batch.tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    assert not gpu and not batches.pin_memory


def test_a_batch_is_copied_ahead_and_its_memory_kept(gpu):
    """A batch waits for its copy, and its memory is not filled anew before the model has read it."""
    source = [{"images": tensor(i, gpu), "img_paths": [f"{i}.jpg"]} for i in range(2)]
    batches = loading.DeviceBatches(iter(source), torch.device("cuda", 1))
    assert gpu == ["on copies to cuda:1", "copy 0 to cuda:1"]
    gpu.clear()
    assert next(batches)["img_paths"] == ["0.jpg"]
    ready = ["model waits for copies to cuda:1", "0 used by model"]
    assert gpu == [*ready, "on copies to cuda:1", "copy 1 to cuda:1"]
    assert next(batches)["img_paths"] == ["1.jpg"] and next(batches, None) is None


@pytest.mark.parametrize(("named", "index"), [("cuda", 3), ("cuda:1", 1)])
def test_the_gpu_of_the_model_or_of_the_rank(gpu, named, index):
    compat.use_device(named)
    batches = loading.DeviceLoader(3, dataset=[1.0], collate_fn=lambda items: {"images": tensor(items[0], gpu)})
    assert len(list(batches)) == 1
    assert f"copy 1 to cuda:{index}" in gpu and "1 used by model" in gpu
    batches.shutdown()


def test_shutdown_ends_a_thread_that_waits_for_its_queue(gpu):
    batches = loading.DeviceBatches(iter([{"number": i} for i in range(1000)]), torch.device("cuda", 0))
    assert next(batches) == {"number": 0}
    batches.close()
    assert not batches._thread.is_alive() and next(batches, None) is None


def test_an_error_in_the_loader_thread_is_raised(monkeypatch, gpu):
    from fastreid.data.data_utils import BackgroundGenerator

    def batches():
        yield 1
        raise OSError("cannot read 7.jpg")

    generator = BackgroundGenerator(batches(), local_rank=0)
    monkeypatch.setattr(generator.queue, "get", lambda: queue.Queue.get(generator.queue, timeout=10))
    assert next(generator) == 1
    with pytest.raises(OSError, match="7.jpg"):
        next(generator)
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(generator)
    assert list(BackgroundGenerator(iter([1, 2]), local_rank=0)) == [1, 2]
