"""ICE: Inter-instance Contrastive Encoding for unsupervised person re-identification, as a plugin for fastreid.

Importing the package imports nothing else, so that the pure parts (``fastreid_ice.clustering``,
``fastreid_ice.losses``) can be used without fastreid. The parts that plug into fastreid are
``fastreid_ice.config``, ``fastreid_ice.modeling``, ``fastreid_ice.data`` and ``fastreid_ice.engine``.
``fastreid_ice.load(run)`` gives a trained model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastreid_ice.api import load

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> object:
    if name == "load":  # imported when it is asked for
        from fastreid_ice.api import load

        return load
    raise AttributeError(f"module 'fastreid_ice' has no attribute {name!r}")
