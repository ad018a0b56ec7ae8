"""Pictures to start with: photographs that ship inside installed packages, and drawn ones."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Example:
    """`read` gives the bytes of the picture file; nothing is opened before it is called."""

    name: str
    read: Callable[[], bytes]


PHOTOGRAPHS = {
    "skimage": ("data/astronaut.png", "data/chelsea.png", "data/coffee.png", "data/motorcycle_left.png",
                "data/motorcycle_right.png", "data/rocket.jpg"),
    "sklearn": ("datasets/images/flower.jpg", "datasets/images/china.jpg"),
    "gradio": ("media_assets/images/lion.jpg", "media_assets/images/cheetah.jpg"),
}  # fmt: skip
PAIR = ("motorcycle_left", "motorcycle_right")  # one thing from two places: what correspondence starts with
DRAWN_SEED = 1  # the embedded model was trained on seed 0
DRAWN = {"drawn-1": 0, "drawn-2": 1, "drawn-3": 2, "drawn-4": 5}  # handle -> index
DRAWN_SIZE = 256


def _photographs() -> dict[str, Example]:
    found = {}
    for package, files in PHOTOGRAPHS.items():
        spec = find_spec(package)  # does not run the package
        folder = Path(spec.origin).parent if spec and spec.origin else None
        for path in [folder / file for file in files] if folder else []:
            if path.is_file():
                found[path.stem] = Example(path.name, path.read_bytes)
    return found


def _drawn_bytes(index: int) -> bytes:
    from PIL import Image

    from memssl_core.data.drawn import draw

    file = io.BytesIO()
    Image.fromarray(draw(DRAWN_SEED, index, DRAWN_SIZE).image).save(file, "PNG")
    return file.getvalue()


@cache
def examples() -> dict[str, Example]:
    """By handle: the photographs that are installed, then the drawn ones."""
    drawn = {handle: Example(f"{handle}.png", partial(_drawn_bytes, index)) for handle, index in DRAWN.items()}
    return _photographs() | drawn
