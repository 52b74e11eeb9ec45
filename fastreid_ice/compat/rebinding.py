"""How a repair takes the place of what it repairs: once, under every name, and marked."""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

MARK = "__fastreid_ice_repairs__"


def upstream(name: str) -> Any:
    """Return a module of fastreid. Needed where a function shadows its module (``fastreid.engine.launch``)."""
    return importlib.import_module(f"fastreid.{name}")


def replace(owner: Any, name: str, build: Callable[[Any], Any], *elsewhere: ModuleType) -> None:
    """Put ``build(original)`` in the place of ``owner.name``; nothing happens if a repair stands there already.

    The replacement's attribute ``MARK`` says what it replaces.

    Args:
        owner: a module or class.
        name: of its attribute.
        build: makes the replacement from the original.
        elsewhere: further modules that have imported the original, under whatever name.
    """
    original = getattr(owner, name)
    if MARK in vars(original):
        return
    replacement = build(original)
    setattr(replacement, MARK, f"{_full_name(owner)}.{name}")
    for place in (owner, *elsewhere):
        for key, value in list(vars(place).items()):
            if value is original:
                setattr(place, key, replacement)


def wrap(owner: Any, name: str, *elsewhere: ModuleType) -> Callable[[Callable], None]:
    """Decorator: put a function in the place of ``owner.name``; its first argument is the original."""

    def decorate(function: Callable) -> None:
        def build(original: Callable) -> Callable:
            @functools.wraps(original)
            def repaired(*args, **kwargs):
                return function(original, *args, **kwargs)

            return repaired

        replace(owner, name, build, *elsewhere)

    return decorate


def after_import(name: str, repair: Callable[[], None]) -> None:
    """Run ``repair`` as soon as fastreid's module ``name`` is imported: for a module that costs much and few need."""
    full_name = f"fastreid.{name}"
    if full_name in sys.modules:
        repair()
    elif not any(isinstance(finder, _AfterImport) and finder.name == full_name for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport(full_name, repair))


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds one module, once, as the others would, and has it repaired when it has been loaded."""

    def __init__(self, name: str, repair: Callable[[], None]):
        self.name = name
        self._repair = repair

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_repair(module: ModuleType) -> None:
                load(module)
                self._repair()

            vars(spec.loader)["exec_module"] = load_and_repair
        return spec


def _full_name(owner: Any) -> str:
    return owner.__name__ if isinstance(owner, ModuleType) else f"{owner.__module__}.{owner.__qualname__}"
