"""ICE: Inter-instance Contrastive Encoding for unsupervised person re-identification, as a plugin for fastreid.

Importing the package imports nothing else, so that the pure parts (``fastreid_ice.clustering``,
``fastreid_ice.losses``) can be used without fastreid. The parts that plug into fastreid are
``fastreid_ice.config``, ``fastreid_ice.modeling``, ``fastreid_ice.data`` and ``fastreid_ice.engine``.
``fastreid_ice.load(run)`` gives a trained model, ``fastreid_ice.model_zoo`` the configs that come with the package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastreid_ice import model_zoo
    from fastreid_ice.api import load

__version__ = "0.1.0"
__all__ = ["load", "model_zoo"]


def __getattr__(name: str) -> object:
    # imported when they are asked for
    if name == "load":
        from fastreid_ice.api import load

        return load
    if name == "model_zoo":
        return importlib.import_module("fastreid_ice.model_zoo")
    raise AttributeError(f"module 'fastreid_ice' has no attribute {name!r}")
