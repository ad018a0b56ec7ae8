"""Pictures of one colour, which tells their number, for tests of data sources."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image


def colour(number: int) -> tuple[int, int, int]:
    return number * 20 % 256, number * 50 % 256, 255 - number


def encoded(number: int) -> bytes:
    """A PNG file."""
    file = io.BytesIO()
    Image.new("RGB", (10, 9), colour(number)).save(file, "PNG")
    return file.getvalue()


def paint(folder: Path, *names: str) -> list[str]:
    """PNG files, numbered by the position in `names`."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(number))
    return list(names)


def number_of(read: Callable[[], Image.Image]) -> int:
    """Which of the pictures this is."""
    pixel = read().getpixel((0, 0))
    return next(number for number in range(100) if colour(number) == pixel)
