"""Shapes given in object coordinates, painted on a picture: the one place where coordinates become pixels.

Object coordinates are (x right, y down); an object fills about -1 to 1 in both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from memssl_core.data.drawn.colours import Rgb

Point = tuple[float, float]
Points = Sequence[Point] | np.ndarray

_RISE = 4  # relief levels between one shape and the next
_CIRCLE = np.stack([f(np.arange(22) * 2 * math.pi / 22) for f in (np.cos, np.sin)], axis=1)
_T = np.arange(6)[:, None] / 6
_CATMULL_ROM = 0.5 * np.hstack(
    [-_T + 2 * _T**2 - _T**3, 2 - 5 * _T**2 + 3 * _T**3, _T + 4 * _T**2 - 3 * _T**3, -(_T**2) + _T**3]
)


class Layer(Enum):
    """Lowest and highest relief level of what lies behind, of the object, and of what hides part of it."""

    BACKDROP = (0, 79)
    OBJECT = (80, 209)
    FRONT = (210, 255)


class Canvas:
    """A picture and its relief: how high the topmost shape lies at each pixel, which also tells the layers apart."""

    def __init__(self, side_px: int, colour: Rgb):
        self.side_px = side_px
        self.picture = Image.new("RGB", (side_px, side_px), colour)
        self.relief = Image.new("L", (side_px, side_px))
        self.colours = ImageDraw.Draw(self.picture)
        self.levels = ImageDraw.Draw(self.relief)
        self.start(Layer.BACKDROP)
        self.outline: Rgb | None = None

    def start(self, layer: Layer):
        self.level, self.highest = layer.value

    def rise(self) -> int:
        """The relief level of the next shape."""
        self.level = min(self.level + _RISE, self.highest)
        return self.level

    def object_mask(self) -> Image.Image:
        """255 where the object is seen, else 0."""
        lowest, highest = Layer.OBJECT.value
        return self.relief.point([255 * (lowest <= level <= highest) for level in range(256)])


@dataclass(frozen=True)
class Brush:
    """Paints on a canvas under an affine pose: pixel = matrix @ point + origin."""

    canvas: Canvas
    matrix: np.ndarray  # [2, 2], pixels per object unit
    origin: np.ndarray  # [2], pixels

    def at(self, pivot: Point, turn: float = 0.0, stretch: Point = (1.0, 1.0)) -> Brush:
        """A brush whose (0, 0) is the pivot, turned by `turn` radians (clockwise): a joint."""
        cos, sin = math.cos(turn), math.sin(turn)
        local = np.array([[cos * stretch[0], -sin * stretch[1]], [sin * stretch[0], cos * stretch[1]]])
        return Brush(self.canvas, self.matrix @ local, self.pixels([pivot])[0])

    def pixels(self, points: Points) -> np.ndarray:
        """[n, 2] object coordinates -> [n, 2] pixels of the canvas."""
        return np.asarray(points, dtype=np.float64) @ self.matrix.T + self.origin

    @property
    def unit_px(self) -> float:
        return math.sqrt(abs(np.linalg.det(self.matrix)))

    def shape(
        self,
        points: Points,
        colour: Rgb,
        *,
        marks: Sequence[np.ndarray] = (),
        mark_colour: Rgb = (0, 0, 0),
        inked: bool = True,
    ):
        """A filled polygon with marks (polygons of the same coordinates) painted inside; `inked` draws the outline."""
        canvas = self.canvas
        outline_px = self.pixels(points)
        corners = outline_px.ravel().tolist()
        canvas.levels.polygon(corners, fill=canvas.rise())
        canvas.colours.polygon(corners, fill=colour)
        self._mark(outline_px, marks, mark_colour)
        if inked and canvas.outline is not None:
            width = max(1, round(canvas.side_px / 110))
            canvas.colours.line([*corners, *corners[:4]], fill=canvas.outline, width=width, joint="curve")

    def curve(self, points: Points, colour: Rgb, **style):
        """A closed smooth shape through the points (Catmull-Rom)."""
        knots = np.asarray(points, dtype=np.float64)
        around = knots[(np.arange(len(knots))[:, None] + (-1, 0, 1, 2)) % len(knots)]  # [n, 4, 2]
        self.shape((_CATMULL_ROM @ around).reshape(-1, 2), colour, **style)

    def oval(self, centre: Point, radii: Point, colour: Rgb, **style):
        self.shape(oval(centre, radii), colour, **style)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Rgb, **style):
        self.shape([(left, top), (right, top), (right, bottom), (left, bottom)], colour, **style)

    def line(self, points: Points, width: float, colour: Rgb):
        """An open line, `width` object units wide, with round ends."""
        canvas, track = self.canvas, [tuple(p) for p in self.pixels(points).tolist()]
        width_px = max(1, round(width * self.unit_px))
        for draw, fill in ((canvas.levels, canvas.rise()), (canvas.colours, colour)):
            draw.line(track, fill=fill, width=width_px, joint="curve")
            for x, y in (track[0], track[-1]):
                r = width_px / 2
                draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)

    def _mark(self, outline_px: np.ndarray, marks: Sequence[np.ndarray], colour: Rgb):
        if not len(marks):
            return
        corner = np.floor(outline_px.min(axis=0))
        width, height = (np.ceil(outline_px.max(axis=0)) - corner + 1).astype(int).tolist()
        inside, marked = (Image.new("L", (width, height)) for _ in range(2))
        ImageDraw.Draw(inside).polygon((outline_px - corner).ravel().tolist(), fill=255)
        draw = ImageDraw.Draw(marked)
        for mark in marks:
            draw.polygon((self.pixels(mark) - corner).ravel().tolist(), fill=255)
        left, top = corner.astype(int).tolist()
        box = (left, top, left + width, top + height)
        self.canvas.picture.paste(colour, box, ImageChops.darker(inside, marked))


def oval(centre: Point | np.ndarray, radii: Point | np.ndarray) -> np.ndarray:
    """[22, 2] points around an ellipse."""
    return _CIRCLE * radii + centre


def bend(points: Points, amount: float) -> np.ndarray:
    """Move y by amount * x^2: a straight body becomes an arch."""
    bent = np.array(points, dtype=np.float64)
    bent[:, 1] += amount * bent[:, 0] ** 2
    return bent
