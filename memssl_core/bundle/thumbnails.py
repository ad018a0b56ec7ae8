"""Small pictures to show beside a memory."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from threading import Lock

from PIL import Image

from memssl_core.data.datasets import Images
from memssl_core.errors import ImageError


def thumbnail(picture: Image.Image, *, side_px: int, max_bytes: int) -> bytes:
    """The whole picture as WebP: its longest side at most `side_px`, at most some `max_bytes` (the coarsest quality
    may pass them)."""
    small = picture.copy()
    small.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    for quality in (60, 45, 30, 20, 10, 5):
        buffer = io.BytesIO()
        small.save(buffer, "webp", quality=quality, method=6)
        if buffer.tell() <= max_bytes:
            break
    return buffer.getvalue()


def thumbnails_of(images: Images, *, side_px: int, max_bytes: int, known: int = 8192) -> Callable[[int], bytes]:
    """image_id -> its thumbnail, made when it is asked for, b"" if the picture cannot be read; the `known` last ones
    are kept. Several threads may ask."""
    reading = Lock()

    @lru_cache(known)
    def made(image_id: int) -> bytes:
        try:
            with reading:
                picture = images.read(image_id)
            return thumbnail(picture, side_px=side_px, max_bytes=max_bytes)
        except ImageError:
            return b""

    return made
