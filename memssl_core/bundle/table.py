"""The memory of a bundle: K slots with their provenance, as arrays and as rows of a parquet table."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

MAX_THUMBNAIL_BYTES = 4096
_BOX = ("x0", "y0", "x1", "y1")
_THUMBNAIL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema(
    [("slot", pa.int64()), ("image_id", pa.int64()), ("uri", pa.string()), ("label", pa.int64())]
    + [("class_name", pa.string()), ("step", pa.int64()), *((name, pa.float32()) for name in _BOX)]
    + [("thumbnail", _THUMBNAIL)]
)
# Lets the Hub's viewer show thumbnails as pictures (the `datasets` library's feature description).
_VIEWER = {"info": {"features": {"thumbnail": {"_type": "Image"}}}}


@dataclass(frozen=True, eq=False, kw_only=True)
class MemoryTable:
    """K slots: vectors and where they came from. Lists, tensors and arrays are accepted; kept as NumPy and Arrow."""

    vectors: np.ndarray
    """[K, D] float32 unit rows: projections, or [K, C] embeddings of a model without head"""
    cursor: int
    """the slot written next, 0..K-1"""
    written: int
    """how many keys were ever pushed"""
    embeddings: np.ndarray | None = None
    """[K, C] float32, the final teacher's embedding of each slot's whole picture; zeros where unknown"""
    image_id: np.ndarray
    """[K] int64; -1 noise, -2 a key whose image is unknown"""
    uri: pa.Array
    """[K] strings, null where unknown"""
    label: np.ndarray
    """[K] int64; -1 unknown"""
    class_name: pa.Array
    """[K] strings, null where unknown"""
    step: np.ndarray
    """[K] int64; -1 noise"""
    box: np.ndarray
    """[K, 4] float32: x0, y0, x1, y1 of the crop, 0..1 of its picture"""
    thumbnails: pa.Array
    """[K] JPEG or WebP bytes, at most MAX_THUMBNAIL_BYTES each, null where there is none"""
    small_picture: Callable[[int], bytes] | None = None
    """image_id -> a thumbnail made when it is asked for, b"" if the picture cannot be read; for slots without one"""

    def __post_init__(self) -> None:
        kinds = {"vectors": np.float32, "image_id": np.int64, "label": np.int64, "step": np.int64, "box": np.float32}
        if self.embeddings is not None:
            kinds["embeddings"] = np.float32
        for name, dtype in kinds.items():
            object.__setattr__(self, name, np.ascontiguousarray(np.asarray(getattr(self, name)), dtype))
        for name, kind in (("uri", pa.string()), ("class_name", pa.string()), ("thumbnails", pa.binary())):
            column = getattr(self, name)
            if not isinstance(column, pa.Array):
                column = pa.array([value or None for value in column], kind)
            object.__setattr__(self, name, column)
        object.__setattr__(self, "cursor", int(self.cursor))
        object.__setattr__(self, "written", int(self.written))

    @property
    def slots(self) -> int:
        return len(self.vectors)

    @property
    def nbytes(self) -> int:
        """Bytes of main memory held."""
        arrays = (getattr(self, name) for name in self.__dataclass_fields__)
        return sum(array.nbytes for array in arrays if isinstance(array, (np.ndarray, pa.Array)))

    @cached_property
    def pictured(self) -> np.ndarray:
        """bool [K]: the slots with a thumbnail, kept or, as far as is known, to be made."""
        compute: Any = pyarrow.compute
        lengths = compute.fill_null(compute.binary_length(self.thumbnails), 0)
        kept = lengths.to_numpy(zero_copy_only=False) > 0
        if self.small_picture is None:
            return kept
        return kept | (self.image_id >= 0) & self.uri.is_valid().to_numpy(zero_copy_only=False)

    def thumbnail(self, slot: int) -> bytes:
        """The slot's small picture, b"" where there is none or its bytes are neither JPEG nor WebP."""
        data = self.thumbnails[int(slot)].as_py() or b""
        if not data and self.small_picture and self.pictured[slot]:
            data = self.small_picture(int(self.image_id[slot]))
        return data if data[:3] == b"\xff\xd8\xff" or (data[:4] == b"RIFF" and data[8:12] == b"WEBP") else b""

    def rows(self, slots: np.ndarray) -> list[dict[str, Any]]:
        """What is known of these slots: slot, image_id, uri, label, class_name, step, box, has_thumbnail."""
        return [
            {
                "slot": slot,
                "image_id": int(self.image_id[slot]),
                "uri": self.uri[slot].as_py(),
                "label": int(self.label[slot]),
                "class_name": self.class_name[slot].as_py(),
                "step": int(self.step[slot]),
                "box": [float(edge) for edge in self.box[slot]],
                "has_thumbnail": bool(self.pictured[slot]),
            }
            for slot in map(int, slots)
        ]


def check_vectors(memory: MemoryTable, vector_width: int, num_features: int) -> None:
    """ValueError unless vectors, embeddings (of width `num_features`), cursor and written can be a memory's."""
    vectors, embeddings = memory.vectors, memory.embeddings
    if vectors.ndim != 2 or not vectors.size or vectors.shape[1] != vector_width:
        raise ValueError(f"has vectors of shape {list(vectors.shape)}, but the model gives width {vector_width}")
    check_unit_rows(vectors)
    if not 0 <= memory.cursor < memory.slots or memory.written < 0:
        raise ValueError(
            f"has cursor {memory.cursor} and written {memory.written}, impossible for {memory.slots} slots"
        )
    if embeddings is not None and embeddings.shape != (memory.slots, num_features):
        shape = f"{list(embeddings.shape)} where the model gives {[memory.slots, num_features]}"
        raise ValueError(f"has embeddings of shape {shape}")
    if embeddings is not None and not np.isfinite(embeddings).all():
        raise ValueError("has embeddings that are not finite")


def check_unit_rows(vectors: np.ndarray) -> None:
    """ValueError unless every row of [K, D] is of unit length within 1e-3."""
    if not (np.abs(np.linalg.norm(vectors, axis=1) - 1) <= 1e-3).all():  # NaN is not
        raise ValueError("has vectors that are not of unit length")


def check_rows(memory: MemoryTable) -> None:
    """ValueError unless there is one sound row a slot."""
    for name in ("image_id", "uri", "label", "class_name", "step", "box", "thumbnails"):
        if len(getattr(memory, name)) != memory.slots:
            raise ValueError(f"has {len(getattr(memory, name))} rows ({name}) for {memory.slots} slots")
    if memory.box.shape != (memory.slots, 4) or not ((memory.box >= -1e-3) & (memory.box <= 1 + 1e-3)).all():
        raise ValueError("has crop boxes outside 0..1")
    if memory.image_id.min() < -2:
        raise ValueError("has image ids below -2")
    compute: Any = pyarrow.compute
    if (compute.max(compute.binary_length(memory.thumbnails)).as_py() or 0) > MAX_THUMBNAIL_BYTES:
        raise ValueError(f"has a thumbnail of more than {MAX_THUMBNAIL_BYTES} bytes")


def pack_rows(memory: MemoryTable) -> bytes:
    """The parquet file of a memory, one row a slot; equal rows give equal bytes."""
    thumbnails = pa.StructArray.from_arrays(
        [memory.thumbnails, pa.nulls(memory.slots, pa.string())],
        fields=list(_THUMBNAIL),
        mask=memory.thumbnails.is_null(),
    )
    columns = [np.arange(memory.slots), memory.image_id, memory.uri, memory.label, memory.class_name, memory.step]
    columns += [*memory.box.T, thumbnails]
    table = pa.table(dict(zip(SCHEMA.names, columns, strict=True)), schema=SCHEMA)
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(_VIEWER)}), sink, compression="zstd")
    return sink.getvalue()


def read_rows(path: Path, slots: int) -> dict[str, Any]:
    """The columns of a MemoryTable that `pack_rows` wrote. ValueError if they are unreadable or not `slots` rows."""
    try:
        with pq.ParquetFile(path) as file:
            rows = file.metadata.num_rows
            if rows != slots:
                raise ValueError(f"has {rows} rows for {slots} slots")
            table = file.read(columns=SCHEMA.names).select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, KeyError) as reason:
        raise ValueError("is not a readable table of memory slots") from reason
    columns = {name: pa.concat_arrays(table[name].chunks) for name in SCHEMA.names}
    numbers = {name: columns.pop(name) for name in SCHEMA.names if pa.types.is_primitive(SCHEMA.field(name).type)}
    if any(column.null_count for column in numbers.values()):
        raise ValueError("lacks numbers in some rows")
    arrays = {name: column.to_numpy() for name, column in numbers.items()}
    if (arrays.pop("slot") != np.arange(slots)).any():
        raise ValueError("does not list every slot once and in order")
    columns["thumbnails"] = columns.pop("thumbnail").flatten()[0]
    return {"box": np.stack([arrays.pop(name) for name in _BOX], 1), **arrays, **columns}
