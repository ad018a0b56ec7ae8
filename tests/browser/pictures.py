"""Picture files for uploads: ordinary ones, and the hostile ones that every door meets."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image
from playwright.sync_api import FilePayload

Upload = FilePayload  # name, mimeType, buffer
EXIF_TURN = 0x0112


def photo(width: int = 320, height: int = 240, seed: int = 0) -> Image.Image:
    """Smooth colour patches: something like a photograph, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def upload(image: Image.Image, name: str, kind: str, **options) -> Upload:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return {"name": name, "mimeType": f"image/{kind.lower()}", "buffer": file.getvalue()}


def turned(image: Image.Image, name: str = "turned.jpg") -> Upload:
    """A JPEG whose EXIF says orientation 6: to be turned by a quarter to the right."""
    exif = Image.Exif()
    exif[EXIF_TURN] = 6
    return upload(image, name, "JPEG", exif=exif, quality=95)


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims any size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def hostile() -> list[tuple[Upload, bool]]:
    """(file, can it be shown?): a file is shown, or answered with one sentence."""
    rgb, grey16 = photo(), Image.fromarray(np.linspace(0, 65_535, 64 * 64, dtype=np.uint16).reshape(64, 64))
    alpha = photo(64, 64).convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize((64, 64)))
    palette = photo(64, 64).convert("P")
    jpeg = upload(rgb, "cut.jpg", "JPEG")

    def raw(name: str, data: bytes) -> Upload:
        return {"name": name, "mimeType": "image/png", "buffer": data}

    frames = [photo(48, 48, seed) for seed in range(3)]
    return [
        (raw("text.png", b"this is no picture"), False),
        (raw("empty.png", b""), False),
        (raw("bomb.png", png_claiming(20_000, 20_000)), False),
        (upload(photo(1, 1), "dot.png", "PNG"), False),
        (raw("cut.jpg", jpeg["buffer"][: len(jpeg["buffer"]) // 2]), False),
        (raw("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"), False),
        (upload(photo(2000, 10), "ribbon.png", "PNG"), True),
        (upload(rgb.convert("CMYK"), "cmyk.jpg", "JPEG"), True),
        (upload(grey16, "deep.png", "PNG"), True),
        (upload(grey16, "deep.tiff", "TIFF"), True),
        (upload(alpha, "alpha.png", "PNG"), True),
        (upload(palette, "palette.png", "PNG"), True),
        (upload(palette, "clear-palette.png", "PNG", transparency=3), True),
        (upload(frames[0], "moving.gif", "GIF", save_all=True, append_images=frames[1:]), True),
        (upload(frames[0], "pages.tiff", "TIFF", save_all=True, append_images=frames[1:]), True),
        (upload(photo(64, 64), "<img src=x onerror=alert(1)>.png", "PNG"), True),
        (upload(photo(64, 64), "wide.webp", "WEBP"), True),
        (turned(rgb), True),
    ]
