"""Keep the search index of a folder of images up to date, and search it for the images most similar to others."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, Union

import numpy as np
from torch import Tensor

from fastreid_ice.files import check_folder_for_output, printable
from fastreid_ice.image_files import IMAGE_EXTENSIONS, find_images, find_unreadable
from fastreid_ice.search.index import FileState, Fingerprint, SearchIndex, file_state
from fastreid_ice.search.results import GalleryUpdate, SearchResult
from fastreid_ice.search.storage import HEADER, check_no_mount, check_place

logger = logging.getLogger(__name__)

Features = Union[Tensor, np.ndarray]
Embed = Callable[[list[str]], Features]

SAVE_EVERY = 20_000  # images between two savings of an index that is being made


class EmbeddingModel(Protocol):
    """What is needed of a trained model, as ``fastreid_ice.load`` gives it."""

    @property
    def sha256(self) -> str:
        """Of its checkpoint's file."""

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) in pixels to which it scales images."""

    def embed(self, images: list[str]) -> Features:
        """(n, D) L2-normalised features of n image files."""


def update_index(
    index: SearchIndex,
    folder: str | os.PathLike,
    embed: Embed,
    *,
    extensions: Sequence[str] = IMAGE_EXTENSIONS,
    batch: int = 256,
    skip_unreadable: bool = False,
    save: Callable[[], None] | None = None,
    before: Callable[[], None] | None = None,
) -> GalleryUpdate:
    """Bring an index up to date with a folder: only new and changed images are read, those that are gone are removed.

    Paths in the index are relative to the folder, so that the folder may be moved.

    Args:
        index: changed in place; ``root`` becomes the folder.
        folder: images at any depth.
        embed: paths of n images -> features (n, D).
        extensions: endings of the images.
        batch: number of images that ``embed`` gets at a time.
        skip_unreadable: leave out images that cannot be read, else they are an error.
        save: called at the end if anything has changed, after every 20,000 images, and before an error or an
            interruption goes on, so that no image is extracted twice. None does not save.
        before: called before the extraction if anything has changed, to refuse a place that cannot be written.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
        ValueError: the index is of another folder; an image cannot be read.
    """
    folder = Path(folder)
    names = find_images(folder, extensions)
    states = {name: file_state(folder / name) for name in names}
    known = {entry.path: FileState(entry.size, entry.mtime_ns) for entry in index.entries}
    is_own = _is_own(index.root, folder)
    if known and not known.keys() & states.keys() and not is_own:
        raise ValueError(
            f"The search index is of the folder {index.root}: none of its {len(known)} images is in {folder}. "
            "Name another folder for the index (--index)."
        )
    if known and is_own is False:
        raise ValueError(
            f"The search index is of the folder {index.root}, not of {folder}: images of the same names would take "
            "each other's places. Name another folder for the index (--index)."
        )
    index.root = folder
    removed = tuple(sorted(known.keys() - states.keys()))
    index.remove(removed)
    wanted = [name for name in names if known.get(name) != states[name]]
    if before is not None and (wanted or removed):
        before()
    skipped = _extract(index, wanted, states, embed, batch, skip_unreadable, save)
    refused = {name for name, _ in skipped}
    index.remove(refused & known.keys())  # the file has changed into something that cannot be read
    if skipped and not len(index):
        raise ValueError(
            f"None of the {len(skipped)} images in {index.root} can be read; first: {': '.join(skipped[0])}."
        )
    done = set(wanted) - refused
    update = GalleryUpdate(
        added=tuple(name for name in wanted if name in done and name not in known),
        changed=tuple(name for name in wanted if name in done and name in known),
        removed=removed,
        skipped=tuple(skipped),
    )
    if save is not None and (done or removed or refused & known.keys()):
        save()
    return update


def _extract(
    index: SearchIndex,
    names: list[str],
    states: dict[str, FileState],
    embed: Embed,
    batch: int,
    skip_unreadable: bool,
    save: Callable[[], None] | None,
) -> list[tuple[str, str]]:
    """Add the images to the index; returns those that could not be read, with the reason."""
    skipped: list[tuple[str, str]] = []
    for first in range(0, len(names), SAVE_EVERY):
        good: list[str] = []
        features: list[np.ndarray] = []
        part = names[first : first + SAVE_EVERY]
        try:
            for start in range(0, len(part), batch):
                rows, read, bad = _embed_readable(index.root, part[start : start + batch], embed, skip_unreadable)
                features += [rows] if read else []
                good += read
                skipped += bad
        except BaseException:  # an image that cannot be read, or the keyboard: the next call goes on from there
            if good and save is not None:
                index.add(np.concatenate(features), good, [states[name] for name in good])
                save()
            raise
        if good:
            index.add(np.concatenate(features), good, [states[name] for name in good])
        if len(names) > SAVE_EVERY:
            logger.info("Extracted %d of %d images.", first + len(part), len(names))
            if save is not None and good:
                save()
    return skipped


def _embed_readable(
    root: Path, names: list[str], embed: Embed, skip_unreadable: bool
) -> tuple[np.ndarray, list[str], list[tuple[str, str]]]:
    """Features of the images that can be read, their names, and (name, reason) of the others."""
    try:
        return _as_array(embed([str(root / name) for name in names])), names, []
    except Exception:
        by_path = {str(root / name): name for name in names}
        bad = [(by_path[path], why) for path, why in find_unreadable(list(by_path))]
        if not bad:
            raise
        if not skip_unreadable:
            raise ValueError(_unreadable(root, bad)) from None
    refused = {name for name, _ in bad}
    good = [name for name in names if name not in refused]
    features = _as_array(embed([str(root / name) for name in good])) if good else np.empty((0, 0), np.float32)
    return features, good, bad


def _is_own(root: Path, folder: Path) -> bool | None:
    """Whether a folder is the index's own; None where that is gone: this one may be it, moved."""
    return os.path.samefile(root, folder) if root.is_dir() else None


def _unreadable(root: Path, bad: list[tuple[str, str]]) -> str:
    first = "; ".join(f"{root / name}: {why}" for name, why in bad[:3])
    return f"{len(bad)} image(s) cannot be read: {first}. Remove them, or leave them out with --skip-unreadable."


def _as_array(features: Features) -> np.ndarray:
    return features if isinstance(features, np.ndarray) else features.detach().cpu().numpy()


def default_index_folder(gallery: str | os.PathLike) -> Path:
    """Where a gallery's index is kept unless another place is named: beside it, never inside."""
    gallery = Path(os.path.abspath(gallery))
    return gallery.with_name(f"{gallery.name}.search_index")


def open_gallery(
    model: EmbeddingModel,
    gallery: str | os.PathLike,
    index_folder: str | os.PathLike | None = None,
    *,
    kind: str = "auto",
    skip_unreadable: bool = False,
) -> tuple[SearchIndex, GalleryUpdate]:
    """The index of a folder of images, made or brought up to date, and what has changed since it was last.

    Args:
        model: makes the features.
        gallery: folder of images.
        index_folder: where the index is kept; None: :func:`default_index_folder`.
        kind: of a new index: "auto", "exact" or "ivf".
        skip_unreadable: leave out images that cannot be read, else they are an error.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
        ValueError: the index is damaged, of another model or of another folder; an image cannot be read.
        OSError: the index cannot be written.
    """
    place = default_index_folder(gallery) if index_folder is None else Path(index_folder)
    fingerprint = Fingerprint(model.sha256, (model.input_size[0], model.input_size[1]))
    check_place(place)
    if (place / HEADER).exists():
        index = SearchIndex.open(place, fingerprint)
        if kind not in ("auto", index.kind):
            raise ValueError(
                f"The search index {place} is of kind {index.kind!r}, asked for is {kind!r}. Name another folder "
                "(--index), or remove this one to build it anew."
            )
    else:
        index = SearchIndex(fingerprint, kind=kind)
    update = update_index(
        index,
        gallery,
        model.embed,
        skip_unreadable=skip_unreadable,
        save=lambda: index.save(place),
        before=lambda: _check_writable(place),
    )
    logger.info("Search index %s: %d images; %s.", printable(place), len(index), update)
    return index, update


def _check_writable(place: Path) -> None:
    """Refuse a place where the index could not be put at the end, before the work begins."""
    place = Path(os.path.realpath(place))
    check_no_mount(place)
    check_folder_for_output(place.parent, "The search index (--index) in")


def search_folder(
    model: EmbeddingModel,
    queries: Sequence[str | os.PathLike],
    gallery: str | os.PathLike,
    index_folder: str | os.PathLike | None = None,
    *,
    k: int = 10,
    kind: str = "auto",
    skip_unreadable: bool = False,
) -> SearchResult:
    """The k images of a folder that are most similar to each query image.

    Args:
        model: makes the features.
        queries: image files.
        gallery: folder of images.
        index_folder: where the index is kept; None: :func:`default_index_folder`.
        k: how many; all images of the folder if there are fewer.
        kind: of a new index: "auto", "exact" or "ivf".
        skip_unreadable: leave out images of the folder that cannot be read, else they are an error.

    Raises:
        FileNotFoundError, IsADirectoryError: a query is not there, or is a folder.
        ValueError: a query cannot be read; k is below 1.
        ValueError, OSError: as :func:`open_gallery`.
    """
    if k < 1:
        raise ValueError(f"At least one image must be asked for (--top-k), found {k}.")
    names = [os.fspath(query) for query in queries]
    for name in names:
        if Path(name).is_dir():
            raise IsADirectoryError(f"The query {name} is a folder; name the images in it.")
        if not Path(name).is_file():
            raise FileNotFoundError(f"The query image {name} does not exist.")
    bad = find_unreadable(names)
    if bad:
        raise ValueError("The query image {} cannot be read: {}.".format(*bad[0]))
    index, update = open_gallery(model, gallery, index_folder, kind=kind, skip_unreadable=skip_unreadable)
    similarities, positions = index.search(model.embed(names), k)
    paths = tuple(tuple(str(index.full_path(i)) for i in row) for row in positions)
    return SearchResult(tuple(names), paths, similarities, update)
