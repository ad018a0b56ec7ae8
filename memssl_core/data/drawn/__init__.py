"""The drawn gallery: pictures made by a program, with their class and object mask known exactly.

It needs no download: what a new user trains on, what tests run on, and ground truth for the protocols.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from memssl_core.data.drawn import buildings, creatures, plants, vehicles
from memssl_core.data.drawn.dice import Dice
from memssl_core.data.drawn.scene import Painter, paint_scene
from memssl_core.errors import DataError

FAMILIES: dict[str, tuple[Painter, ...]] = {
    "creatures": (creatures.fish, creatures.bird),
    "vehicles": (vehicles.car, vehicles.sailing_boat),
    "plants": (plants.flower, plants.tree),
    "buildings": (buildings.house, buildings.lighthouse),
}
_PAINTERS = tuple(painter for family in FAMILIES.values() for painter in family)
CLASS_NAMES = tuple(painter.__name__.replace("_", " ") for painter in _PAINTERS)


@dataclass(frozen=True)
class Drawing:
    """A picture uint8 [size, size, 3], where its object is seen bool [size, size], and the object's class."""

    image: np.ndarray
    mask: np.ndarray
    label: int
    class_name: str


def draw(seed: int, index: int, size: int = 96) -> Drawing:
    """Picture `index` of the endless gallery `seed`; another size shows the same scene.

    Classes are balanced: every eight pictures from a multiple of eight on show each class once, in random order.
    DataError for a negative seed or index, or a size below 16 px.
    """
    if min(seed, index) < 0 or max(seed, index) >= 2**64 or size < 16:
        raise DataError(
            f"Drawn picture {seed}:{index} at {size} px: use a seed and an index of 0 or more, and at least 16 px."
        )
    row, place = divmod(index, len(_PAINTERS))
    label = _row_of_labels(seed, row)[place]
    image, mask = paint_scene(_PAINTERS[label], seed, index, size)
    return Drawing(image, mask, label, CLASS_NAMES[label])


def labels(seed: int, count: int) -> np.ndarray:
    """int64 [count], the classes of the gallery's first pictures, without drawing them."""
    rows = range(-(-count // len(_PAINTERS)))
    return np.array([_row_of_labels(seed, row) for row in rows], np.int64).ravel()[:count]


def _row_of_labels(seed: int, row: int) -> list[int]:
    return Dice(seed, row, stream=0).shuffled(len(_PAINTERS))


def sheet(seed: int, count: int, size: int = 96) -> Image.Image:
    """The first `count` pictures side by side, in a grid of about 3 : 2."""
    if count < 1:
        raise DataError(f"A sheet of {count} pictures is empty: ask for at least one.")
    columns = max(1, round((1.5 * count) ** 0.5))
    rows = -(-count // columns)
    gap = max(1, size // 24)
    page = Image.new("RGB", (columns * (size + gap) + gap, rows * (size + gap) + gap), "white")
    for index in range(count):
        row, column = divmod(index, columns)
        page.paste(
            Image.fromarray(draw(seed, index, size).image), (gap + column * (size + gap), gap + row * (size + gap))
        )
    return page
