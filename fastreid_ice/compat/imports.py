"""Repairs of what keeps fastreid from being imported."""

from __future__ import annotations

import collections
import collections.abc
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager

from fastreid_ice.compat.rebinding import upstream


def repair_imports() -> None:
    """data/build.py:11,12 and evaluation/testing.py:5 import ``torch._six`` and ``collections.Mapping``.

    The names exist only while those files are imported; no global patch stays behind.
    """
    with _dropped_names():
        for module in ("data.build", "evaluation.testing", "engine.defaults", "engine.launch"):
            upstream(module)


@contextmanager
def _dropped_names() -> Iterator[None]:
    """Provide, for the duration of an import, the two names that Python and torch have dropped."""
    stub = None
    if importlib.util.find_spec("torch._six") is None:
        stub = types.ModuleType("torch._six")
        vars(stub)["string_classes"] = (str, bytes)
        sys.modules["torch._six"] = stub
    had_mapping = "Mapping" in vars(collections)  # Python 3.9 answers for it, with a warning
    if not had_mapping:
        vars(collections)["Mapping"] = collections.abc.Mapping
    try:
        yield
    finally:
        if not had_mapping:
            del vars(collections)["Mapping"]
        if stub is not None:
            sys.modules.pop("torch._six", None)
