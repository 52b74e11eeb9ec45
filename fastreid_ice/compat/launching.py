"""Repairs of the launcher: the backend by the device, and processes that another launcher has started."""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from fastreid_ice.compat.device import device_in_use, use_device
from fastreid_ice.compat.rebinding import upstream, wrap

import torch
import torch.distributed as dist

from fastreid_ice.cores import usable_cores

logger = logging.getLogger(__name__)

# Others wait for rank 0 while it clusters or ranks, longer than the ten minutes after which NCCL ends the run.
TIMEOUT = timedelta(hours=2)


def repair_launch() -> None:
    """engine/launch.py:64,77,81,91: several processes need CUDA and NCCL, and can only be spawned.

    Models on the CPU run on gloo. A process that torchrun (or another launcher) has started joins its group.
    """
    module, package = upstream("engine.launch"), upstream("engine")

    @wrap(module, "launch", package)
    def launch(
        original, main_func, num_gpus_per_machine, num_machines=1, machine_rank=0, dist_url=None, args=()
    ) -> None:
        use_device(requested_device(args))
        if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
            return _run_as_started(main_func, num_gpus_per_machine, args)
        on_gpu = device_in_use().type == "cuda"
        if on_gpu and num_gpus_per_machine > torch.cuda.device_count():
            raise RuntimeError(
                f"--num-gpus is {num_gpus_per_machine}, but torch sees {torch.cuda.device_count()} on this machine. "
                "Ask for fewer, or set MODEL.DEVICE cpu."
            )
        module._distributed_worker = nccl_worker if on_gpu else gloo_worker
        return original(main_func, num_gpus_per_machine, num_machines, machine_rank, dist_url, args)


def requested_device(args: Sequence[Any]) -> str | torch.device:
    """``MODEL.DEVICE`` as the parsed command line among ``args`` asks for it, else the device in use.

    Its ``opts`` count before its ``config_file``, as in every training script of fastreid. What cannot be read is left
    to the script to complain of.
    """
    try:
        device = _named_device(args)
        torch.device(device)
        return device
    except Exception:  # whatever is wrong with a file or a name
        return device_in_use()


def _named_device(args: Sequence[Any]) -> str | torch.device:
    for arguments in args:
        opts = list(getattr(arguments, "opts", None) or [])
        for key, value in reversed(list(zip(opts[::2], opts[1::2]))):
            if key == "MODEL.DEVICE":
                return value
        config_file = getattr(arguments, "config_file", "")
        if config_file and Path(config_file).is_file():
            config = upstream("config").CfgNode.load_yaml_with_base(config_file)
            return config.get("MODEL", {}).get("DEVICE", device_in_use())
    return device_in_use()


def gloo_worker(
    local_rank: int,
    main_func: Callable,
    world_size: int,
    processes_per_machine: int,
    machine_rank: int,
    dist_url: str,
    args: Sequence[Any],
) -> None:
    """What engine/launch.py:70-103 does, on the CPU. Run in each spawned process, which imports the repairs by it."""
    use_device("cpu")
    rank = machine_rank * processes_per_machine + local_rank
    with _process_group("gloo", dist_url, rank, world_size, processes_per_machine):
        main_func(*args)


def nccl_worker(
    local_rank: int,
    main_func: Callable,
    world_size: int,
    processes_per_machine: int,
    machine_rank: int,
    dist_url: str,
    args: Sequence[Any],
) -> None:
    """What engine/launch.py:70-103 does; but a rank chooses its GPU first, so that it opens no context on GPU 0."""
    torch.cuda.set_device(local_rank)
    use_device(torch.device("cuda", local_rank))
    rank = machine_rank * processes_per_machine + local_rank
    with _process_group("nccl", dist_url, rank, world_size, processes_per_machine):
        main_func(*args)


def _run_as_started(main_func: Callable, num_gpus: int, args: Sequence[Any]) -> None:
    """Join the group that RANK, WORLD_SIZE and LOCAL_RANK describe, as torchrun sets them for each process."""
    rank, world_size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", num_gpus))
    if local_rank >= processes or world_size % processes:
        raise ValueError(
            f"RANK is {rank}, WORLD_SIZE {world_size} and LOCAL_RANK {local_rank}, but this machine is said to have "
            f"{processes} processes. Set LOCAL_WORLD_SIZE, or --num-gpus, to how many each machine has."
        )
    logger.info("Process %d of %d, started from outside: --num-gpus and --dist-url do not count", rank, world_size)
    threads = usable_cores() // processes
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1" and threads > 1:
        logger.info(
            "OMP_NUM_THREADS is 1, which torchrun sets where it is not set: what is computed on the CPU, some "
            "clusterings of the first process too, takes one core. OMP_NUM_THREADS=%d before torchrun shares all",
            threads,
        )
    worker = nccl_worker if device_in_use().type == "cuda" else gloo_worker
    worker(local_rank, main_func, world_size, processes, rank // processes, "env://", args)


@contextmanager
def _process_group(
    backend: str, init_method: str, rank: int, world_size: int, processes_per_machine: int
) -> Iterator[None]:
    """Be a member of the group of all processes, and of this machine's, for the duration of the block."""
    comm = upstream("utils.comm")
    if backend == "gloo" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, usable_cores() // processes_per_machine))
    done = False
    dist.init_process_group(backend, init_method=init_method, rank=rank, world_size=world_size, timeout=TIMEOUT)
    try:
        comm.synchronize()
        for first in range(0, world_size, processes_per_machine):
            group = dist.new_group(list(range(first, first + processes_per_machine)), timeout=TIMEOUT)
            if first <= rank < first + processes_per_machine:
                comm._LOCAL_PROCESS_GROUP = group
        yield
        comm.synchronize()  # who ends closes its connections, while another may still read what it was sent
        done = True
    finally:
        comm._LOCAL_PROCESS_GROUP = None
        comm._get_global_gloo_group.cache_clear()
        # NCCL's group ends when all leave it: a rank that failed would wait for those that wait for it, instead of
        # ending with its error, upon which its launcher ends the others.
        if done or backend != "nccl":
            leave_process_group()


def leave_process_group() -> None:
    """``destroy_process_group`` that comes to its end with every torch."""
    if torch_version() < (2, 8):
        keep_gloo_groups()
    dist.destroy_process_group()


def torch_version() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def keep_gloo_groups() -> None:
    """Leave the groups of gloo to the end of the process, as torch before 2.8 needs it.

    There their destructor waits for their threads with Python's lock held, and a thread that has yet to release a
    tensor waits for the lock: two processes that ended their group right after a collective (torch 2.3 and 2.6) never
    came to their end. NCCL's groups are left as they are; beside them fastreid has one of gloo.
    """
    for group, (backend, _) in dist.distributed_c10d._world.pg_map.items():
        if backend == "gloo":
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))
