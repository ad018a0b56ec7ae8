"""Colours chosen by lightness, chroma and hue, so that things stand out by design and not by luck."""

from __future__ import annotations

import math
from dataclasses import dataclass

from memssl_core.data.drawn.dice import Dice

Rgb = tuple[int, int, int]


@dataclass(frozen=True)
class Tone:
    """An OKLCH colour: lightness 0 to 1, chroma 0 (grey) to about 0.25, hue in turns (0 to 1)."""

    lightness: float
    chroma: float
    hue: float

    @property
    def rgb(self) -> Rgb:
        """The nearest sRGB colour, 0 to 255 (matrices: Bjorn Ottosson, "A perceptual color space", 2020)."""
        a, b = (self.chroma * f(2 * math.pi * self.hue) for f in (math.cos, math.sin))
        long = (self.lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
        medium = (self.lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
        short = (self.lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
        return (
            _encode(4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short),
            _encode(-1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short),
            _encode(-0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short),
        )

    def near(self, dice: Dice, lightness: float = 0.08, hue: float = 0.06) -> Tone:
        """A similar tone, at most that far away."""
        return Tone(
            min(max(self.lightness + dice.number(-lightness, lightness), 0.15), 0.97),
            self.chroma * dice.number(0.7, 1.2),
            self.hue + dice.number(-hue, hue),
        )


@dataclass(frozen=True)
class Coat:
    """What an object is painted with; chosen without knowing its class."""

    main: Rgb
    second: Rgb
    accent: Rgb
    dark: Rgb
    pale: Rgb


def backdrop_tone(dice: Dice) -> Tone:
    return Tone(dice.number(0.35, 0.92), dice.number(0.01, 0.11), dice.number())


def coat_against(backdrop: Tone, dice: Dice) -> Coat:
    """Colours that stand out from the backdrop by lightness, or by hue where the lightness is close."""
    hue = backdrop.hue + dice.number(0.2, 0.8)
    if dice.chance(0.7):
        lightness = dice.number(0.36, 0.52) if backdrop.lightness > 0.64 else dice.number(0.7, 0.86)
        main = Tone(lightness, dice.number(0.07, 0.17), hue)
    else:
        main = Tone(min(max(backdrop.lightness, 0.5), 0.72), dice.number(0.15, 0.2), backdrop.hue + 0.5)
    second_lightness = main.lightness + (0.2 if main.lightness < 0.6 else -0.22)
    return Coat(
        main=main.rgb,
        second=Tone(second_lightness, dice.number(0.05, 0.17), hue + dice.pick((0.0, 0.12, -0.12, 0.5))).rgb,
        accent=Tone(dice.number(0.6, 0.8), dice.number(0.13, 0.19), dice.number()).rgb,
        dark=Tone(dice.number(0.2, 0.3), 0.03, dice.number()).rgb,
        pale=Tone(dice.number(0.92, 0.97), 0.025, dice.number()).rgb,
    )


def _encode(linear: float) -> int:
    linear = min(max(linear, 0.0), 1.0)
    return round(255 * (12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055))
