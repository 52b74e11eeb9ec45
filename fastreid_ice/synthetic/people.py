"""Who the people of the synthetic dataset are: their clothes, and how they stand. Numpy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Callable, TypeVar

import numpy as np

T = TypeVar("T")

Colour = tuple[int, int, int]

# Palettes are muted, as clothes in surveillance footage are.
TOPS: tuple[Colour, ...] = (
    (32, 32, 36), (228, 228, 224), (128, 130, 134), (36, 48, 92), (172, 34, 40), (40, 104, 60),
    (70, 128, 196), (206, 172, 120), (224, 186, 50), (216, 130, 160), (104, 58, 122), (36, 128, 132), (204, 104, 44),
)  # fmt: skip
BOTTOMS: tuple[Colour, ...] = (
    (30, 30, 34), (48, 62, 100), (98, 124, 164), (120, 120, 122), (178, 156, 118), (94, 66, 46),
    (210, 208, 202), (72, 84, 58),
)  # fmt: skip
SHOES: tuple[Colour, ...] = ((26, 26, 28), (232, 232, 230), (120, 74, 44), (186, 40, 44), (60, 96, 170))
HAIR: tuple[Colour, ...] = ((26, 20, 18), (78, 50, 32), (190, 148, 84), (150, 150, 150), (134, 58, 30))
SKIN: tuple[Colour, ...] = ((236, 196, 168), (212, 164, 128), (164, 114, 80), (104, 70, 50))
BAGS: tuple[Colour, ...] = ((24, 24, 28), (160, 44, 44), (44, 70, 130), (120, 88, 56), (64, 100, 66), (214, 200, 168))

PATTERNS = ("plain", "plain", "hoops", "stripes", "logo", "two_tone", "jacket")
LOWERS = ("trousers", "trousers", "trousers", "shorts", "skirt")
HAIRSTYLES = ("short", "short", "long", "cap", "bald")
CARRIED = ("none", "none", "backpack", "shoulder_bag", "handbag")
LOOK_ALIKE_CHANGES = ("shoes", "hair", "carried", "second", "long_sleeves", "lower_colour")


@dataclass(frozen=True)
class Appearance:
    """What makes an identity: constant over cameras and images. Colours are sRGB, 0..255."""

    skin: Colour
    hair: Colour
    hairstyle: str
    top: Colour
    second: Colour  # colour of the pattern on the top
    pattern: str
    long_sleeves: bool
    coat: bool  # the top reaches to mid-thigh
    lower: str
    lower_colour: Colour
    shoes: Colour
    carried: str
    bag: Colour
    build: float  # width relative to an average body
    stature: float  # height relative to an average body


@dataclass(frozen=True)
class Pose:
    """How a person stands in one image. Angles in radians."""

    turn: float  # 0 faces the camera, pi/2 walks to the right, pi shows the back
    phase: float  # position in the walking cycle
    stride: float  # largest thigh angle
    swing: float  # largest arm angle
    lean: float  # forward shift of the shoulders, in body heights


def _pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(rng.integers(len(choices)))]


def _dye(rng: np.random.Generator, palette: tuple[Colour, ...]) -> Colour:
    """A colour near one of the palette, so that colours are a continuum and not a code."""
    shade = np.asarray(_pick(rng, palette)) + rng.integers(-12, 13, size=3)
    red, green, blue = (int(value) for value in np.clip(shade, 0, 255))
    return red, green, blue


def sample_appearance(rng: np.random.Generator) -> Appearance:
    """Dress one person at random."""
    top = _dye(rng, TOPS)
    second = _different_colour(rng, top, TOPS)
    return Appearance(
        skin=_pick(rng, SKIN),
        hair=_dye(rng, HAIR),
        hairstyle=_pick(rng, HAIRSTYLES),
        top=top,
        second=second,
        pattern=_pick(rng, PATTERNS),
        long_sleeves=bool(rng.random() < 0.5),
        coat=bool(rng.random() < 0.2),
        lower=_pick(rng, LOWERS),
        lower_colour=_dye(rng, BOTTOMS),
        shoes=_dye(rng, SHOES),
        carried=_pick(rng, CARRIED),
        bag=_dye(rng, BAGS),
        build=float(rng.uniform(0.85, 1.2)),
        stature=float(rng.uniform(0.93, 1.06)),
    )


def _different_colour(rng: np.random.Generator, colour: Colour, palette: tuple[Colour, ...]) -> Colour:
    """A colour of the palette that can be told from ``colour`` at a glance."""
    far = [other for other in palette if np.abs(np.subtract(other, colour)).max() > 70]
    return _dye(rng, tuple(far))


def sample_look_alike(rng: np.random.Generator, original: Appearance) -> Appearance:
    """The same person but for one detail, which is visible from every side."""
    change = _pick(rng, LOOK_ALIKE_CHANGES)
    if change == "second" and original.pattern in ("plain", "logo", "jacket"):
        change = "shoes"
    if change == "hair" and original.hairstyle == "bald":
        change = "shoes"
    values: dict[str, Callable[[], Any]] = {
        "shoes": lambda: _different_colour(rng, original.shoes, SHOES),
        "hair": lambda: _different_colour(rng, original.hair, HAIR),
        "carried": lambda: "backpack" if original.carried == "none" else "none",
        "second": lambda: _different_colour(rng, original.second, TOPS),
        "long_sleeves": lambda: not original.long_sleeves,
        "lower_colour": lambda: _different_colour(rng, original.lower_colour, BOTTOMS),
    }
    return replace(original, **{change: values[change]()})


def sample_people(rng: np.random.Generator, count: int, look_alike_share: float) -> list[Appearance]:
    """Dress ``count`` people, of whom ``look_alike_share`` belong to a pair that differs in one detail.

    Among the first 200, combinations of top, trousers and pattern repeat only inside such a pair.
    """
    people: list[Appearance] = []
    pairs = int(round(look_alike_share * count / 2))
    while len(people) < count:
        person = sample_appearance(rng)
        if any(_similar_outfit(person, other) for other in people) and len(people) < 200:
            continue
        people.append(person)
        if pairs and len(people) < count:
            people.append(sample_look_alike(rng, person))
            pairs -= 1
    return people


def _similar_outfit(one: Appearance, other: Appearance) -> bool:
    close_top = np.abs(np.subtract(one.top, other.top)).max() < 50
    close_lower = np.abs(np.subtract(one.lower_colour, other.lower_colour)).max() < 50
    return bool(close_top and close_lower and one.pattern == other.pattern)


def sample_pose(rng: np.random.Generator, turn: float) -> Pose:
    """A moment of a walk in direction ``turn`` (radians)."""
    return Pose(
        turn=turn,
        phase=float(rng.uniform(0, 2 * math.pi)),
        stride=float(rng.uniform(0.2, 0.5)),
        swing=float(rng.uniform(0.15, 0.6)),
        lean=float(rng.uniform(0.0, 0.02)),
    )
