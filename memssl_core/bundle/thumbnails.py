"""Small pictures to show beside a memory."""

from __future__ import annotations

import io

from PIL import Image


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
