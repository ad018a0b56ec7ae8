"""Vehicles: they drive and sail to the right."""

from __future__ import annotations

import math

from memssl_core.data.drawn.brush import Brush
from memssl_core.data.drawn.colours import Coat
from memssl_core.data.drawn.dice import Dice


def car(brush: Brush, dice: Dice, coat: Coat, marks: list):
    roof, floor = dice.number(-0.62, -0.45), 0.3
    rear, front = dice.number(-0.85, -0.5), dice.number(0.2, 0.4)
    slope = dice.number(0.1, 0.3)
    cabin = [(rear, -0.02), (rear + 0.6 * slope, roof), (front - slope, roof), (front + 0.12, -0.02)]
    brush.shape(cabin, coat.second)
    top, bottom, middle = roof + 0.1, -0.04, dice.number(-0.25, -0.1)
    left, right = rear + 0.6 * slope + 0.08, front - slope - 0.05
    brush.shape([(rear + 0.14, bottom), (left, top), (middle - 0.04, top), (middle - 0.04, bottom)], coat.pale)
    brush.shape([(middle + 0.04, bottom), (middle + 0.04, top), (right, top), (front, bottom)], coat.pale)
    bonnet = dice.number(-0.08, 0.06)
    body = [(-0.9, floor + 0.07), (-0.98, 0.22), (-0.95, -0.04), (-0.8, -0.1), (0.3, -0.1)]
    body += [(0.78, bonnet), (0.97, bonnet + 0.08), (1.0, floor), (0.9, floor + 0.07)]
    brush.shape(body, coat.main, marks=marks, mark_colour=coat.second)
    brush.line([(middle, -0.08), (middle + 0.02, floor)], 0.025, coat.dark)
    brush.line([(middle - 0.2, 0.05), (middle - 0.09, 0.05)], 0.035, coat.dark)
    brush.oval((0.9, bonnet + 0.15), (0.075, 0.075), coat.pale)
    brush.box(-0.99, 0.02, -0.9, 0.14, coat.accent)
    radius, spin, spokes = dice.number(0.22, 0.3), dice.number(0.0, 1.0), dice.whole(3, 6)
    for x in (dice.number(-0.62, -0.5), dice.number(0.5, 0.62)):
        wheel = brush.at((x, floor + 0.05), spin)
        wheel.oval((0.0, 0.0), (radius, radius), coat.dark)
        wheel.oval((0.0, 0.0), (0.58 * radius, 0.58 * radius), coat.pale)
        for spoke in range(spokes):
            wheel.at((0.0, 0.0), 2 * math.pi * spoke / spokes).line([(0.0, 0.0), (0.5 * radius, 0.0)], 0.035, coat.dark)


def sailing_boat(brush: Brush, dice: Dice, coat: Coat, marks: list):
    deck, mast_x, top = dice.number(0.38, 0.5), dice.number(-0.12, 0.12), dice.number(-0.98, -0.85)
    rig = brush.at((mast_x, deck), dice.number(-0.08, 0.08))
    height = deck - top
    rig.line([(0.0, 0.0), (0.0, -height)], 0.055, coat.dark)
    belly = dice.number(0.04, 0.16)
    flag = rig.at((0.0, -height), dice.number(-0.3, 0.3))
    flag.shape([(0.0, 0.0), (-0.26, 0.07), (0.0, 0.15)], coat.accent)
    boom = rig.at((-0.02, -0.14), dice.number(-0.1, 0.18))
    end = -dice.number(0.65, 0.85)
    leech = [(0.66 * end - belly, -0.36 * height), (0.3 * end - belly, -0.65 * height)]
    sail = [(0.0, 0.0), (end, 0.0), *leech, (0.0, 0.2 - height)]
    boom.shape(sail, coat.second, marks=marks, mark_colour=coat.pale)
    boom.line([(0.0, 0.0), (end, 0.0)], 0.045, coat.dark)
    if dice.chance(0.85):
        reach = dice.number(0.55, 0.8)
        jib = [(0.05, 0.25 - height), (0.32 * reach + belly, -0.5 * height), (reach, -0.1), (0.06, -0.16)]
        rig.shape(jib, coat.pale)
    bow, stern = dice.number(0.85, 1.0), -dice.number(0.7, 0.9)
    sheer = dice.number(0.0, 0.12)
    hull = [(stern, deck), (0.0, deck + 0.5 * sheer), (bow, deck - sheer)]
    hull += [(0.62, 0.78), (0.4, 0.88), (-0.5, 0.88), (stern + 0.12, 0.78)]
    brush.shape(hull, coat.main)
    brush.line([(stern + 0.04, deck + 0.15), (bow - 0.12, deck + 0.15 - 0.6 * sheer)], 0.05, coat.accent)
    for x in range(dice.whole(0, 3)):
        brush.oval((-0.4 + 0.3 * x, deck + 0.28), (0.06, 0.06), coat.pale)
