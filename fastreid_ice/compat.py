"""Repairs of fastreid 1.4.0 for current Python, torch and numpy, with CUDA and without.

fastreid 1.4.0 is used as it is published; nothing of it is edited on disk. One function per repair, named after what
it repairs, with the upstream file and line. All are idempotent. They are applied when this module is imported, and
every module of this package that imports fastreid imports this one first. The processes that ``fastreid.engine.launch``
spawns import the training script, and so apply them too.
"""

from __future__ import annotations

import collections
import collections.abc
import functools
import importlib
import importlib.metadata
import importlib.util
import logging
import multiprocessing
import os
import subprocess
import sys
import types
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from fastreid_ice.files import replacing

logger = logging.getLogger(__name__)

FASTREID_VERSION = "1.4.0"
INSTALL_COMMAND = f"pip install --no-deps fastreid=={FASTREID_VERSION}"


def require_fastreid() -> None:
    """Check that the fastreid we repair is the one installed.

    ``fastreid.__version__`` says 1.3 in the 1.4.0 wheel, so the distribution's metadata are asked.

    Raises:
        ImportError: fastreid is missing or has another version; the message holds the command to run.
    """
    try:
        version = importlib.metadata.version("fastreid")
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(
            f"fastreid_ice needs fastreid {FASTREID_VERSION}, which is not installed. Run:\n    {INSTALL_COMMAND}\n"
            "(--no-deps because fastreid pins torch 1.13, which does not install on current Python)"
        ) from None
    if version != FASTREID_VERSION:
        raise ImportError(
            f"fastreid_ice needs fastreid {FASTREID_VERSION}, found {version}. Run:\n    {INSTALL_COMMAND}"
        )


@contextmanager
def _importable_fastreid():
    """Provide, for the duration of an import, the two names that Python and torch have dropped."""
    stub = None
    if importlib.util.find_spec("torch._six") is None:
        stub = types.ModuleType("torch._six")
        stub.string_classes = (str, bytes)
        sys.modules["torch._six"] = stub
    had_mapping = hasattr(collections, "Mapping")
    if not had_mapping:
        collections.Mapping = collections.abc.Mapping
    try:
        yield
    finally:
        if not had_mapping:
            del collections.Mapping
        if stub is not None:
            sys.modules.pop("torch._six", None)


def repair_imports() -> None:
    """data/build.py:11,12 and evaluation/testing.py:5 import ``torch._six`` and ``collections.Mapping``.

    The names exist only while those files are imported; no global patch stays behind.
    """
    with _importable_fastreid():
        for module in ("fastreid.data.build", "fastreid.evaluation.testing", "fastreid.engine.defaults"):
            importlib.import_module(module)
        importlib.import_module("fastreid.engine.launch")


def _rebind(old, new, *modules) -> None:
    """Replace the object ``old`` by ``new`` under every name that the modules give it."""
    for module in modules:
        for name, value in list(vars(module).items()):
            if value is old:
                setattr(module, name, new)


def _fastreid(name: str):
    """Return a fastreid module. Needed where a function shadows its module (``fastreid.engine.launch``)."""
    return importlib.import_module(f"fastreid.{name}")


def repair_optimizer() -> None:
    """engine/train_loop.py:248,346 with utils/params.py:65: with torch >= 2 training silently changes nothing.

    ``ContiguousParams`` needs ``zero_grad`` to zero its flat gradient buffer; since torch 2.0 ``zero_grad`` drops the
    gradient instead, and ``step`` finds nothing to do. The optimizer is built without ``ContiguousParams``.
    """
    build, defaults, package = _fastreid("solver.build"), _fastreid("engine.defaults"), _fastreid("solver")
    original = build.build_optimizer
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def build_optimizer(cfg, model, contiguous=False):
        return original(cfg, model, contiguous=contiguous)

    _rebind(original, build_optimizer, build, defaults, package)


def repair_loss_logging() -> None:
    """engine/train_loop.py:271: the losses are read on a new CUDA stream that does not wait for their computation."""
    trainer = _fastreid("engine.train_loop").SimpleTrainer
    original = trainer._write_metrics
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def write_metrics(self, loss_dict, data_time):
        device = next(iter(loss_dict.values())).device
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
        original(self, loss_dict, data_time)

    trainer._write_metrics = write_metrics


class CpuDataLoader(torch.utils.data.DataLoader):
    """Stands in for fastreid's ``DataLoaderX`` (data/data_utils.py:151), which needs a CUDA stream.

    data/build.py:124 asks for four workers in every evaluation; more workers than cores only cost time on a machine
    that also computes on its cores.
    """

    def __init__(self, local_rank, **kwargs):
        kwargs["pin_memory"] = False
        kwargs["num_workers"] = min(kwargs.get("num_workers", 0), os.cpu_count() or 1)
        super().__init__(**_with_forked_workers(kwargs))

    def shutdown(self) -> None:
        """Nothing to stop: the workers of a plain loader end with its iterator."""


def repair_loader_without_cuda() -> None:
    """data/data_utils.py:127,151: ``DataLoaderX`` cannot be built, or blocks for ever, without CUDA."""
    if torch.cuda.is_available():
        return
    build, data_utils = _fastreid("data.build"), _fastreid("data.data_utils")
    _rebind(data_utils.DataLoaderX, CpuDataLoader, build, data_utils)


def _with_forked_workers(kwargs: dict) -> dict:
    """Loader arguments with forked workers where the system has them, unless another context is asked for."""
    if kwargs.get("num_workers", 0) > 0 and "fork" in multiprocessing.get_all_start_methods():
        kwargs.setdefault("multiprocessing_context", "fork")
    return kwargs


def repair_worker_start() -> None:
    """engine/launch.py:64 with data/data_utils.py:150: in a spawned rank the loader's workers are spawned too.

    Each of them then imports torch and fastreid anew, several seconds per worker and loader, in every epoch. They are
    forked, as in a run of one process.
    """
    loader = _fastreid("data.data_utils").DataLoaderX
    if loader is CpuDataLoader or hasattr(loader.__init__, "__wrapped__"):
        return
    original = loader.__init__

    @functools.wraps(original)
    def initialize(self, local_rank, **kwargs):
        original(self, local_rank, **_with_forked_workers(kwargs))

    loader.__init__ = initialize


def repair_loader_thread() -> None:
    """data/data_utils.py:126-137: an exception in the loader's thread leaves the training waiting for ever.

    The exception now travels through the queue and is raised where the batch is asked for. Behind the last batch every
    further call ends too, instead of waiting for a thread that is gone.
    """
    generator = _fastreid("data.data_utils").BackgroundGenerator
    original_run = generator.run
    if hasattr(original_run, "__wrapped__"):
        return

    @functools.wraps(original_run)
    def run(self):
        try:
            original_run(self)
        except Exception as error:  # whatever it is, the consumer must see it
            self.queue.put(error)
            self.queue.put(None)

    original_next = generator.next

    @functools.wraps(original_next)
    def next_item(self):
        item = self.queue.get()
        if item is None:
            self.queue.put(None)
            raise StopIteration
        if isinstance(item, Exception):
            raise item
        return item

    generator.run, generator.next = run, next_item


def repair_optional_cython() -> None:
    """evaluation/rank_cylib/__init__.py:15-20: a failing compilation ends the training before any checkpoint.

    Upstream runs PATH's ``python3`` and calls ``sys.exit(1)``. Here this interpreter compiles, and when it cannot
    (no Cython, no compiler, a read-only installation) evaluation/rank.py falls back to its Python implementation.
    """
    reid_evaluation, package = _fastreid("evaluation.reid_evaluation"), _fastreid("evaluation.rank_cylib")
    _rebind(package.compile_helper, compile_rank_evaluation, reid_evaluation, package)


def compile_rank_evaluation() -> bool:
    """Make fastreid's evaluation ready: compiled if that is possible, else in Python. Return which."""
    compiled = _compile_rank_evaluation()
    if not compiled:
        _repair_python_ranking()
    return compiled


def _repair_python_ranking() -> None:
    """evaluation/rank.py:120,156: the Python ranking fails when fewer than 50 gallery images are left for a query.

    Its curves then have different lengths. They are cut to the shortest, and continued with their last value.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no Cython, at import
        rank = _fastreid("evaluation.rank")
    original = rank.evaluate_py
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def evaluate_py(distmat, q_pids, g_pids, q_camids, g_camids, max_rank, use_metric_cuhk03):
        removed = (q_pids[:, None] == g_pids) & (q_camids[:, None] == g_camids)  # same person, same camera
        shortest = distmat.shape[1] - int(removed.sum(axis=1).max())
        ranked = min(max_rank, shortest)
        cmc, *others = original(distmat, q_pids, g_pids, q_camids, g_camids, ranked, use_metric_cuhk03)
        return np.pad(cmc, (0, max_rank - len(cmc)), mode="edge"), *others

    rank.evaluate_py = evaluate_py


def _compile_rank_evaluation() -> bool:
    """Compile fastreid's Cython evaluation with this interpreter if Cython is there; return whether it worked."""
    folder = Path(_fastreid("evaluation.rank_cylib").__file__).parent
    if importlib.util.find_spec("Cython") is None or not os.access(folder, os.W_OK):
        return False
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        last_line = (result.stderr.strip().splitlines() or ["no message"])[-1]
        logger.warning("fastreid's Cython evaluation did not compile (%s); the slower Python one is used", last_line)
    return result.returncode == 0


def gloo_worker(local_rank, main_func, world_size, processes_per_machine, machine_rank, dist_url, args) -> None:
    """What engine/launch.py:70-103 does, with gloo and without CUDA. Run in each spawned process."""
    import torch.distributed as dist

    comm = _fastreid("utils.comm")
    rank = machine_rank * processes_per_machine + local_rank
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes_per_machine))
    dist.init_process_group("gloo", init_method=dist_url, world_size=world_size, rank=rank)
    comm.synchronize()
    for machine in range(world_size // processes_per_machine):
        first = machine * processes_per_machine
        group = dist.new_group(list(range(first, first + processes_per_machine)))
        if machine == machine_rank:
            comm._LOCAL_PROCESS_GROUP = group
    try:
        main_func(*args)
    finally:
        dist.destroy_process_group()


def repair_launch_without_cuda() -> None:
    """engine/launch.py:77,81,91: several processes need CUDA and NCCL. Without CUDA they run on gloo."""
    if not torch.cuda.is_available():
        _fastreid("engine.launch")._distributed_worker = gloo_worker


def repair_ddp_without_cuda() -> None:
    """engine/defaults.py:210: DistributedDataParallel is given ``device_ids``, which a CPU module must not have.

    A subclass takes its place, so that the ``isinstance`` checks elsewhere keep working.
    """
    defaults = _fastreid("engine.defaults")
    original = defaults.DistributedDataParallel
    if original.__module__ == __name__:
        return

    class DistributedDataParallel(original):
        def __init__(self, module, device_ids=None, **kwargs):
            on_cpu = all(parameter.device.type == "cpu" for parameter in module.parameters())
            super().__init__(module, device_ids=None if on_cpu else device_ids, **kwargs)

    defaults.DistributedDataParallel = DistributedDataParallel


def repair_rerank() -> None:
    """utils/compute_dist.py:53,68: ``TEST.RERANK`` calls ``.cuda()`` and needs faiss-gpu.

    Without CUDA or with faiss-cpu the CPU search of the same function is asked for.
    """
    import faiss

    compute_dist = _fastreid("utils.compute_dist")
    original = compute_dist.compute_jaccard_distance
    if hasattr(original, "__wrapped__") and getattr(original, "repaired", False):
        return

    @functools.wraps(original)
    def compute_jaccard_distance(features, k1=20, k2=6, search_option=0, fp16=False):
        gpu_search = torch.cuda.is_available() and hasattr(faiss, "StandardGpuResources")
        return original(features, k1, k2, search_option if gpu_search else 3, fp16)

    compute_jaccard_distance.repaired = True
    compute_dist.compute_jaccard_distance = compute_jaccard_distance


class _TorchvisionTransforms:
    """torchvision.transforms with ``RandomAffine`` as data/transforms/build.py:81 calls it (torchvision <= 0.12)."""

    def __getattr__(self, name):
        import torchvision.transforms

        return getattr(torchvision.transforms, name)

    @staticmethod
    def RandomAffine(degrees, translate=None, scale=None, shear=None, resample=False, fillcolor=0):  # noqa: N802
        from torchvision.transforms import InterpolationMode, RandomAffine

        mode = InterpolationMode.BILINEAR if resample else InterpolationMode.NEAREST
        return RandomAffine(degrees, translate, scale, shear, interpolation=mode, fill=fillcolor)


def repair_affine() -> None:
    """data/transforms/build.py:81: ``INPUT.AFFINE`` passes arguments that torchvision has renamed."""
    build = _fastreid("data.transforms.build")
    if not isinstance(build.T, _TorchvisionTransforms):
        build.T = _TorchvisionTransforms()


def pixels_to_tensor(picture) -> torch.Tensor:
    """(H, W) or (H, W, C) picture or array -> (C, H, W) tensor; bytes become float32 in 0..255, as upstream."""
    pixels = np.array(picture)
    if pixels.dtype == bool:  # a picture of two colours
        pixels = pixels.astype(np.uint8) * 255
    tensor = torch.from_numpy(pixels[:, :, None] if pixels.ndim == 2 else pixels).permute(2, 0, 1).contiguous()
    return tensor.float() if tensor.dtype == torch.uint8 else tensor


def repair_to_tensor() -> None:
    """data/transforms/functional.py:46: pictures are read through torch's typed storages, which are to go.

    Each loader worker warned of it, in every epoch.
    """
    functional, transforms = _fastreid("data.transforms.functional"), _fastreid("data.transforms.transforms")
    if functional.to_tensor is not pixels_to_tensor:
        _rebind(functional.to_tensor, pixels_to_tensor, functional, transforms)


def repair_checkpointer() -> None:
    """utils/checkpoint.py:83,280: checkpoints are written in place and unpickled without restriction.

    A crash while saving left a half-written file that ``--resume`` then chose. Checkpoints are now written under a
    temporary name and renamed, and loaded with ``weights_only=True``.
    """
    checkpointer = _fastreid("utils.checkpoint").Checkpointer
    if checkpointer.save is not _save_checkpoint:
        checkpointer.save = _save_checkpoint
        checkpointer._load_file = _load_checkpoint
        checkpointer.tag_last_checkpoint = _tag_last_checkpoint


def _save_checkpoint(self, name, **kwargs):
    """Save model, checkpointables and ``kwargs`` as ``<save_dir>/<name>.pth``, whole or not at all."""
    if not self.save_dir or not self.save_to_disk:
        return
    data = {"model": self.model.state_dict()}
    data.update({key: _plain(obj.state_dict()) for key, obj in self.checkpointables.items()})
    data.update(kwargs)
    path = Path(self.save_dir) / f"{name}.pth"
    self.logger.info("Saving checkpoint to %s", path)
    with replacing(path) as temporary:
        torch.save(data, temporary)
    self.tag_last_checkpoint(path.name)


def _plain(state):
    """Counters (the milestones of MultiStepLR) as dicts: torch < 2.4 refuses to load them with ``weights_only``."""
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    return [_plain(value) for value in state] if isinstance(state, list) else state


def _tag_last_checkpoint(self, last_filename_basename):
    """Write the name of the newest checkpoint into ``<save_dir>/last_checkpoint``."""
    with replacing(Path(self.save_dir) / "last_checkpoint") as temporary:
        temporary.write_text(last_filename_basename)


def _load_checkpoint(self, path):
    """Load a checkpoint file; tensors and plain values only, so that a downloaded file cannot run code.

    A file that holds a bare state dict is taken for the model's; upstream fails on it with ``KeyError: 'model'``.
    """
    data = torch.load(path, map_location=torch.device("cpu"), weights_only=True)
    return data if "model" in data else {"model": data}


REPAIRS = (
    repair_imports,
    repair_optimizer,
    repair_loss_logging,
    repair_loader_without_cuda,
    repair_worker_start,
    repair_loader_thread,
    repair_optional_cython,
    repair_launch_without_cuda,
    repair_ddp_without_cuda,
    repair_rerank,
    repair_affine,
    repair_to_tensor,
    repair_checkpointer,
)


def apply() -> None:
    """Check fastreid's version and apply every repair. Calling it again changes nothing."""
    require_fastreid()
    for repair in REPAIRS:
        repair()


apply()
