"""What our routes answer with: bytes under a key, files, and a sentence for what is gone."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from fastapi import Request
from fastapi.responses import JSONResponse, Response


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
