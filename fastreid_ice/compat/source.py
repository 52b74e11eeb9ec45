"""Which fastreid would be imported, and whether the repairs fit it. It is read, not imported.

Most users have a clone of the repository on their path, which has no version that could be asked for; others the wheel,
and some both. So the source itself is asked: whatever the repairs take the place of must read as they know it.
Comments, docstrings, line ends and everything else in fastreid may differ.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FASTREID_VERSION = "1.4.0"
INSTALL_COMMAND = f"pip install --no-deps fastreid=={FASTREID_VERSION}"
REPOSITORY = "https://github.com/JDAI-CV/fast-reid"

# file -> function or class that a repair takes the place of -> its fingerprint, the same in the wheel and in the clone
FINGERPRINTS: dict[str, dict[str, str]] = {
    "data/data_utils.py": {
        "BackgroundGenerator": "b09739e451c26a0b",
        "DataLoaderX": "0f618ebad63c32b1",
        "read_image": "390b0ce0059a290a",
    },
    "data/transforms/functional.py": {
        "to_tensor": "329c85fc673578fe",
    },
    "data/transforms/transforms.py": {
        "RandomPatch": "92a6c7b3c1c09fe9",
    },
    "engine/launch.py": {
        "launch": "40787d113e569433",
        "_distributed_worker": "4e48412991f084d6",
    },
    "engine/train_loop.py": {
        "SimpleTrainer._write_metrics": "819ff699b52c11b9",
    },
    "evaluation/rank.py": {
        "evaluate_rank": "b9416ad47f9da51b",
    },
    "evaluation/reid_evaluation.py": {
        "ReidEvaluator._compile_dependencies": "1c64da47c37b17ef",
    },
    "modeling/meta_arch/build.py": {
        "build_model": "ec728aaffe6ffa77",
    },
    "solver/build.py": {
        "build_optimizer": "88e19b0906a5ddbe",
    },
    "utils/checkpoint.py": {
        "Checkpointer.save": "42ca8d15f6cb1c1e",
        "Checkpointer.tag_last_checkpoint": "d12291c7517e16be",
        "Checkpointer._load_file": "8ef598338a0372cc",
    },
    "utils/compute_dist.py": {
        "compute_jaccard_distance": "14480d13b66ddd52",
    },
    "utils/visualizer.py": {
        "Visualizer.vis_rank_list": "1b53e450776664dd",
    },
}


def require_fastreid() -> None:
    """Check that the fastreid which would be imported is one that the repairs fit.

    Raises:
        ImportError: there is none, or another one; the message says where and what, and the command to run.
    """
    folder = find_fastreid()
    differing = differing_names(folder)
    if differing:
        raise ImportError(
            f"fastreid_ice needs fastreid {FASTREID_VERSION}, the wheel or a clone of {REPOSITORY}. Found another one\n"
            f"    in {folder} ({_metadata_version()})\n"
            f"    that differs in {', '.join(differing)}\n"
            "These are repaired for current Python and torch, and must be as they were published; the rest may be "
            "edited. Undo the edits there, or put an unedited copy first on the path:\n"
            f"    {INSTALL_COMMAND}\n"
            f'    or: git clone {REPOSITORY} && export PYTHONPATH="$PWD/fast-reid"'
        )


def find_fastreid() -> Path:
    """Folder of the package ``fastreid`` that would be imported.

    Raises:
        ImportError: there is none, or only a folder of that name that is no package.
    """
    spec = importlib.util.find_spec("fastreid")
    if spec is None:
        raise ImportError(
            f"fastreid_ice needs fastreid {FASTREID_VERSION}, which is not installed. Run:\n    {INSTALL_COMMAND}\n"
            "(--no-deps because fastreid pins torch 1.13, which does not install on current Python), or put a clone of "
            "fast-reid on PYTHONPATH"
        )
    if spec.origin is None:  # a folder without __init__.py, such as a clone that is named fastreid
        folder = Path(next(iter(spec.submodule_search_locations or ["?"])))
        raise ImportError(
            f"fastreid_ice needs fastreid {FASTREID_VERSION}, but Python finds the folder {folder}, which is no "
            f'package. If it is a clone of {REPOSITORY}, run:\n    export PYTHONPATH="{folder}"'
        )
    return Path(spec.origin).parent


def differing_names(folder: Path) -> list[str]:
    """What the repairs do not know in this copy of fastreid, as "engine/launch.py: launch"; empty if they fit."""
    differing = []
    for file, known in FINGERPRINTS.items():
        found = fingerprints(folder / file, known)
        differing += [f"{file}: {name}" for name, value in known.items() if found.get(name) != value]
    return differing


def fingerprints(file: Path, names: Iterable[str]) -> dict[str, str]:
    """Fingerprints of the functions and classes of a Python file, such as "launch" or "Checkpointer.save".

    Names that are missing are left out; all are, when the file is missing or is no Python.
    """
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return {}
    nodes = {name: _find(tree, name.split(".")) for name in names}
    return {name: _fingerprint(node) for name, node in nodes.items() if node is not None}


def _find(node: Any, path: list[str]) -> ast.AST | None:
    """The definition at a path of names below a module or class; the last one, as Python binds it."""
    for name in path:
        definitions = [child for child in getattr(node, "body", ()) if getattr(child, "name", None) == name]
        if not definitions:
            return None
        node = definitions[-1]
    return node


def _fingerprint(node: ast.AST) -> str:
    return hashlib.sha256(_written_out(node).encode()).hexdigest()[:16]


def _written_out(node: Any) -> str:
    """The syntax tree without positions and bare strings. Unlike ``ast.dump``, the same in every version of Python."""
    if isinstance(node, ast.Constant):
        return repr(node.value)
    if isinstance(node, ast.AST):
        fields = [f"{name}={_written_out(value)}" for name, value in ast.iter_fields(node) if value not in (None, [])]
        return f"{type(node).__name__}({', '.join(fields)})"
    if isinstance(node, list):
        return f"[{', '.join(_written_out(part) for part in node if not _is_bare_string(part))}]"
    return repr(node)


def _is_bare_string(node: Any) -> bool:
    """Docstrings, and strings that are used as comments."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _metadata_version() -> str:
    try:
        return f"pip knows fastreid {importlib.metadata.version('fastreid')}"
    except importlib.metadata.PackageNotFoundError:
        return "pip knows no fastreid"
