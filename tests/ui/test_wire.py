"""The bytes that carry attention rows."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from ui import wire

ROWS = arrays(np.float32, array_shapes(min_dims=3, max_dims=3, max_side=6), elements=st.floats(0, 1, width=32))


@given(ROWS, st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9), max_size=3))
def test_what_is_packed_is_unpacked(rows: np.ndarray, told: dict):
    found, facts = wire.unpack(wire.pack(rows, told))
    np.testing.assert_array_equal(found, rows)
    layers, heads, tokens = rows.shape
    assert facts == told | {"layers": layers, "heads": heads, "tokens": tokens}


@given(ROWS)
def test_the_layout_is_the_one_a_browser_reads(rows: np.ndarray):
    data = wire.pack(rows, {"name": "é"})
    magic, version, length = struct.unpack_from("<4sB3xI", data)
    assert (magic, version) == (b"MSAT", 1)
    assert (12 + length) % 4 == 0  # a Float32Array starts at multiples of four
    assert json.loads(data[12 : 12 + length])["name"] == "é"
    assert struct.unpack_from("<f", data, 12 + length)[0] == rows.flat[0]
    assert len(data) == 12 + length + 4 * rows.size


@pytest.mark.parametrize("change", [b"MSAT\x02", b"XXXX\x01"])
def test_other_bytes_are_refused(change: bytes):
    data = wire.pack(np.zeros((1, 1, 2), np.float32), {})
    with pytest.raises(ValueError, match="version 1"):
        wire.unpack(change + data[5:])
