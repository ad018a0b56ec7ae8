"""A scene: backdrop, one object in a pose, sometimes something in front, and light over all of it.

Backdrop, pose, colours and light are thrown from streams of their own and never see the class.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from memssl_core.data.drawn.brush import Brush, Canvas, Layer, oval
from memssl_core.data.drawn.colours import Coat, Tone, backdrop_tone, coat_against
from memssl_core.data.drawn.dice import Dice

Painter = Callable[[Brush, Dice, Coat, list], None]
SUPERSAMPLING = 3
_BACKDROP, _POSE, _OBJECT, _COLOURS, _FRONT, _LIGHT = range(1, 7)


def paint_scene(painter: Painter, seed: int, index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The picture uint8 [size, size, 3] and where its object is seen, bool [size, size]."""
    dice = [Dice(seed, index, stream) for stream in range(7)]
    tone = backdrop_tone(dice[_BACKDROP])
    canvas = Canvas(size * SUPERSAMPLING, tone.rgb)
    whole = Brush(canvas, np.eye(2) * canvas.side_px / 2, np.full(2, canvas.side_px / 2))
    _paint_backdrop(whole, tone, dice[_BACKDROP])
    coat = coat_against(tone, dice[_COLOURS])
    canvas.start(Layer.OBJECT)
    canvas.outline = coat.dark if dice[_COLOURS].chance(0.45) else None
    painter(_pose(whole, dice[_POSE]), dice[_OBJECT], coat, _marks(dice[_COLOURS]))
    canvas.start(Layer.FRONT)
    canvas.outline = None
    _paint_front(whole, tone, dice[_FRONT])
    mask = np.asarray(canvas.object_mask().reduce(SUPERSAMPLING)) >= 128
    return _light(canvas, size, dice[_LIGHT]), mask


def _pose(whole: Brush, dice: Dice) -> Brush:
    scale = dice.middling(0.55, 1.0)
    room = 1.04 - scale
    place = (dice.number(-room, room), dice.number(-room, room))
    aspect, mirror = dice.number(0.87, 1.15), dice.pick((-1, 1))
    posed = whole.at(place, dice.middling(-0.6, 0.6), (scale * aspect * mirror, scale / aspect))
    shear = dice.middling(-0.2, 0.2)
    return Brush(posed.canvas, posed.matrix @ np.array([[1.0, shear], [0.0, 1.0]]), posed.origin)


def _marks(dice: Dice) -> list[np.ndarray]:
    """Nothing, stripes, spots or patches: polygons over the whole of the object coordinates."""
    kind = dice.pick(("plain", "stripes", "spots", "patches"))
    turn, step = dice.number(0.0, math.pi), dice.number(0.16, 0.34)
    if kind == "plain":
        return []
    if kind == "stripes":
        starts, width = np.arange(-1.4, 1.4, step), step * dice.number(0.3, 0.6)
        rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        return [np.array([(-1.6, y), (1.6, y), (1.6, y + width), (-1.6, y + width)]) @ rotation for y in starts]
    count, radius = (36, 0.075) if kind == "spots" else (7, 0.26)
    centres, radii = 2 * dice.numbers(count, 2) - 1, radius * (0.6 + 0.8 * dice.numbers(count, 2))
    return [oval(centre, pair) for centre, pair in zip(centres, radii, strict=True)]


def _paint_backdrop(brush: Brush, tone: Tone, dice: Dice):
    """Sky in bands, perhaps a ground, and clutter: blobs, polygons, lines."""
    far = tone.near(dice, 0.14, 0.12)
    turn, bands = dice.number(0.0, 2 * math.pi), dice.whole(1, 9)
    sky = brush.at((0.0, 0.0), turn)
    for band in range(bands):
        t = (band + 1) / bands
        lightness = tone.lightness + t * (far.lightness - tone.lightness)
        mixed = Tone(lightness, tone.chroma, tone.hue + t * (far.hue - tone.hue))
        sky.box(-1.5, -1.4 + 2.8 * (band + 0.5) / bands, 1.5, 1.5, mixed.rgb)
        brush.canvas.level = 0
    if dice.chance(0.55):
        _paint_ground(brush, tone.near(dice, 0.16, 0.25), dice)
    for _ in range(dice.whole(3, 16)):
        brush.canvas.level = dice.whole(0, 36)
        _paint_clutter(brush, tone.near(dice, 0.12, 0.2).rgb, dice)


def _paint_ground(brush: Brush, tone: Tone, dice: Dice):
    for layer in range(dice.whole(1, 3)):
        height = dice.number(-0.1, 0.5) + 0.2 * layer
        hills = [(x, height + dice.number(-0.12, 0.12)) for x in (-1.3, -0.8, -0.3, 0.3, 0.8, 1.3)]
        brush.curve([*hills, (1.6, 1.8), (-1.6, 1.8)], tone.near(dice, 0.05, 0.05).rgb)


def _paint_clutter(brush: Brush, colour: tuple[int, int, int], dice: Dice):
    spot = brush.at((dice.number(-1.1, 1.1), dice.number(-1.1, 1.1)), dice.number(0.0, 6.3))
    kind, size, slim = dice.whole(0, 4), dice.middling(0.04, 0.55), dice.number(0.35, 1.0)
    if kind == 0:
        spot.oval((0.0, 0.0), (size, size * slim), colour)
    elif kind == 1:
        corners = dice.whole(3, 6)
        spot.shape(_star(dice, corners, 0.7 * size) * (1.0, slim), colour)
    elif kind == 2:
        spot.line([(-1.5 * size, 0.0), (0.0, size * dice.number(-0.5, 0.5)), (1.5 * size, 0.0)], 0.1 * slim, colour)
    elif kind == 3:
        spot.curve(_star(dice, 7, 0.6 * size), colour)
    else:
        for x, y in (dice.numbers(dice.whole(3, 7), 2) - 0.5).tolist():
            spot.oval((2 * size * x, 2 * size * y), (0.13 * size + 0.02, 0.13 * size + 0.02), colour)


def _star(dice: Dice, corners: int, reach: float) -> np.ndarray:
    """[corners, 2] points around (0, 0), each between one and two `reach` away."""
    turns, away = np.arange(corners) * 2 * math.pi / corners, reach * (1 + dice.numbers(corners))
    return np.stack([away * np.cos(turns), away * np.sin(turns)], axis=1)


def _paint_front(brush: Brush, tone: Tone, dice: Dice):
    """Now and then leaves or a twig between us and the object, in colours of the backdrop."""
    if not dice.chance(0.3):
        return
    colour = tone.near(dice, 0.2, 0.3).rgb
    twig = brush.at((dice.number(-0.8, 0.8), dice.number(-0.8, 0.8)), dice.number(0.0, 6.3))
    if dice.chance(0.5):
        twig.line([(-0.35, 0.0), (0.0, dice.number(-0.1, 0.1)), (0.4, 0.0)], dice.number(0.03, 0.07), colour)
    for _ in range(dice.whole(1, 3)):
        leaf = twig.at((dice.number(-0.3, 0.3), 0.0), dice.number(-2.5, 2.5))
        leaf.curve([(0.0, 0.0), (0.15, -0.08), (0.33, 0.0), (0.15, 0.08)], colour)


def _light(canvas: Canvas, size: int, dice: Dice) -> np.ndarray:
    """Paper-cut light: shapes throw soft shadows and have lit edges; then exposure, colour cast, vignette and grain."""
    picture = np.asarray(canvas.picture.reduce(SUPERSAMPLING), dtype=np.float32)
    height = np.asarray(canvas.relief.reduce(SUPERSAMPLING), dtype=np.float32) / 255
    turn, strength = dice.number(0.0, 2 * math.pi), dice.number(0.5, 1.3)
    toward = (math.cos(turn), math.sin(turn))  # where the light comes from, as (x, y)
    soft, broad = _resample(_resample(height, 48), size), _resample(_resample(height, 18), size)
    reach = size / 28
    rows, columns = (np.clip(np.arange(size) + round(reach * t), 0, size - 1) for t in reversed(toward))
    shadow = np.clip(soft[np.ix_(rows, columns)] - height, 0, 0.3)
    down, right = np.gradient(0.12 * broad + 0.02 * soft)
    slope = toward[0] * right + toward[1] * down
    glow = -slope * size * strength * np.clip(2.5 * height, 0.2, 1)
    across = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = across[None, :], across[:, None]
    fall = 1 + dice.number(0.0, 0.16) * (toward[0] * x + toward[1] * y) - dice.number(0.0, 0.15) * (x * x + y * y)
    gain = dice.number(0.88, 1.15) * fall * (1 - 1.3 * strength * shadow) * (1 + np.clip(glow, -0.3, 0.4))
    gain *= 1 + _noise(dice, 12, size, 0.14) + _noise(dice, 96, size, 0.09)
    cast = np.array([dice.number(0.9, 1.08) for _ in range(3)], dtype=np.float32)
    return np.clip(picture * gain[..., None] * cast + 0.5, 0, 255).astype(np.uint8)


def _noise(dice: Dice, cells: int, size: int, most: float) -> np.ndarray:
    """float32 [size, size] around 0: the same pattern at every size."""
    return _resample((dice.numbers(cells, cells) - 0.5).astype(np.float32) * dice.number(0.2 * most, most), size)


def _resample(field: np.ndarray, size: int) -> np.ndarray:
    """float32 [n, n] -> [size, size]; down to a coarse grid and up again is a blur as wide at every size."""
    return np.asarray(Image.fromarray(field).resize((size, size), Image.Resampling.BICUBIC))
