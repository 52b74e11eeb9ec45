"""Where the acceptance checks run, and what they find."""

from __future__ import annotations

import gc
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, TypeVar

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import numpy as np
import torch
from fastreid.config import CfgNode

from fastreid_ice.config_files import load_config, locate

T = TypeVar("T")
DATA = Path(__file__).parents[1] / "tests" / "data"


@dataclass(frozen=True)
class Place:
    """A device and a folder. Off CUDA everything is small: the course is tested there, nothing is measured.

    Attributes:
        device: on which models and features lie.
        folder: for what the checks write.
    """

    device: torch.device
    folder: Path

    @classmethod
    def of(cls, device: str | None, folder: Path) -> Place:
        folder.mkdir(parents=True, exist_ok=True)
        return cls(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")), folder)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def pick(self, on_gpu: T, small: T) -> T:
        return on_gpu if self.on_gpu else small

    def config(self, name: str, **keys: Any) -> CfgNode:
        """A config of the package on this device, with random weights; ``A__B=1`` sets A.B."""
        opts: list[Any] = ["MODEL.DEVICE", str(self.device), "MODEL.BACKBONE.PRETRAIN", False]
        for key, value in keys.items():
            opts += [key.replace("__", "."), value]
        return load_config(locate(f"ICE/{name}"), opts)

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, function: Callable[[], object]) -> float:
        """Wall time, the device waited for."""
        self.wait()
        start = time.perf_counter()
        function()
        self.wait()
        return time.perf_counter() - start

    def peak_mb(self, function: Callable[[], object]) -> float:
        """Most device memory over what is held before, in MiB; nan off CUDA."""
        if not self.on_gpu:
            function()
            return math.nan
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        function()
        self.wait()
        return (torch.cuda.max_memory_allocated(self.device) - before) / 2**20

    def forget(self) -> None:
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()


@dataclass
class Findings:
    """What a check has found.

    Attributes:
        numbers: by name, for the record.
        failures: what was found and what was needed, in words.
    """

    numbers: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def note(self, name: str, value: Any) -> None:
        self.numbers[name] = float(f"{value:.5g}") if isinstance(value, float) and math.isfinite(value) else str(value)

    def at_most(self, name: str, value: float, limit: float) -> None:
        """Note a number and fail where it is above its limit, or nan."""
        self.note(name, float(value))
        if not value <= limit:
            self.failures.append(f"{name} is {value:.5g}, at most {limit:g} is needed")

    def holds(self, name: str, fact: bool) -> None:
        """Note a fact and fail where it is false."""
        self.numbers[name] = bool(fact)
        if not fact:
            self.failures.append(f"{name}: no")


def load_numbers(device: torch.device, *names: str) -> dict[str, Any]:
    """Arrays of tests/data/<name>.npz as tensors on the device, single numbers as floats."""
    numbers: dict[str, Any] = {}
    for name in names:
        with np.load(DATA / f"{name}.npz") as file:
            for key in file:
                numbers[key] = torch.from_numpy(file[key]).to(device) if file[key].ndim else file[key].item()
    return numbers
