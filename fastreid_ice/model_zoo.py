"""The configs that come with the package, wherever it is installed."""

from __future__ import annotations

from pathlib import Path

from fastreid_ice.errors import closest

_PACKAGE = Path(__file__).resolve().parent
# In a wheel they lie inside the package, in a checkout beside it.
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


def config_files() -> list[str]:
    """Names of all configs, such as "ICE/market.yml", sorted."""
    folder = _folder()
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yml"))


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
    path = _folder() / name
    if name not in config_files():
        names = config_files()
        raise FileNotFoundError(f"There is no config {name!r}{closest(name, names)}; there are {', '.join(names)}")
    return str(path)


def _folder() -> Path:
    for folder in _FOLDERS:
        if (folder / "ICE").is_dir():
            return folder
    raise FileNotFoundError(
        f"The configs of fastreid_ice are missing: there is neither {_FOLDERS[0]} nor {_FOLDERS[1]}"
    )
