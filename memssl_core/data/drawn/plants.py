"""Plants: they grow from the bottom up."""

from __future__ import annotations

import math

from memssl_core.data.drawn.brush import Brush
from memssl_core.data.drawn.colours import Coat
from memssl_core.data.drawn.dice import Dice


def flower(brush: Brush, dice: Dice, coat: Coat, marks: list):
    sway, head_y = dice.number(-0.25, 0.25), dice.number(-0.4, -0.25)
    stem = [(-sway * (1 - t * t), 0.98 + (head_y - 0.98) * t) for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    brush.line(stem, 0.1, coat.second)
    for side, place in ((-1, 1), (1, 2)):
        if dice.chance(0.85):
            leaf = brush.at(stem[place], side * dice.number(0.0, 0.7), (-side, 1.0))
            leaf.curve([(0.0, 0.03), (-0.22, -0.16), (-0.6, -0.12), (-0.3, 0.1)], coat.second)
    count, radius, width = dice.whole(5, 10), dice.number(0.55, 0.72), dice.number(0.8, 1.15)
    spin, core = dice.number(0.0, 1.0), dice.number(0.17, 0.27)
    point = dice.number(0.55, 1.0)
    head = brush.at((0.0, head_y), spin, (1.0, dice.number(0.75, 1.0)))
    half = width * radius * math.pi / count * 0.62
    side = [(0.5 * radius, half), (0.85 * radius, half * point)]
    petal = [(0.1, 0.0), *((x, -y) for x, y in side), (radius, 0.0), *reversed(side)]
    for place in dice.shuffled(count):
        head.at((0.0, 0.0), 2 * math.pi * place / count + dice.number(-0.08, 0.08)).curve(petal, coat.main)
    head.oval((0.0, 0.0), (core, core), coat.accent, marks=marks, mark_colour=coat.dark)


def tree(brush: Brush, dice: Dice, coat: Coat, marks: list):
    foot, lean = dice.number(0.1, 0.2), dice.number(-0.15, 0.15)
    crown_y = dice.number(-0.35, -0.2)
    trunk = [(-foot - 0.1, 0.98), (-foot, 0.8), (lean - 0.1, crown_y)]
    trunk += [(lean + 0.1, crown_y), (foot, 0.8), (foot + 0.12, 0.98)]
    brush.shape(trunk, coat.second)
    for side in (-1, 1):
        branch = brush.at((0.5 * lean, dice.number(0.2, 0.45)), side * dice.number(0.5, 1.0))
        branch.line([(0.0, 0.0), (0.0, -0.5)], 0.09, coat.second)
    spread, tall = dice.number(0.5, 0.68), dice.number(0.4, 0.5)
    count = dice.whole(5, 8)
    crown = brush.at((lean, crown_y), dice.number(-0.15, 0.15))
    for place in dice.shuffled(count):
        turn = 2 * math.pi * place / count
        radius = dice.number(0.26, 0.36)
        tuft = (spread * math.cos(turn), 0.8 * tall * math.sin(turn))
        crown.oval(tuft, (radius, radius), coat.main)
    around = (0.0, 0.8, 1.6, 2.4, 3.1, 3.9, 4.7, 5.5)
    middle = [(1.1 * spread * math.cos(turn), 0.95 * tall * math.sin(turn)) for turn in around]
    crown.curve(middle, coat.main, marks=marks, mark_colour=coat.second, inked=False)
    for _ in range(dice.pick((0, 0, 4, 6, 8))):
        turn, out = dice.number(0.0, 2 * math.pi), dice.number(0.2, 1.15)
        crown.oval((out * spread * math.cos(turn), out * 0.8 * tall * math.sin(turn)), (0.075, 0.075), coat.accent)
