"""A small embedded person re-identification dataset, rendered on first use.

People-like figures pass several cameras. Each camera has its own place, colour cast, blur, noise and usual
direction, so that raw pixels tell the camera rather than the person, whereas the clothes tell the person. The
files lie as those of Market-1501 do. Numpy and Pillow only.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fastreid_ice.synthetic.figures import SUPERSAMPLING, paint_person
from fastreid_ice.synthetic.people import Appearance, sample_people, sample_pose
from fastreid_ice.synthetic.scenes import (
    CAMERAS,
    HEIGHT,
    WIDTH,
    Camera,
    SceneDifficulty,
    cut_background,
    expose,
    paint_obstacle,
    paint_panorama,
    shade_fabric,
)

logger = logging.getLogger(__name__)

# Raise it with every change that alters the pictures: folders of another version are rendered again.
VERSION = 2
MARKER = "synthetic_reid.json"
TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"

_DISTRACTOR = 0  # Market-1501's identity for people who are nobody's answer


@dataclass(frozen=True)
class Passage:
    """One person in front of one camera: images to render, and the seeds of what they share."""

    identity: int  # as in the file name
    person: Appearance
    camera: int  # from 0
    folders: tuple[str, ...]  # one image in each, in this order
    seed: tuple[int, ...]


def render_synthetic_reid(
    root: str | os.PathLike,
    *,
    seed: int = 0,
    train_identities: int = 32,
    test_identities: int = 24,
    cameras: int = 4,
    train_images: tuple[int, int] = (4, 8),
    gallery_images: tuple[int, int] = (3, 5),
    distractors: int = 24,
    difficulty: SceneDifficulty | None = None,
) -> Path:
    """Render the dataset into ``root`` unless it is there already with the same version and parameters.

    The same parameters give byte-identical files (with the same versions of numpy and Pillow). The folder appears at
    once when all is rendered, so that an interrupted run leaves nothing and several processes may call at once.

    Args:
        root: folder of the dataset; it gets ``bounding_box_train``, ``query`` and ``bounding_box_test`` with files
            such as ``0001_c1_000123.jpg``: identity, camera, running number.
        seed: of the people and everything random about their images; the cameras stay the same.
        train_identities: identities 1..n.
        test_identities: identities n+1..n+m; each has one query image in every camera that saw it.
        cameras: number of cameras, 2 to 6.
        train_images: fewest and most training images of an identity in a camera, both inclusive.
        gallery_images: fewest and most gallery images of an identity in a camera, both inclusive.
        distractors: gallery images of people who are nobody's answer (identity 0000).
        difficulty: how far apart the cameras are; ``SceneDifficulty()`` when left out.

    Returns:
        ``root`` as a path.

    Raises:
        ValueError: a parameter is out of its range.
        FileExistsError: ``root`` holds something that this function has not rendered.
    """
    parameters = {
        "seed": seed,
        "train_identities": train_identities,
        "test_identities": test_identities,
        "cameras": cameras,
        "train_images": list(train_images),
        "gallery_images": list(gallery_images),
        "distractors": distractors,
        "difficulty": asdict(difficulty or SceneDifficulty()),
    }
    _check(parameters)
    root = Path(root)
    marker = {"version": VERSION, **parameters}
    if _read_marker(root) == marker:
        return root
    _refuse_foreign_folder(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = root.with_name(f".{root.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        count = _render(temporary, parameters, difficulty or SceneDifficulty())
        (temporary / MARKER).write_text(json.dumps(marker, indent=2) + "\n")
        _move_into_place(temporary, root, marker)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    logger.info("Rendered %d images of %d identities into %s", count, train_identities + test_identities, root)
    return root


def _check(parameters: dict) -> None:
    if not 2 <= parameters["cameras"] <= len(CAMERAS):
        raise ValueError(f"cameras is {parameters['cameras']}, but must lie in 2..{len(CAMERAS)}.")
    for name in ("train_identities", "test_identities"):
        if parameters[name] < 1:
            raise ValueError(f"{name} is {parameters[name]}, but must be at least 1.")
    for name in ("seed", "distractors"):
        if parameters[name] < 0:
            raise ValueError(f"{name} is {parameters[name]}, but must not be negative.")
    for name in ("train_images", "gallery_images"):
        fewest, most = parameters[name]
        if not 1 <= fewest <= most:
            raise ValueError(f"{name} is ({fewest}, {most}), but must be (fewest, most) with 1 <= fewest <= most.")


def _read_marker(root: Path) -> dict | None:
    try:
        return json.loads((root / MARKER).read_text())
    except (OSError, ValueError):
        return None


def _refuse_foreign_folder(root: Path) -> None:
    if root.exists() and not (root.is_dir() and (not any(root.iterdir()) or (root / MARKER).exists())):
        raise FileExistsError(
            f"{root} exists, but has no {MARKER}: it was not rendered by fastreid_ice and is left as it is. "
            "Move it away, or choose another folder for the synthetic dataset."
        )


def _move_into_place(temporary: Path, root: Path, marker: dict) -> None:
    """Rename ``temporary`` to ``root``; when another process was faster with the same data, keep its folder."""
    outdated = temporary.with_name(temporary.name + ".old")
    for _ in range(10):
        if _read_marker(root) == marker:
            return
        try:
            if root.exists() and any(root.iterdir()):
                os.rename(root, outdated)
            os.rename(temporary, root)  # replaces an empty folder, fails on a filled one
            return
        except OSError as error:  # somebody renamed between our look and our rename
            failure = error
        finally:
            shutil.rmtree(outdated, ignore_errors=True)
    raise failure


def _render(folder: Path, parameters: dict, difficulty: SceneDifficulty) -> int:
    """Render everything below ``folder`` and return the number of images."""
    for name in (TRAIN, QUERY, GALLERY):
        (folder / name).mkdir(parents=True)
    used = CAMERAS[: parameters["cameras"]]
    panoramas = [
        paint_panorama(camera, np.random.default_rng([i, 7]), difficulty.background) for i, camera in enumerate(used)
    ]
    count = 0
    for passage in _plan(parameters, difficulty):
        camera, panorama = used[passage.camera], panoramas[passage.camera]
        for name, image in zip(passage.folders, _render_passage(passage, camera, panorama, difficulty)):
            count += 1
            file = f"{passage.identity:04d}_c{passage.camera + 1}_{count:06d}.jpg"
            image.save(folder / name / file, quality=88, subsampling=0)
    return count


def _plan(parameters: dict, difficulty: SceneDifficulty) -> Iterator[Passage]:
    """All passages, in the order of rendering."""
    seed, cameras = parameters["seed"], parameters["cameras"]
    train, test = parameters["train_identities"], parameters["test_identities"]
    rng = np.random.default_rng([seed, 0])
    # Sampled apart, so that both look-alikes of a pair lie on the same side of the split.
    people = sample_people(rng, train, difficulty.look_alikes) + sample_people(rng, test, difficulty.look_alikes)
    for index, person in enumerate(people):
        identity = index + 1
        for camera in _seen_by(rng, cameras, difficulty.absence):
            if index < train:
                folders = (TRAIN,) * _draw_count(rng, parameters["train_images"])
            else:
                folders = (QUERY,) + (GALLERY,) * _draw_count(rng, parameters["gallery_images"])
            yield Passage(identity, person, camera, folders, (seed, identity, camera))
    for index, person in enumerate(sample_people(rng, parameters["distractors"], 0.0)):
        yield Passage(_DISTRACTOR, person, int(rng.integers(cameras)), (GALLERY,), (seed, _DISTRACTOR, index))


def _draw_count(rng: np.random.Generator, bounds: list[int]) -> int:
    fewest, most = bounds
    return int(rng.integers(fewest, most, endpoint=True))


def _seen_by(rng: np.random.Generator, cameras: int, absence: float) -> list[int]:
    """Cameras, from 0, that see a person: all but the absent ones, and at least two."""
    order = rng.permutation(cameras)
    present = [int(camera) for rank, camera in enumerate(order) if rank < 2 or rng.random() >= absence]
    return sorted(present)


def _render_passage(
    passage: Passage, camera: Camera, panorama: np.ndarray, difficulty: SceneDifficulty
) -> Iterator[Image.Image]:
    """Images of one passage: the same direction, place and light, one step after the other."""
    rng = np.random.default_rng([*passage.seed, 1])
    turn = camera.turn + rng.normal(0, 0.6) + (np.pi if rng.random() < 0.2 else 0)
    spot, exposure = rng.random(), 1 + 0.12 * difficulty.light * rng.uniform(-1, 1)
    for frame in range(len(passage.folders)):
        image_rng = np.random.default_rng([*passage.seed, 2, frame])
        turned = difficulty.view * (turn + image_rng.normal(0, 0.25))
        background = cut_background(panorama, spot + image_rng.normal(0, 0.06), image_rng)
        scene = _compose(passage.person, turned, background, camera, image_rng, difficulty)
        yield expose(scene, camera, exposure * (1 + 0.03 * image_rng.normal()), image_rng, difficulty)


def _compose(
    person: Appearance,
    turn: float,
    background: np.ndarray,
    camera: Camera,
    rng: np.random.Generator,
    difficulty: SceneDifficulty,
) -> np.ndarray:
    """Background, shadow, person and perhaps an obstacle; (128, 64, 3) float32 in 0..255."""
    crop = difficulty.crop
    height = HEIGHT * (0.88 + crop * (camera.scale - 0.88)) * (1 + crop * rng.uniform(-0.06, 0.08))
    centre = WIDTH / 2 + crop * rng.normal(0, 3.0)
    feet = (HEIGHT + height) / 2 + crop * rng.normal(0, 3.5)
    layer = paint_person(person, sample_pose(rng, turn), (WIDTH, HEIGHT), centre, feet, height)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    shadow = np.exp(-(((columns - centre) / 16) ** 2) - ((rows - feet) / 4) ** 2)[..., None]
    colours, coverage = shade_fabric(layer, rng)
    scene = background * (1 - 0.45 * shadow) * (1 - coverage) + colours
    if rng.random() < difficulty.occlusion:
        colours, coverage = shade_fabric(paint_obstacle(rng, SUPERSAMPLING), rng)
        scene = scene * (1 - coverage) + colours
    return scene.astype(np.float32)
