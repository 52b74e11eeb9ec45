"""Run somebody's script as ``__main__`` behind the repairs, in this process and in those that it spawns.

A spawned process runs the main module of its parent again, as ``__mp_main__``, before it does anything else: a script
of fastreid's would fail there, at its import of fastreid. So ``__main__`` says that it came from this module. The
spawned process runs this module instead, whose package applies the repairs, and it runs the script.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

VARIABLE = "FASTREID_ICE_SCRIPT"  # tells the spawned processes which script it is


def run_script(script: Path, arguments: Sequence[str]) -> None:
    """Run ``script`` as Python runs a script: as ``__main__``, its folder first on the path, ``arguments`` in argv.

    The folder that ``python -m`` has put on the path stays there, behind the script's: fastreid may lie in it.
    """
    main = types.ModuleType("__main__")
    main.__spec__ = importlib.util.find_spec("fastreid_ice.compat.script")
    sys.modules["__main__"] = main
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.resolve().parent))
    os.environ[VARIABLE] = os.path.abspath(script)
    _execute(script, vars(main))


def _execute(script: Path, namespace: dict[str, Any]) -> None:
    namespace["__file__"] = str(script)
    exec(compile(script.read_bytes(), str(script), "exec", dont_inherit=True), namespace)


if __name__ == "__mp_main__":
    _execute(Path(os.environ[VARIABLE]), globals())
