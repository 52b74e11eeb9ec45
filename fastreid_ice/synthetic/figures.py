"""How the people of the synthetic dataset are painted.

A person is a small 3-D skeleton (lateral, up, forward; unit: body height) that is turned about the vertical
axis, projected orthographically and painted far parts first. Hence a back view shows the backpack and hides the
logo without a special case. Numpy and Pillow only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from fastreid_ice.synthetic.people import Appearance, Colour, Pose

Point = tuple[float, float, float]  # lateral (the person's left is positive), up, forward

SUPERSAMPLING = 4  # figures are painted this many times larger and averaged down
_LEG_SHIFT = -0.5  # legs lie behind the clothes of the upper body, however far they reach forward


class _Painter:
    """Collects the parts of a body and paints them far to near on a transparent image."""

    def __init__(self, size: tuple[int, int], centre: float, feet: float, height: float, turn: float):
        self.image = Image.new("RGBA", size, (0, 0, 0, 0))
        self.centre, self.feet, self.height = centre, feet, height
        self.cos, self.sin = math.cos(turn), math.sin(turn)
        self.parts: list[tuple[float, str, list[tuple[float, float]], Colour]] = []

    def depth(self, point: Point) -> float:
        """Towards the camera is positive."""
        return point[2] * self.cos - point[0] * self.sin

    def project(self, point: Point) -> tuple[float, float]:
        across = point[0] * self.cos + point[2] * self.sin
        # The camera hangs above the people: what is nearer appears lower.
        up = point[1] - 0.1 * self.depth(point)
        return self.centre + across * self.height, self.feet - up * self.height

    def polygon(self, points: list[Point], colour: Colour, depth: float) -> None:
        self.parts.append((depth, "polygon", [self.project(point) for point in points], colour))

    def ball(self, point: Point, width: float, height: float, colour: Colour, depth: float | None = None) -> None:
        x, y = self.project(point)
        rx, ry = width * self.height, height * self.height
        box = [(x - rx, y - ry), (x + rx, y + ry)]
        self.parts.append((self.depth(point) if depth is None else depth, "ellipse", box, colour))

    def limb(
        self, start: Point, end: Point, start_radius: float, end_radius: float, colour: Colour, shift: float = 0.0
    ) -> None:
        """A tapered capsule between two joints; ``shift`` is added to its depth."""
        depth = (self.depth(start) + self.depth(end)) / 2 + shift
        (x0, y0), (x1, y1) = self.project(start), self.project(end)
        length = math.hypot(x1 - x0, y1 - y0) or 1.0
        nx, ny = -(y1 - y0) / length * self.height, (x1 - x0) / length * self.height
        a, b = start_radius, end_radius
        outline = [(x0 + a * nx, y0 + a * ny), (x1 + b * nx, y1 + b * ny)]
        outline += [(x1 - b * nx, y1 - b * ny), (x0 - a * nx, y0 - a * ny)]
        self.ball(start, a, a, colour, depth)
        self.ball(end, b, b, colour, depth)
        self.parts.append((depth, "polygon", outline, colour))

    def paint(self) -> Image.Image:
        draw = ImageDraw.Draw(self.image)
        for _, kind, points, colour in sorted(self.parts, key=lambda part: part[0]):
            (draw.polygon if kind == "polygon" else draw.ellipse)(points, fill=(*colour, 255))
        return self.image


@dataclass(frozen=True)
class _Torso:
    """An upright body of elliptic cross-sections, whose surface is addressed by angle and height."""

    build: float
    lean: float

    # height above ground -> half-width; depth is a fixed share of the width
    _HEIGHTS = (0.30, 0.44, 0.50, 0.60, 0.76, 0.815, 0.84)
    _WIDTHS = (0.125, 0.112, 0.098, 0.092, 0.122, 0.108, 0.040)

    def surface(self, angle: float, up: float) -> Point:
        """Point on the surface; angle 0 is the chest, pi the back."""
        width = float(np.interp(up, self._HEIGHTS, self._WIDTHS)) * self.build
        forward = self.lean * max(0.0, (up - 0.5) / 0.3)
        return width * math.sin(angle), up, 0.62 * width * math.cos(angle) + forward

    def rows(self, low: float, high: float) -> list[float]:
        inner = [height for height in self._HEIGHTS if low < height < high]
        return [low, *inner, high]


def _paint_band(painter: _Painter, torso: _Torso, low: float, high: float, colour: Colour, depth: float) -> None:
    """Everything of the torso between two heights."""
    # The silhouette lies where the surface is seen edge-on.
    edge = math.atan2(painter.cos, 0.62 * painter.sin)
    left = [torso.surface(edge, up) for up in torso.rows(low, high)]
    right = [torso.surface(edge + math.pi, up) for up in reversed(torso.rows(low, high))]
    painter.polygon(left + right, colour, depth)


def _paint_patch(
    painter: _Painter, torso: _Torso, angles: tuple[float, float], low: float, high: float, colour: Colour, depth: float
) -> None:
    """A piece of the surface, painted only where it faces the camera."""
    facing = [a for a in np.linspace(*angles, 7) if painter.depth(torso.surface(a, (low + high) / 2)) > 0]
    if len(facing) < 2:
        return
    left = [torso.surface(facing[0], up) for up in torso.rows(low, high)]
    right = [torso.surface(facing[-1], up) for up in reversed(torso.rows(low, high))]
    painter.polygon(left + right, colour, depth)


def _paint_top(painter: _Painter, torso: _Torso, look: Appearance) -> None:
    hem = 0.40 if look.coat else 0.485
    _paint_band(painter, torso, hem, 0.84, look.top, 0.0)
    if look.pattern == "hoops":
        for low in np.arange(hem + 0.03, 0.8, 0.085):
            _paint_band(painter, torso, float(low), float(low) + 0.04, look.second, 0.001)
    elif look.pattern == "stripes":
        for angle in np.arange(-math.pi, math.pi, math.pi / 5):
            _paint_patch(painter, torso, (angle, angle + math.pi / 10), hem, 0.815, look.second, 0.001)
    elif look.pattern == "two_tone":
        _paint_band(painter, torso, hem, 0.64, look.second, 0.001)
    elif look.pattern == "logo":
        _paint_patch(painter, torso, (-0.55, 0.55), 0.65, 0.745, look.second, 0.001)
    elif look.pattern == "jacket":
        _paint_patch(painter, torso, (-0.42, 0.42), hem, 0.83, look.second, 0.001)


def _paint_arm(painter: _Painter, torso: _Torso, look: Appearance, side: int, swing: float) -> None:
    shoulder = (side * 0.112 * look.build, 0.785, torso.lean)
    elbow = (shoulder[0] + side * 0.022, 0.625, shoulder[2] + 0.16 * math.sin(swing))
    bend = swing + 0.25
    hand = (elbow[0] + side * 0.004, elbow[1] - 0.145 * math.cos(bend), elbow[2] + 0.145 * math.sin(bend))
    sleeve = look.top if look.pattern != "two_tone" else look.second
    painter.limb(shoulder, elbow, 0.042 * look.build, 0.033, sleeve)
    painter.limb(elbow, hand, 0.031, 0.024, sleeve if look.long_sleeves else look.skin)
    painter.ball(hand, 0.024, 0.026, look.skin, painter.depth(hand) + 0.002)
    if look.carried == "handbag" and side == 1:
        x, y, z = hand
        corners = [(x, y, z - 0.07), (x, y, z + 0.07), (x, y - 0.13, z + 0.085), (x, y - 0.13, z - 0.085)]
        wide = [(cx + shift, cy, cz) for shift, (cx, cy, cz) in zip((-0.05, 0.05, 0.06, -0.06), corners)]
        painter.polygon(wide, look.bag, painter.depth(hand) + 0.02)


def _paint_leg(painter: _Painter, look: Appearance, side: int, angle: float, bend: float) -> None:
    hip = (side * 0.048 * look.build, 0.49, 0.0)
    knee = (hip[0], hip[1] - 0.23 * math.cos(angle), 0.23 * math.sin(angle))
    shin = angle - bend
    ankle = (hip[0], knee[1] - 0.215 * math.cos(shin), knee[2] + 0.215 * math.sin(shin))
    thigh = look.skin if look.lower == "skirt" else look.lower_colour
    calf = look.lower_colour if look.lower == "trousers" else look.skin
    painter.limb(hip, knee, 0.062 * look.build, 0.046, thigh, _LEG_SHIFT)
    painter.limb(knee, ankle, 0.043, 0.036 if look.lower == "trousers" else 0.026, calf, _LEG_SHIFT)
    heel, toe = (ankle[0], ankle[1] - 0.022, ankle[2] - 0.02), (ankle[0], ankle[1] - 0.03, ankle[2] + 0.07)
    painter.limb(heel, toe, 0.032, 0.026, look.shoes, _LEG_SHIFT)
    # The shoe hides the hem of the leg whichever way the foot points.
    painter.ball(heel, 0.036, 0.03, look.shoes, painter.depth(ankle) + 0.01 + _LEG_SHIFT)


def _paint_hips(painter: _Painter, torso: _Torso, look: Appearance) -> None:
    if look.lower == "skirt":
        _paint_band(painter, torso, 0.30, 0.52, look.lower_colour, -0.1)
    else:
        _paint_band(painter, torso, 0.46, 0.52, look.lower_colour, -0.1)


def _paint_head(painter: _Painter, look: Appearance, lean: float) -> None:
    neck = (0.0, 0.82, lean)
    painter.limb(neck, (0.0, 0.88, lean), 0.036, 0.034, look.skin)
    middle = (0.0, 0.915, lean + 0.005)
    painter.ball(middle, 0.058, 0.074, look.skin, 0.05)
    if look.hairstyle == "bald":
        return
    behind = painter.cos < -0.25  # hair covers the back of the head
    hair_back = (0.0, 0.93, lean - 0.022)
    painter.ball(hair_back, 0.062, 0.070, look.hair, 0.06 if behind else 0.045)
    if look.hairstyle == "long":
        low = (0.0, 0.85, lean - 0.035)
        painter.ball(low, 0.064, 0.085, look.hair, 0.061 if behind else -0.02)
    fringe = (0.0, 0.968, lean)
    painter.ball(fringe, 0.056, 0.032, look.hair, 0.055)
    if look.hairstyle == "cap":
        painter.ball((0.0, 0.968, lean), 0.061, 0.036, look.bag, 0.065)
        painter.limb((0.0, 0.950, lean + 0.04), (0.0, 0.945, lean + 0.085), 0.024, 0.020, look.bag)


def _paint_bag(painter: _Painter, torso: _Torso, look: Appearance) -> None:
    if look.carried == "backpack":
        depth = 0.03 if painter.cos < 0 else -0.03
        z0, z1 = torso.lean - 0.06, torso.lean - 0.15
        for z, grow in ((z1, 1.0), (z0, 0.95)):
            half = 0.085 * grow
            painter.polygon(
                [(-half, 0.80, z), (half, 0.80, z), (half * 1.1, 0.56, z), (-half * 1.1, 0.56, z)], look.bag, depth
            )
        painter.polygon([(0, 0.80, z0), (0, 0.80, z1), (0, 0.56, z1), (0, 0.56, z0)], look.bag, depth)
        for side in (-1, 1):
            _paint_patch(painter, torso, (side * 0.75 - 0.13, side * 0.75 + 0.13), 0.6, 0.825, look.bag, 0.002)
    elif look.carried == "shoulder_bag":
        x = 0.125 * look.build
        strap = [(-0.07, 0.825, 0.0), (-0.045, 0.83, 0.0), (x, 0.5, 0.0), (x - 0.03, 0.49, 0.0)]
        painter.polygon(strap, look.bag, 0.003)
        corners = [(x, 0.52, -0.09), (x, 0.52, 0.09), (x, 0.38, 0.1), (x, 0.38, -0.1)]
        wide = [(cx + shift, cy, cz) for shift, (cx, cy, cz) in zip((-0.03, 0.05, 0.06, -0.04), corners)]
        painter.polygon(wide, look.bag, painter.depth((x, 0.45, 0.0)) + 0.03)


def paint_person(look: Appearance, pose: Pose, size: tuple[int, int], centre: float, feet: float, height: float):
    """Paint one person on a transparent image.

    Args:
        look: the identity.
        pose: direction and moment of the walk.
        size: width and height of the image, in pixels.
        centre: column of the body's axis, in pixels.
        feet: row of the soles, in pixels; may lie below the image.
        height: height of an average body, in pixels; ``look.stature`` scales it.

    Returns:
        An RGBA image of ``size``, antialiased, colours premultiplied (mode ``RGBa``).
    """
    s = SUPERSAMPLING
    painter = _Painter((size[0] * s, size[1] * s), centre * s, feet * s, height * look.stature * s, pose.turn)
    torso = _Torso(look.build, pose.lean)
    stride = pose.stride * math.sin(pose.phase)
    lift = 0.35 * pose.stride * (1 + math.cos(pose.phase))
    _paint_leg(painter, look, 1, stride, lift if stride < 0 else 0.08)
    _paint_leg(painter, look, -1, -stride, lift if stride > 0 else 0.08)
    _paint_hips(painter, torso, look)
    _paint_top(painter, torso, look)
    swing = pose.swing * math.sin(pose.phase)
    _paint_arm(painter, torso, look, 1, -swing)
    _paint_arm(painter, torso, look, -1, swing)
    _paint_bag(painter, torso, look)
    _paint_head(painter, look, pose.lean)
    return painter.paint().convert("RGBa").reduce(s)
