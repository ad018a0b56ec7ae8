"""Small galleries of painted pictures, by an embedder that counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from analysis import collect
from analysis.gallery import Gallery
from analysis.update import Encoder, update_gallery
from memssl_core.bundle.embed import Embedded
from memssl_core.data.images import decode_image
from memssl_core.errors import ImageError

WIDTH = 6


def embedding_of(picture: Image.Image) -> np.ndarray:
    """float32 [6] out of a picture of one colour."""
    colour = np.array(picture.getpixel((0, 0)), np.float32) / 255
    return np.concatenate([colour + 0.1, 1 - colour])


class Fake:
    """An embedder of batches of two; `names` are the pictures it embedded, after `last` of them it fails."""

    def __init__(self, last: int | None = None) -> None:
        self.names: list[str] = []
        self.last = last

    def __call__(self, items):
        good, skipped = [], []
        for item in items:
            try:
                good.append((item, item.read()))
            except ImageError as reason:
                skipped.append(str(reason))
            if len(good) == 2:
                yield self.batch(good, skipped)
                good, skipped = [], []
        yield self.batch(good, skipped)

    def batch(self, good, skipped):
        if self.last is not None and len(self.names) >= self.last:
            raise RuntimeError("killed")
        self.names += [item.uri for item, _ in good]
        rows = [embedding_of(picture) for _, picture in good]
        extras = [collect.looks(picture) for _, picture in good]
        tensor = torch.tensor(np.array(rows)) if rows else torch.empty(0, 0)
        return Embedded([item for item, _ in good], tensor, extras, skipped)


def encoder(fake: Fake | None = None, model: str = "a", crop_px: int = 64) -> Encoder:
    return Encoder(f"random:{model}", model, {"crop_px": crop_px, "mean": (0.5, 0.5)}, WIDTH, fake or Fake())


def made(photos, fake: Fake | None = None, name: str = "mine", **more) -> Gallery:
    opened = update_gallery(name, str(photos), encoder(fake), **more)
    assert opened is not None
    return opened


def contents(opened: Gallery) -> dict[str, list[float]]:
    """The embedding that each file is found by."""
    rows = [row for row in range(len(opened.vectors)) if opened.live is None or opened.live[row]]
    return {path: opened.vectors[row].tolist() for row in rows for path in opened.paths_of(row)}


def expected(photos: Path) -> dict[str, list[float]]:
    """What a gallery of the photos holds, made in the plainest way."""
    found = {}
    for path in photos.rglob("*.png"):
        row = embedding_of(decode_image(path))
        found[path.relative_to(photos).as_posix()] = (row / np.linalg.norm(row)).astype(np.float16).tolist()
    return found
