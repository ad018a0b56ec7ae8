"""Buildings: they stand upright, seen from the front."""

from __future__ import annotations

import numpy as np

from memssl_core.data.drawn.brush import Brush
from memssl_core.data.drawn.colours import Coat
from memssl_core.data.drawn.dice import Dice


def house(brush: Brush, dice: Dice, coat: Coat, marks: list):
    wide, eaves, ridge = dice.number(0.62, 0.82), dice.number(-0.2, 0.05), dice.number(-0.92, -0.7)
    if dice.chance(0.75):
        x = dice.pick((-1, 1)) * dice.number(0.3, 0.5)
        brush.box(x - 0.1, ridge + 0.02, x + 0.1, eaves, coat.accent)
        brush.box(x - 0.14, ridge - 0.06, x + 0.14, ridge + 0.04, coat.dark)
    brush.box(-wide, eaves, wide, 0.92, coat.main, marks=marks if dice.chance(0.5) else [], mark_colour=coat.pale)
    peak = dice.number(-0.2, 0.2) if dice.chance(0.6) else 0.0
    overhang = wide + dice.number(0.1, 0.18)
    flat = dice.pick((0.0, 0.0, dice.number(0.1, 0.35)))
    roof = [(-overhang, eaves + 0.06), (peak - flat, ridge), (peak + flat, ridge), (overhang, eaves + 0.06)]
    brush.shape(roof, coat.second)
    door_x, door_top = dice.number(-0.4, 0.4) * wide, dice.number(0.38, 0.48)
    brush.box(door_x - 0.15, door_top, door_x + 0.15, 0.92, coat.dark)
    brush.oval((door_x + 0.08, 0.68), (0.03, 0.03), coat.accent)
    for x in (-0.62 * wide, 0.0, 0.62 * wide):
        if abs(x - door_x) > 0.34:
            _window(brush, x, eaves + 0.4, dice.number(0.13, 0.17), coat)
    if ridge < -0.75 and dice.chance(0.7):
        brush.oval((0.6 * peak, 0.5 * (ridge + eaves) + 0.1), (0.11, 0.11), coat.pale)


def lighthouse(brush: Brush, dice: Dice, coat: Coat, marks: list):
    foot, neck = dice.number(0.34, 0.44), dice.number(0.2, 0.26)
    gallery = dice.number(-0.5, -0.4)
    if dice.chance(0.7):
        rocks = [(-0.8, 0.98), (-0.62, 0.78), (-0.3, 0.74), (0.1, 0.7), (0.5, 0.76), (0.75, 0.86), (0.85, 0.98)]
        brush.shape([(x, y + dice.number(-0.05, 0.05)) for x, y in rocks], coat.accent)
    tower = [(-foot, 0.9), (-neck, gallery), (neck, gallery), (foot, 0.9)]
    bands = dice.whole(0, 4)
    step = (0.9 - gallery) / (2 * max(bands, 1))
    tops = [gallery + (2 * band + 1) * step for band in range(bands)]
    rings = [np.array([(-1, y), (1, y), (1, y + step), (-1, y + step)]) for y in tops]
    brush.shape(tower, coat.main, marks=rings or marks, mark_colour=coat.pale if rings else coat.second)
    brush.curve([(-0.11, 0.9), (-0.11, 0.68), (0.0, 0.58), (0.11, 0.68), (0.11, 0.9)], coat.dark)
    for y in (0.35, -0.05):
        if dice.chance(0.7):
            brush.oval((dice.number(-0.08, 0.08), y), (0.07, 0.09), coat.dark)
    lamp = brush.at((0.0, gallery))
    glass = 0.75 * neck
    lamp.box(-glass, -0.28, glass, 0.0, coat.accent)
    for x in (-0.5, 0.5):
        lamp.line([(x * glass, -0.28), (x * glass, 0.0)], 0.035, coat.dark)
    lamp.box(-neck - 0.1, -0.05, neck + 0.1, 0.05, coat.dark)
    eaves = glass + 0.07
    if dice.chance(0.5):
        lamp.shape([(-eaves, -0.26), (0.0, -0.5), (eaves, -0.26)], coat.second)
    else:
        dome = [(-eaves, -0.26), (-0.6 * glass, -0.42), (0.0, -0.5), (0.6 * glass, -0.42), (eaves, -0.26)]
        lamp.curve(dome, coat.second)


def _window(brush: Brush, x: float, y: float, half: float, coat: Coat):
    brush.box(x - half, y - half, x + half, y + half, coat.pale)
    brush.line([(x, y - half), (x, y + half)], 0.03, coat.dark)
    brush.line([(x - half, y), (x + half, y)], 0.03, coat.dark)
