"""Creatures: they look to the right; fins, wings, tails and legs turn in their joints."""

from __future__ import annotations

from memssl_core.data.drawn.brush import Brush, bend
from memssl_core.data.drawn.colours import Coat, Rgb
from memssl_core.data.drawn.dice import Dice


def fish(brush: Brush, dice: Dice, coat: Coat, marks: list):
    arch, height = dice.number(-0.22, 0.22), dice.number(0.38, 0.6)
    tail = brush.at((-0.52, 0.27 * arch), dice.number(-0.45, 0.45))
    fork = dice.number(0.12, 0.32)
    lobes = [(0.1, 0.0), (-0.25, -0.26), (-0.5, -0.45), (-0.5 + fork, 0.0), (-0.5, 0.45), (-0.25, 0.26)]
    tail.curve(lobes, coat.second)
    back = brush.at((0.0, -0.75 * height), dice.number(-0.15, 0.15))
    back.curve([(0.35, 0.12), (0.05, -0.3 * dice.number(0.6, 1.3)), (-0.4, -0.12), (-0.4, 0.15)], coat.second)
    if dice.chance(0.6):
        brush.at((-0.05, 0.8 * height), dice.number(-0.3, 0.3)).curve(
            [(0.2, -0.05), (-0.1, 0.28), (-0.3, 0.2), (-0.15, -0.05)], coat.second
        )
    body = [(0.98, 0.02), (0.75, -0.62 * height), (0.2, -height), (-0.35, -0.55 * height), (-0.65, -0.07)]
    body += [(-0.65, 0.09), (-0.35, 0.55 * height), (0.2, 0.95 * height), (0.75, 0.6 * height)]
    brush.curve(bend(body, arch), coat.main, marks=marks, mark_colour=coat.second)
    gill = [(0.35 + 0.36 * y * y, y * height) for y in (-0.5, -0.25, 0.0, 0.25, 0.5)]
    brush.line(bend(gill, arch), 0.035, coat.dark)
    fin = brush.at((0.22, 0.22 * height), dice.number(-0.7, 0.7))
    fin.curve([(0.06, -0.07), (-0.3, -0.12), (-0.38, 0.06), (-0.25, 0.18), (0.05, 0.09)], coat.accent)
    eye = (0.68, -0.2 * height + 0.45 * arch)
    brush.oval(eye, (0.12, 0.12), coat.pale)
    brush.oval((eye[0] + 0.03, eye[1]), (0.06, 0.06), coat.dark)


def bird(brush: Brush, dice: Dice, coat: Coat, marks: list):
    lean, flap = dice.number(-0.35, 0.15), dice.pick((dice.number(0.5, 1.5), dice.number(-0.35, 0.2)))
    if dice.chance(0.75):
        for x in (-0.08, 0.14):
            leg = brush.at((x, 0.4), dice.number(-0.35, 0.35))
            leg.line([(0.0, 0.0), (0.0, 0.48), (0.18, 0.5)], 0.055, coat.accent)
            leg.line([(0.0, 0.48), (-0.1, 0.51)], 0.045, coat.accent)
    body = brush.at((0.0, 0.12), lean)
    if flap > 0.4:
        _wing(body.at((0.12, -0.22), flap + dice.number(0.2, 0.5)), coat.second, coat.second, [])
    tail = body.at((-0.5, 0.0), dice.number(-0.4, 0.4))
    feather = [(0.1, -0.08), (-0.42, -0.12), (-0.5, 0.0), (-0.42, 0.1), (0.1, 0.09)]
    for turn in (-0.22, 0.2, 0.0):
        tail.at((0.0, 0.0), turn).curve(feather, coat.second)
    trunk = [(0.6, -0.3), (0.3, -0.36), (-0.25, -0.3), (-0.62, -0.06), (-0.3, 0.28), (0.1, 0.38), (0.5, 0.2)]
    body.curve(trunk, coat.main)
    head = body.at((0.56, -0.34), dice.number(-0.3, 0.4) - 0.6 * lean)
    gape = dice.number(0.0, 0.12)
    head.shape([(0.2, -0.06 - gape), (0.52, 0.02 - 2 * gape), (0.2, 0.05)], coat.accent)
    head.shape([(0.2, 0.0), (0.44, 0.06 + gape), (0.16, 0.13)], coat.accent)
    if dice.chance(0.4):
        head.curve([(0.08, -0.2), (-0.1, -0.42), (-0.22, -0.36), (-0.15, -0.15)], coat.second)
    head.oval((0.0, 0.0), (0.28, 0.26), coat.main)
    head.oval((0.1, -0.06), (0.085, 0.085), coat.pale)
    head.oval((0.12, -0.06), (0.045, 0.045), coat.dark)
    _wing(body.at((0.18, -0.14), flap), coat.second, coat.main, marks)


def _wing(joint: Brush, colour: Rgb, mark_colour: Rgb, marks: list):
    front = [(0.12, -0.06), (-0.3, -0.18), (-0.92, -0.1)]
    feathers = [(-0.72, 0.05), (-0.62, 0.14), (-0.42, 0.2), (-0.2, 0.24), (0.1, 0.16)]
    joint.curve(front + feathers, colour, marks=marks, mark_colour=mark_colour)
