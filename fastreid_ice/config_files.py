"""Config files and command-line overrides into a fastreid config, with errors that name file, key and choices.

yacs' own merge says of a wrong key only that it does not exist, refuses an integer for a float, and of a file that
cannot be read tells a traceback.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from ast import literal_eval
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import yaml
from fastreid.config import CfgNode, get_cfg

from fastreid_ice.config import add_ice_config
from fastreid_ice.errors import closest, listed
from fastreid_ice.model_zoo import config_files, get_config_file

IMPORTS = "MODEL.ICE.IMPORTS"
BASE_CONFIG = "ICE/Base-ICE.yml"  # with which runs are compared


def load_config(config_file: str | Path, opts: Sequence[Any] = ()) -> CfgNode:
    """fastreid's and ICE's defaults, then a config file with its bases, then overrides.

    The modules that ``MODEL.ICE.IMPORTS`` names are imported before the file is merged, and their ``add_config(cfg)``,
    where there is one, is called: so they may add keys of their own.

    Args:
        config_file: YAML; ``_BASE_`` in it names another file, relative to it. A name such as "ICE/market.yml" that is
            no file here is looked up among the configs of the package.
        opts: KEY, VALUE, KEY, VALUE ...; text is read as a Python literal where it is one.

    Returns:
        A config that is not frozen.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not YAML, or a key or value does not fit; a module cannot be imported.
    """
    path = locate(config_file)
    settings = read_settings(path)
    overrides = read_overrides(opts)
    cfg = get_cfg()
    add_ice_config(cfg)
    for name in _imports(settings, overrides, str(path)):
        module = import_user_module(name, path.parent)
        if hasattr(module, "add_config"):
            module.add_config(cfg)
    merge_settings(cfg, settings, str(path))
    for key, value in overrides:
        merge_settings(cfg, _nested(key, value), "command line")
    for node, key in ((cfg.MODEL, "WEIGHTS"), (cfg.MODEL.BACKBONE, "PRETRAIN_PATH"), (cfg, "OUTPUT_DIR")):
        node[key] = os.path.expanduser(node[key])  # fastreid opens them as they are
    return cfg


def locate(config_file: str | Path) -> Path:
    """The file itself, or the config of this name that comes with the package."""
    path = Path(config_file).expanduser()
    if not path.is_file() and str(config_file) in config_files():
        return Path(get_config_file(str(config_file)))
    return path


def read_settings(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping in a YAML file, on top of those of its ``_BASE_``.

    Args:
        path: of the file.
        above: the files whose ``_BASE_`` led here.

    Raises:
        FileNotFoundError: it, or the file that ``_BASE_`` names, is not there.
        ValueError: it is not YAML, holds no mapping, or ``_BASE_`` is no name of a file or leads back to it.
    """
    if path.resolve() in above:
        raise ValueError(f"{path} is its own _BASE_, by way of {', '.join(file.name for file in above)}")
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*.yml")) if path.parent.is_dir() else []
        choices = f"; in {path.parent} there are {', '.join(beside)}" if beside else ""
        raise FileNotFoundError(f"--config-file: there is no file {path}{closest(path.name, beside)}{choices}")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if settings is None:
        settings = {}
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds {type(settings).__name__}, but a config is a mapping from keys to values")
    base = settings.pop("_BASE_", None)
    if base is None:
        return settings
    if not isinstance(base, str):
        raise ValueError(f"{path}: _BASE_ is {base!r}, but must be the name of one file")
    base_path = path.parent / Path(base).expanduser()
    if not base_path.is_file():
        raise FileNotFoundError(f"{path}: _BASE_ names {base}, but there is no file {base_path}")
    return _overlaid(read_settings(base_path, (*above, path.resolve())), settings)


def _overlaid(below: dict, above: dict) -> dict:
    """A nested mapping with the values of another one on top."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = _overlaid(below[key], value) if both else value
    return merged


def read_overrides(opts: Sequence[Any]) -> list[tuple[str, Any]]:
    """KEY, VALUE, ... as pairs.

    Raises:
        ValueError: a value is missing.
    """
    if len(opts) % 2:
        raise ValueError(f"The config keys on the command line come as KEY VALUE; {opts[-1]} has no value")
    return [(str(key), value) for key, value in zip(opts[::2], opts[1::2])]


def _nested(key: str, value: Any) -> dict:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _imports(settings: Mapping, overrides: list[tuple[str, Any]], source: str) -> tuple[str, ...]:
    node: Any = settings
    for part in IMPORTS.split("."):
        node = node.get(part, {}) if isinstance(node, Mapping) else {}
    value: Any = node or ()
    for key, override in overrides:
        if key == IMPORTS:
            value, source = override, "command line"
    return convert(value, (), IMPORTS, source)


def import_user_module(name: str, config_folder: Path) -> Any:
    """Import a module of the user's, found beside the config file, in the working directory or on Python's path.

    Raises:
        ValueError: there is no such module, or importing it fails.
    """
    folders = [config_folder.resolve(), Path.cwd()]
    with _on_path(folders):
        try:
            found = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            found = None
        if found is None:
            places = " and ".join(str(folder) for folder in dict.fromkeys(folders))
            raise ValueError(
                f"{IMPORTS} names {name!r}, but there is no module {name} in {places} or on Python's path: add its "
                "folder to PYTHONPATH"
            )
        try:
            return importlib.import_module(name)
        except Exception as error:
            raise ValueError(f"{IMPORTS}: importing {name} ({found.origin}) failed: {error!r}") from error


@contextmanager
def _on_path(folders: list[Path]) -> Iterator[None]:
    """Let Python look into these folders first, and after the block last: modules may import each other later."""
    names = [str(folder) for folder in folders]
    before = list(sys.path)
    sys.path[:0] = names
    try:
        yield
    finally:
        sys.path[:] = before + [name for name in dict.fromkeys(names) if name not in before]


def merge_settings(cfg: CfgNode, settings: Mapping, source: str, group: str = "") -> None:
    """Put nested settings into a config.

    Args:
        cfg: changed in place.
        settings: nested mapping of keys to values.
        source: file name or "command line", for messages.
        group: of the keys, such as "MODEL."; for messages.

    Raises:
        ValueError: a key that the config does not have, or a value of another type than its default.
    """
    for key, value in settings.items():
        name = f"{group}{key}"
        if key not in cfg:
            where = f"; {group.rstrip('.')} has {listed(cfg)}" if group else ""
            raise ValueError(f"{source}: there is no config key {name}{closest(str(key), map(str, cfg))}{where}")
        if isinstance(cfg[key], CfgNode):
            if not isinstance(value, Mapping):
                raise ValueError(f"{source}: {name} is a group of keys ({listed(cfg[key])}), and cannot be {value!r}")
            merge_settings(cfg[key], value, source, f"{name}.")
        else:
            cfg[key] = convert(value, cfg[key], name, source)


def convert(value: Any, default: Any, name: str, source: str) -> Any:
    """A value as its key wants it: text read as a literal, an integer for a float, a list for a tuple, one for many.

    Raises:
        ValueError: it has another type than the default, or none at all.
    """
    if isinstance(default, CfgNode) or isinstance(value, Mapping):
        raise ValueError(f"{source}: {name} is a value, not a group of keys")
    if isinstance(value, str):
        value = _literal(value, default)
    if default is None or type(value) is type(default):
        return value
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if isinstance(default, (tuple, list)):
        if isinstance(value, (tuple, list)):
            return type(default)(value)
        if isinstance(value, str) and all(isinstance(item, str) for item in default):
            return type(default)([value])  # ("Market1501") is no tuple in Python, but clear enough
    raise ValueError(f"{source}: {name} is {value!r}, but must be {_kind(default)} such as {default!r}")


def _literal(text: str, default: Any) -> Any:
    """Text as the Python literal that it is, or as it is; text that is wanted stays text."""
    try:
        value = float(text) if isinstance(default, float) else literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return text if isinstance(default, str) and not isinstance(value, str) else value


def _kind(default: Any) -> str:
    names = {bool: "True or False,", int: "a whole number", float: "a number", str: "text", tuple: "a tuple"}
    return names.get(type(default), f"a {type(default).__name__}")
