"""The bytes that carry attention rows to the browser: `ui/static/wire.js` reads them."""

from __future__ import annotations

import json
import struct

import numpy as np

MAGIC = b"MSAT"
VERSION = 1
_FIXED = struct.Struct("<4sB3xI")  # magic, version, length of the JSON that follows


def pack(rows: np.ndarray, facts: dict) -> bytes:
    """`rows` [layers, heads, N] and `facts` (JSON) -> header, JSON padded to 4 bytes, float32 little endian.

    The JSON gains `layers`, `heads` and `tokens`, the shape of the rows.
    """
    layers, heads, tokens = rows.shape
    text = json.dumps({**facts, "layers": layers, "heads": heads, "tokens": tokens}, allow_nan=False).encode()
    text += b" " * (-(_FIXED.size + len(text)) % 4)
    return _FIXED.pack(MAGIC, VERSION, len(text)) + text + np.ascontiguousarray(rows, "<f4").tobytes()


def unpack(data: bytes) -> tuple[np.ndarray, dict]:
    """What `pack` was given. ValueError for other bytes or another version."""
    magic, version, length = _FIXED.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        raise ValueError(f"attention bytes of version {VERSION} were expected")
    facts = json.loads(data[_FIXED.size : _FIXED.size + length])
    rows = np.frombuffer(data, "<f4", offset=_FIXED.size + length)
    return rows.reshape(facts["layers"], facts["heads"], facts["tokens"]), facts
