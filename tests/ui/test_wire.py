"""The bytes that carry arrays."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from ui import wire

ANY = st.sampled_from(wire.KINDS).flatmap(lambda kind: arrays(kind, array_shapes(min_dims=1, max_dims=3, max_side=6)))
NAMES = st.text(max_size=5)


@given(st.dictionaries(NAMES, ANY, max_size=4), st.dictionaries(NAMES, st.integers() | st.text(max_size=9), max_size=3))
def test_what_is_packed_is_unpacked(given_arrays: dict, told: dict):
    data = wire.pack(given_arrays, told)
    found, facts = wire.unpack(data)
    assert facts == told and list(found) == list(given_arrays) and len(data) % 4 == 0
    for name, array in given_arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_the_layout_is_the_one_a_browser_reads():
    given_arrays = {"mask": np.array([1, 0, 1], np.uint8), "é": np.array([[0.5, -2.0]], np.float32)}
    data = wire.pack(given_arrays, {"name": "é"})
    magic, version, length = struct.unpack_from("<4sB3xI", data)
    assert (magic, version) == (b"MSAT", 2)
    assert (12 + length) % 4 == 0  # typed arrays start at multiples of their size
    told = json.loads(data[12 : 12 + length])
    assert told == {"facts": {"name": "é"}, "arrays": [["mask", "uint8", [3]], ["é", "float32", [1, 2]]]}
    assert data[12 + length :] == b"\1\0\1\0" + struct.pack("<2f", 0.5, -2)


@pytest.mark.parametrize("change", [b"MSAT\x01", b"XXXX\x02"])
def test_other_bytes_are_refused(change: bytes):
    data = wire.pack({"rows": np.zeros((1, 1, 2), np.float32)}, {})
    with pytest.raises(ValueError, match="version 2"):
        wire.unpack(change + data[5:])
