"""What our routes answer with: bytes under a key, pictures, files, and a sentence for what is gone."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from fastapi import Request
from fastapi.responses import JSONResponse, Response

if TYPE_CHECKING:
    from PIL import Image

LOSSLESS_PX = 512  # up to here pictures travel as PNG: drawn ones have sharp edges


def npz(name: str, **arrays: object) -> Response:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    headers = {"Content-Disposition": f'attachment; filename="{name}.npz"'}
    return Response(file.getvalue(), media_type="application/octet-stream", headers=headers)


def gone(sentence: str, status: int = 410) -> JSONResponse:
    return JSONResponse({"error": sentence}, status_code=status)


def cached(request: Request, key: str, make: Callable[[], tuple[bytes, str]]) -> Response:
    """`make()` gives bytes and media type; a browser that holds this key already gets 304."""
    headers = {"ETag": f'"{key}"', "Cache-Control": "private, max-age=86400"}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    data, media_type = make()
    return Response(data, media_type=media_type, headers={**headers, "X-Content-Type-Options": "nosniff"})


def encode(image: Image.Image, side: int) -> tuple[bytes, str]:
    """The picture with its longest side at most `side` px: PNG when small, else JPEG."""
    if max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side), reducing_gap=2.0)
    file = io.BytesIO()
    if max(image.size) <= LOSSLESS_PX:
        image.save(file, "PNG", compress_level=1)
        return file.getvalue(), "image/png"
    image.save(file, "JPEG", quality=90)
    return file.getvalue(), "image/jpeg"
