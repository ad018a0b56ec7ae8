"""The bytes that carry arrays to the browser: `ui/static/wire.js` reads them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

MAGIC = b"MSAT"
VERSION = 2
KINDS = ("float32", "float16", "int32", "uint16", "uint8")
_FIXED = struct.Struct("<4sB3xI")  # magic, version, length of the JSON that follows


def pack(arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> bytes:
    """Arrays (of KINDS) by name and facts (JSON) -> header, JSON, then each array, little endian, rows first.

    The JSON is `{"facts": …, "arrays": [[name, kind, shape], …]}`; it and every array are padded to 4 bytes.
    """
    told = [[name, array.dtype.name, array.shape] for name, array in arrays.items()]
    assert all(kind in KINDS for _, kind, _ in told)
    text = json.dumps({"facts": facts, "arrays": told}, allow_nan=False).encode()
    parts = [np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes() for array in arrays.values()]
    text = text.ljust(_padded(len(text)))
    return b"".join([_FIXED.pack(MAGIC, VERSION, len(text)), text, *(p.ljust(_padded(len(p)), b"\0") for p in parts)])


def unpack(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What `pack` was given. ValueError for other bytes or another version."""
    magic, version, length = _FIXED.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        raise ValueError(f"array bytes of version {VERSION} were expected")
    at = _FIXED.size + length
    told, arrays = json.loads(data[_FIXED.size : at]), {}
    for name, kind, shape in told["arrays"]:
        dtype = np.dtype(kind).newbyteorder("<")
        arrays[name] = np.frombuffer(data, dtype, int(np.prod(shape)), at).reshape(shape)
        at += _padded(arrays[name].nbytes)
    return arrays, told["facts"]


def _padded(length: int) -> int:
    return -(-length // 4) * 4
