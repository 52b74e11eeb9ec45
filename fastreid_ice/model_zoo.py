"""The configs and grids that come with the package, wherever it is installed."""

from __future__ import annotations

from pathlib import Path

from fastreid_ice.errors import closest

_PACKAGE = Path(__file__).resolve().parent
_GRIDS = "grids"
# In a wheel they lie inside the package, in a checkout beside it.
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


def config_files() -> list[str]:
    """Names of all configs, such as "ICE/market.yml", sorted."""
    return [name for name in _names() if not _is_grid(name)]


def grid_files() -> list[str]:
    """Names of all files for ``tools/run_grid.py --grid-file``, such as "ICE/grids/losses.yml", sorted."""
    return [name for name in _names() if _is_grid(name)]


def get_config_file(name: str) -> str:
    """The path of a config.

    Args:
        name: such as "ICE/market.yml".

    Raises:
        FileNotFoundError: there is none of this name.

    Example:
        >>> Path(get_config_file("ICE/market.yml")).name
        'market.yml'
    """
    return _find("config", name, config_files())


def get_grid_file(name: str) -> str:
    """The path of a grid, as :func:`get_config_file` for a name such as "ICE/grids/losses.yml"."""
    return _find("grid", name, grid_files())


def _find(kind: str, name: str, names: list[str]) -> str:
    if name not in names:
        raise FileNotFoundError(f"There is no {kind} {name!r}{closest(name, names)}; there are {', '.join(names)}")
    return str(_folder() / name)


def _names() -> list[str]:
    folder = _folder()
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yml"))


def _is_grid(name: str) -> bool:
    return _GRIDS in name.split("/")[1:-1]


def _folder() -> Path:
    for folder in _FOLDERS:
        if (folder / "ICE").is_dir():
            return folder
    raise FileNotFoundError(
        f"The configs of fastreid_ice are missing: there is neither {_FOLDERS[0]} nor {_FOLDERS[1]}"
    )
