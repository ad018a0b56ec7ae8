"""The pictures of a run's snapshots: the pinned ones, looked at again at every one of them, the recalled, the views."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from memssl_core.bundle.thumbnails import thumbnail, thumbnails_of
from memssl_core.data.datasets import Images
from memssl_core.data.images import Transform
from memssl_core.data.views import Batch
from memssl_core.errors import ImageError

MOST_PINNED = 8
PINNED_PX, PINNED_BYTES = 112, 8_000
RECALLED_PX, RECALLED_BYTES = 64, 1_200
SHEET_ROWS, SHEET_COLUMNS, CELL_PX = 4, 16, 96
_KNOWN_THUMBNAILS = 256  # pictures recalled at one snapshot are often recalled at the next


@dataclass(frozen=True, eq=False)
class Pinned:
    """P pictures, read once; `thumbnail` gives any picture of the run by its id, small, b"" if it cannot be read."""

    ids: tuple[int, ...]
    names: tuple[str, ...]
    """of their classes, "" where unknown"""
    pictures: tuple[bytes, ...]
    """WebP of what the transform leaves of them"""
    pixels: Tensor
    """[P, 3, H, W] normalised, on the training device"""
    thumbnail: Callable[[int], bytes]

    @classmethod
    def of(cls, images: Images, ids: list[int], transform: Transform, device: torch.device) -> Pinned:
        """The first MOST_PINNED of `ids` that can be read, taken from all classes in turn."""
        read: dict[int, Tensor] = {}
        for image_id in in_turn(images, ids):
            if len(read) == MOST_PINNED:
                break
            try:
                read[image_id] = transform(images.read(image_id))
            except ImageError:
                continue
        side = transform.crop_px
        pixels = torch.stack(list(read.values())) if read else torch.empty(0, 3, side, side)
        small = [thumbnail(as_seen(p, transform), side_px=PINNED_PX, max_bytes=PINNED_BYTES) for p in read.values()]
        names = tuple(images.class_name(i) or "" for i in read)

        recalled = thumbnails_of(images, side_px=RECALLED_PX, max_bytes=RECALLED_BYTES, known=_KNOWN_THUMBNAILS)
        return cls(tuple(read), names, tuple(small), pixels.to(device), recalled)


def in_turn(images: Images, ids: list[int]) -> list[int]:
    """The first picture of every class, then the second ones, and so on; within a turn in the order given."""
    seen: Counter[int | None] = Counter()
    turns: list[list[int]] = []
    for image_id in ids:
        label = images.label(image_id)
        if seen[label] == len(turns):
            turns.append([])
        turns[seen[label]].append(image_id)
        seen[label] += 1
    return [image_id for turn in turns for image_id in turn]


def as_seen(pixels: Tensor, transform: Transform) -> Image.Image:
    """Normalised pixels [3, H, W] as a picture again."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (transform.mean, transform.std))
    levels = (pixels * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


def views_sheet(batch: Batch) -> tuple[bytes, int]:
    """A WebP with a picture of the batch a row and a view a column, the global ones first; how many columns.

    At most SHEET_ROWS and SHEET_COLUMNS; every view is scaled to the cell, whose side is at most CELL_PX.
    (b"", 0) for a batch without pictures.
    """
    rows = min(SHEET_ROWS, len(batch.image_ids))
    if not rows:
        return b"", 0
    views = [*batch.global_views, *batch.local_views][:SHEET_COLUMNS]
    side = min(CELL_PX, views[0].shape[-1])
    sheet = Image.new("RGB", (len(views) * side, rows * side))
    for column, of_all in enumerate(views):
        for row in range(rows):
            cell = Image.fromarray(np.ascontiguousarray(of_all[row].permute(1, 2, 0).numpy()))
            sheet.paste(cell.resize((side, side), Image.Resampling.BICUBIC), (column * side, row * side))
    buffer = io.BytesIO()
    sheet.save(buffer, "webp", quality=70, method=2)
    return buffer.getvalue(), len(views)
