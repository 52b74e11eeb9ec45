"""Repairs of fastreid 1.4.0 for current Python, torch and numpy, with CUDA and without.

fastreid is used as its users have it, the wheel or a clone of its repository; nothing of it is edited or written on
disk. One function per repair, named after what it repairs, with the upstream file and line, in a module per part of
fastreid. All are idempotent. They are applied when this package is imported, and every module of fastreid_ice that
imports fastreid imports this package first. The processes that ``fastreid.engine.launch`` spawns import it too: by the
training script, or behind ``python -m fastreid_ice.compat script.py`` for a script that knows nothing of it.
"""

from __future__ import annotations

from fastreid_ice.compat.checkpoints import repair_checkpointer
from fastreid_ice.compat.device import device_in_use, use_device
from fastreid_ice.compat.evaluation import (
    repair_compilation,
    repair_evaluation_names,
    repair_ranking,
    repair_rerank,
    repair_synchronization,
    repair_visualizer,
)
from fastreid_ice.compat.imports import repair_imports
from fastreid_ice.compat.launching import repair_launch
from fastreid_ice.compat.loading import repair_loader_device, repair_loader_thread, repair_reading
from fastreid_ice.compat.source import require_fastreid
from fastreid_ice.compat.training import (
    repair_ddp_on_the_cpu,
    repair_loss_logging,
    repair_optimizer,
    repair_unknown_device,
)
from fastreid_ice.compat.transforms import repair_affine, repair_random_patch, repair_to_tensor

__all__ = ["REPAIRS", "apply", "device_in_use", "require_fastreid", "use_device"]

REPAIRS = (
    repair_imports,
    repair_optimizer,
    repair_loss_logging,
    repair_ddp_on_the_cpu,
    repair_unknown_device,
    repair_reading,
    repair_loader_device,
    repair_loader_thread,
    repair_compilation,
    repair_ranking,
    repair_evaluation_names,
    repair_synchronization,
    repair_rerank,
    repair_visualizer,
    repair_launch,
    repair_affine,
    repair_to_tensor,
    repair_random_patch,
    repair_checkpointer,
)


def apply() -> None:
    """Check which fastreid this is and apply every repair. Calling it again changes nothing."""
    require_fastreid()
    for repair in REPAIRS:
        repair()


apply()
