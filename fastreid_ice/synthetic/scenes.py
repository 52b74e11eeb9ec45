"""Where the synthetic dataset takes place: cameras, their backgrounds, things in the way, and the sensor.

Everything that makes two images of one person differ between cameras lives here. Numpy and Pillow only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from fastreid_ice.synthetic.people import Colour

WIDTH, HEIGHT = 64, 128  # of an image, in pixels
_PANORAMA = (320, 160)  # what a camera overlooks; every image is cut out of it


@dataclass(frozen=True)
class SceneDifficulty:
    """How far apart the cameras are, and how badly people are seen.

    0 switches an effect off and 1 is its full strength, at which the first clusters of a network with random weights
    are the cameras, so that nothing can be learnt from them. At the defaults the first clusters follow the people
    more than the cameras, yet an untrained network retrieves badly. ``cast`` matters by far the most.

    Attributes:
        cast: strength of the cameras' colour casts, gammas and saturations (exponent of each).
        background: contrast of the backgrounds; 0 puts everybody before the same grey.
        degradation: strength of the cameras' blur and noise.
        light: strength of the light gradients and of the exposure's changes between passages.
        view: 0 shows everybody from the front; 1 lets each camera have its own direction and people turn.
        crop: strength of the shifts and scalings of the bounding box.
        occlusion: probability, in [0, 1], that something stands in front of the person.
        look_alikes: share, in [0, 1], of the identities that belong to a pair differing in one detail.
        absence: probability, in [0, 1], that an identity never passes a camera; at least two cameras see it.
    """

    cast: float = 0.1
    background: float = 0.15
    degradation: float = 0.5
    light: float = 0.5
    view: float = 0.6
    crop: float = 0.8
    occlusion: float = 0.12
    look_alikes: float = 0.15
    absence: float = 0.15

    def __post_init__(self):
        for name, value in vars(self).items():
            if not (0 <= value < math.inf):
                raise ValueError(f"SceneDifficulty.{name} is {value}, but must be finite and not negative.")
        for name in ("occlusion", "look_alikes", "absence"):
            if getattr(self, name) > 1:
                raise ValueError(f"SceneDifficulty.{name} is {getattr(self, name)}, but must lie in [0, 1].")


@dataclass(frozen=True)
class Camera:
    """One camera's place and sensor, at full strength (difficulty 1)."""

    place: str
    gain: tuple[float, float, float]  # red, green, blue, on values in 0..1
    gamma: float
    saturation: float
    haze: float  # black level, in 0..1
    blur: float  # Gaussian sigma, in pixels
    noise: float  # standard deviation, in 1/255
    light: float  # direction from which the light is stronger, in radians
    turn: float  # usual walking direction: 0 towards the camera, pi away
    scale: float  # usual height of a person, as a share of the image's height


CAMERAS: tuple[Camera, ...] = (
    Camera("plaza", (1.10, 1.02, 0.88), 0.90, 1.10, 0.02, 0.3, 3.0, 0.6, 0.3, 0.90),
    Camera("lawn", (0.82, 1.00, 0.84), 1.15, 0.90, 0.03, 0.5, 5.0, 2.4, 2.9, 0.86),
    Camera("brick", (1.16, 0.88, 0.66), 1.30, 0.85, 0.00, 0.6, 8.0, 4.0, 1.3, 0.93),
    Camera("station", (0.78, 0.92, 1.18), 1.00, 0.75, 0.08, 0.4, 10.0, 1.6, -0.6, 0.82),
    Camera("road", (0.96, 0.98, 1.06), 0.75, 0.65, 0.14, 0.9, 4.0, 3.1, -1.7, 0.80),
    Camera("arcade", (1.04, 0.80, 1.04), 1.20, 1.15, 0.04, 0.4, 6.0, 5.2, 2.2, 0.94),
)  # fmt: skip


def _mottle(rng: np.random.Generator, size: tuple[int, int], grain: int, strength: float) -> np.ndarray:
    """Smooth random brightness, (H, W, 1) float32 around 0, with spots of about ``grain`` pixels."""
    small = rng.normal(0, strength, size=(max(2, size[1] // grain), max(2, size[0] // grain)))
    image = Image.fromarray(small.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image)[..., None]


def _grid(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], step: tuple[int, int], colour: Colour, bond: bool):
    """Joints between tiles, or between bricks when ``bond`` shifts every other row."""
    left, top, right, bottom = box
    for row, y in enumerate(range(top, bottom, step[1])):
        draw.line([(left, y), (right, y)], fill=colour)
        shift = step[0] // 2 if bond and row % 2 else 0
        for x in range(left + shift, right, step[0]):
            draw.line([(x, y), (x, min(y + step[1], bottom))], fill=colour)


def _paint_plaza(draw: ImageDraw.ImageDraw, rng: np.random.Generator, w: int, h: int) -> None:
    draw.rectangle([0, 0, w, h], fill=(186, 180, 170))
    _grid(draw, (0, 62, w, h), (26, 16), (158, 152, 142), bond=False)
    draw.rectangle([0, 0, w, 58], fill=(150, 156, 160))
    for x in range(6, w, 44):
        draw.rectangle([x, 6, x + 26, 46], fill=(84, 100, 116))
        draw.line([(x + 13, 6), (x + 13, 46)], fill=(170, 174, 176), width=2)


def _paint_lawn(draw: ImageDraw.ImageDraw, rng: np.random.Generator, w: int, h: int) -> None:
    draw.rectangle([0, 0, w, h], fill=(110, 140, 78))
    draw.rectangle([0, 0, w, 66], fill=(58, 88, 52))
    for _ in range(240):
        x, y, r = int(rng.integers(w)), int(rng.integers(66)), int(rng.integers(3, 9))
        shade = int(rng.integers(-22, 26))
        draw.ellipse([x - r, y - r, x + r, y + r], fill=(64 + shade, 96 + shade, 54 + shade))
    draw.polygon([(0, 128), (w, 104), (w, 132), (0, 156)], fill=(176, 164, 138))


def _paint_brick(draw: ImageDraw.ImageDraw, rng: np.random.Generator, w: int, h: int) -> None:
    draw.rectangle([0, 0, w, h], fill=(142, 84, 64))
    _grid(draw, (0, 0, w, 112), (14, 6), (112, 66, 52), bond=True)
    draw.rectangle([0, 112, w, h], fill=(96, 92, 90))
    for x in range(30, w, 110):
        draw.rectangle([x, 14, x + 34, 112], fill=(60, 50, 44))
        draw.rectangle([x + 4, 20, x + 30, 60], fill=(104, 96, 76))


def _paint_station(draw: ImageDraw.ImageDraw, rng: np.random.Generator, w: int, h: int) -> None:
    draw.rectangle([0, 0, w, h], fill=(204, 206, 206))
    _grid(draw, (0, 0, w, 90), (12, 12), (182, 186, 188), bond=False)
    draw.rectangle([0, 90, w, h], fill=(126, 128, 132))
    draw.rectangle([0, 98, w, 104], fill=(214, 184, 70))
    for x in range(20, w, 96):
        colour = tuple(int(value) for value in rng.integers(50, 220, size=3))
        draw.rectangle([x, 16, x + 40, 56], fill=colour, outline=(60, 60, 64))
        draw.rectangle([x + 56, 0, x + 66, 118], fill=(156, 160, 164))


def _paint_road(draw: ImageDraw.ImageDraw, rng: np.random.Generator, w: int, h: int) -> None:
    draw.rectangle([0, 0, w, h], fill=(92, 94, 98))
    draw.rectangle([0, 0, w, 26], fill=(140, 146, 136))
    draw.rectangle([0, 26, w, 34], fill=(170, 168, 162))
    for x in range(0, w, 40):
        draw.polygon([(x, 74), (x + 22, 74), (x + 14, 80), (x - 8, 80)], fill=(216, 214, 206))
    for x in range(-20, w, 150):
        draw.polygon([(x, 104), (x + 90, 104), (x + 66, h), (x - 24, h)], fill=(122, 122, 122))


def _paint_arcade(draw: ImageDraw.ImageDraw, rng: np.random.Generator, w: int, h: int) -> None:
    draw.rectangle([0, 0, w, h], fill=(176, 150, 132))
    _grid(draw, (0, 100, w, h), (18, 18), (140, 116, 104), bond=True)
    for x in range(0, w, 70):
        draw.rectangle([x, 0, x + 56, 98], fill=(56, 52, 62))
        for _ in range(10):
            left, top = x + int(rng.integers(4, 46)), int(rng.integers(10, 84))
            colour = tuple(int(value) for value in rng.integers(60, 235, size=3))
            draw.rectangle([left, top, left + 9, top + 13], fill=colour)


_PLACES = {
    "plaza": _paint_plaza,
    "lawn": _paint_lawn,
    "brick": _paint_brick,
    "station": _paint_station,
    "road": _paint_road,
    "arcade": _paint_arcade,
}


def paint_panorama(camera: Camera, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Everything that a camera overlooks, without people.

    Args:
        camera: gives the place.
        rng: places the leaves, posters and stains.
        strength: contrast; 0 gives plain grey, 1 the place as it is.

    Returns:
        (160, 320, 3) float32, sRGB in 0..255.
    """
    image = Image.new("RGB", _PANORAMA)
    _PLACES[camera.place](ImageDraw.Draw(image), rng, *_PANORAMA)
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(0.6)), dtype=np.float32)
    pixels = pixels + _mottle(rng, _PANORAMA, 4, 7.0) + _mottle(rng, _PANORAMA, 24, 9.0)
    return np.clip(128 + strength * (pixels - 128), 0, 255)


def cut_background(panorama: np.ndarray, spot: float, rng: np.random.Generator) -> np.ndarray:
    """The part of the panorama behind a person who passes at ``spot`` in [0, 1]; (128, 64, 3) float32."""
    left = int(np.clip(spot, 0, 1) * (_PANORAMA[0] - WIDTH))
    top = int(rng.integers(10, _PANORAMA[1] - HEIGHT - 10))
    return panorama[top : top + HEIGHT, left : left + WIDTH]


def _paint_bin(draw: ImageDraw.ImageDraw, rng: np.random.Generator, s: int) -> None:
    x, top = int(rng.integers(2, 40)) * s, int(rng.integers(74, 92)) * s
    colour = [(62, 84, 70), (92, 94, 98), (52, 66, 104)][int(rng.integers(3))]
    draw.polygon([(x, top), (x + 26 * s, top), (x + 23 * s, 140 * s), (x + 3 * s, 140 * s)], fill=(*colour, 255))
    lid = tuple(value + 28 for value in colour)
    draw.rounded_rectangle([x - 2 * s, top - 5 * s, x + 28 * s, top + s], radius=2 * s, fill=(*lid, 255))


def _paint_bike(draw: ImageDraw.ImageDraw, rng: np.random.Generator, s: int) -> None:
    x, y, r = int(rng.integers(0, 20)) * s, int(rng.integers(102, 112)) * s, 15 * s
    frame = tuple(int(value) for value in rng.integers(20, 200, size=3))
    for cx in (x, x + 44 * s):
        draw.ellipse([cx - r, y - r, cx + r, y + r], outline=(26, 26, 28, 255), width=2 * s)
    seat, bars, pedal = (x + 14 * s, y - 22 * s), (x + 38 * s, y - 24 * s), (x + 20 * s, y)
    for line in ([(x, y), seat, pedal, (x, y)], [seat, bars, pedal], [bars, (x + 44 * s, y)]):
        draw.line(line, fill=(*frame, 255), width=2 * s)
    draw.line(
        [(seat[0] - 5 * s, seat[1] - 3 * s), (seat[0] + 5 * s, seat[1] - 3 * s)], fill=(26, 26, 28, 255), width=3 * s
    )


def _paint_car(draw: ImageDraw.ImageDraw, rng: np.random.Generator, s: int) -> None:
    colour = [(180, 184, 188), (150, 36, 40), (40, 52, 84), (34, 34, 36)][int(rng.integers(4))]
    top, side = int(rng.integers(80, 98)) * s, int(rng.integers(2))
    x0, x1 = (-30 * s, 40 * s) if side else (24 * s, 100 * s)
    draw.rounded_rectangle([x0, top, x1, 160 * s], radius=10 * s, fill=(*colour, 255))
    wheel = (x0 + x1) // 2
    draw.ellipse([wheel - 12 * s, 116 * s, wheel + 12 * s, 140 * s], fill=(24, 24, 24, 255))


def _paint_passer_by(draw: ImageDraw.ImageDraw, rng: np.random.Generator, s: int) -> None:
    """The shoulder and arm of somebody else at the edge of the box."""
    colour = tuple(int(value) for value in rng.integers(30, 215, size=3))
    lower = tuple(int(value) for value in rng.integers(30, 140, size=3))
    inside = int(rng.integers(10, 22)) * s
    x0, x1 = (-30 * s, inside) if rng.random() < 0.5 else (64 * s - inside, 94 * s)
    top = int(rng.integers(18, 34)) * s
    draw.rounded_rectangle([x0 + 3 * s, 66 * s, x1 - 3 * s, 150 * s], radius=6 * s, fill=(*lower, 255))
    draw.rounded_rectangle([x0, top, x1, 74 * s], radius=11 * s, fill=(*colour, 255))


def _paint_pole(draw: ImageDraw.ImageDraw, rng: np.random.Generator, s: int) -> None:
    x, width = int(rng.integers(8, 54)) * s, int(rng.integers(3, 7)) * s
    draw.rectangle([x, 0, x + width, 128 * s], fill=(92, 96, 98, 255))
    draw.rectangle([x, 0, x + width // 3, 128 * s], fill=(136, 140, 142, 255))


_OBSTACLES = (_paint_bin, _paint_bike, _paint_car, _paint_passer_by, _paint_pole)


def paint_obstacle(rng: np.random.Generator, supersampling: int) -> Image.Image:
    """Something that stands before the person: (64, 128) image, mode ``RGBa`` (premultiplied)."""
    layer = Image.new("RGBA", (WIDTH * supersampling, HEIGHT * supersampling), (0, 0, 0, 0))
    _OBSTACLES[int(rng.integers(len(_OBSTACLES)))](ImageDraw.Draw(layer), rng, supersampling)
    return layer.convert("RGBa").reduce(supersampling)


def shade_fabric(layer: Image.Image, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Give a flat figure some roundness and folds.

    Args:
        layer: (64, 128) image, mode ``RGBa``.
        rng: places the folds.

    Returns:
        Premultiplied colours (128, 64, 3) in 0..255 and coverage (128, 64, 1) in 0..1, both float32.
    """
    values = np.asarray(layer, dtype=np.float32)
    coverage = values[..., 3:] / 255
    inner = np.asarray(layer.getchannel("a").filter(ImageFilter.GaussianBlur(3)), dtype=np.float32)[..., None] / 255
    folds = _mottle(rng, (WIDTH, HEIGHT), 5, 0.07)
    return np.clip(values[..., :3] * (0.62 + 0.42 * inner + folds), 0, 255), coverage


def expose(
    scene: np.ndarray, camera: Camera, exposure: float, rng: np.random.Generator, difficulty: SceneDifficulty
) -> Image.Image:
    """What the camera's sensor makes of a scene: light, cast, gamma, saturation, haze, blur, noise.

    Args:
        scene: (128, 64, 3) float32, sRGB in 0..255.
        camera: the sensor.
        exposure: brightness of this passage relative to the camera's usual one.
        rng: draws light and noise of this image.
        difficulty: ``cast``, ``light`` and ``degradation`` scale the effects.
    """
    cast = difficulty.cast
    rows, columns = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j].astype(np.float32)
    angle = camera.light + rng.normal(0, 0.4)
    light = 1 + 0.18 * difficulty.light * (math.cos(angle) * columns + math.sin(angle) * rows)
    values = scene / 255 * (light[..., None] * exposure)
    values = np.clip(values, 0, 1.5) ** (camera.gamma**cast) * np.asarray(camera.gain, np.float32) ** cast
    grey = values.mean(axis=2, keepdims=True)
    values = grey + camera.saturation**cast * (values - grey)
    haze = camera.haze * cast
    values = np.clip(haze + (1 - haze) * values, 0, 1) * 255
    image = Image.fromarray(values.astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(camera.blur * difficulty.degradation))
    noise = rng.normal(0, camera.noise * difficulty.degradation, size=scene.shape)
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
