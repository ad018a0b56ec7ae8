"""The map of a memory: a place in the plane for every written slot, as arrays and as map.parquet."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from memssl_core.errors import BundleError
from memssl_core.jobs import write_atomically

SCHEMA = pa.schema([("slot", pa.int64()), ("x", pa.float32()), ("y", pa.float32()), ("cluster", pa.int32())])
MAX_PARAMETERS_BYTES = 1 << 16
MAX_CLUSTERS = 255
"""one byte a point tells them and `none` apart"""
PARAMETERS: dict[str, Any] = {
    "bundle_hash": str,  # of the bundle whose memory was mapped
    "space": str,  # memory or embedding
    "method": str,  # umap, or pca for very few slots
    "seed": int | None,
    "min_dist": int | float,
    "clustering": str,  # how clusters were found
    "versions": dict,  # of the libraries
    "fit_s": int | float,
}
MAP_FIGURES = {
    "trustworthiness": "trustworthiness@15 of the map",
    "trustworthiness_pca": "trustworthiness@15 of the first two principal components",
    "continuity": "continuity@15 of the map",
    "continuity_pca": "continuity@15 of the first two principal components",
    "label_agreement": "share of the 15 neighbours on the map that are of one's class",
    "label_agreement_space": "share of the 15 neighbours in the space that are of one's class",
}
_KEY = b"memssl"  # of the schema's metadata; its value is the JSON of `parameters`


@dataclass(frozen=True, eq=False)
class MemoryMap:
    """M >= 1 points, one for each written slot of a memory, in the order of their slots."""

    slot: np.ndarray
    """int64 [M], increasing"""
    xy: np.ndarray
    """float32 [M, 2]; only who is near whom means something, not how far apart, how large or how dense"""
    cluster: np.ndarray
    """int32 [M], below MAX_CLUSTERS: 0 is the largest; -1 none"""
    parameters: dict[str, Any]
    """plain JSON values: those of PARAMETERS, those of MAP_FIGURES that could be taken, and the method's settings"""


def save_map(path: Path, memory_map: MemoryMap) -> None:
    """Write a map file, or replace one; a reader sees the old file or the new one."""
    columns = [memory_map.slot, *memory_map.xy.T, memory_map.cluster]
    table = pa.table(dict(zip(SCHEMA.names, columns, strict=True)), schema=SCHEMA)
    told = json.dumps(memory_map.parameters, sort_keys=True, allow_nan=False).encode()
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({_KEY: told}), sink, compression="zstd")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, sink.getvalue())


def read_map(path: Path, slots: np.ndarray, *, bundle_hash: str, space: str) -> MemoryMap | None:
    """The map at `path` of the memory with this hash; None if there is none, or one of another memory or space.

    Args: slots, int64 [M >= 1], the written slots of the memory in that space.
    Raises: BundleError, one sentence, if the file is no sound map of just these slots.
    """
    if not path.is_file():
        return None
    try:
        return _read(path, slots, bundle_hash, space)
    except (ValueError, OSError, KeyError, RecursionError, pa.ArrowException) as reason:
        why = str(reason) if type(reason) is ValueError else "is not a readable map of a memory"
        raise BundleError(f"{path.name} {why}; fit the map again with `python -m analysis map`.") from reason


def _read(path: Path, slots: np.ndarray, bundle_hash: str, space: str) -> MemoryMap | None:
    if path.stat().st_size > 64 * len(slots) + 16 * MAX_PARAMETERS_BYTES:
        raise ValueError(f"is far too large for a map of {len(slots)} slots")
    with pq.ParquetFile(path) as file:
        parameters = _parameters((file.schema_arrow.metadata or {}).get(_KEY, b""))
        if (parameters.get("bundle_hash"), parameters.get("space")) != (bundle_hash, space):
            return None
        if file.metadata.num_rows != len(slots):
            raise ValueError(f"has {file.metadata.num_rows} rows for {len(slots)} written slots")
        if not file.schema_arrow.remove_metadata().equals(SCHEMA):
            raise ValueError(f"has other columns than {', '.join(SCHEMA.names)}, or other types in them")
        table = file.read()
    if any(column.null_count for column in table.columns):
        raise ValueError("lacks numbers in some rows")
    slot, x, y, cluster = (column.to_numpy() for column in table.columns)
    if not np.array_equal(slot, slots):
        raise ValueError("does not list every written slot once and in order")
    xy = np.stack([x, y], 1)
    if not np.isfinite(xy).all():
        raise ValueError("has coordinates that are not finite")
    if not -1 <= cluster.min() <= cluster.max() < MAX_CLUSTERS:
        raise ValueError(f"has cluster numbers that are not between -1 and {MAX_CLUSTERS - 1}")
    return MemoryMap(slot, xy, cluster, parameters)


def _parameters(told: bytes) -> dict[str, Any]:
    if len(told) > MAX_PARAMETERS_BYTES:
        raise ValueError(f"has parameters of more than {MAX_PARAMETERS_BYTES} bytes")
    try:
        parameters = json.loads(told, parse_constant=_refuse)
    except ValueError:
        parameters = None
    if not isinstance(parameters, dict):
        raise ValueError("has no readable parameters")
    kinds = PARAMETERS | {name: int | float for name in MAP_FIGURES if name in parameters}
    for name, kind in kinds.items():
        if not isinstance(parameters.get(name), kind):
            raise ValueError(f"has no usable {name!r} among its parameters")
        if name in MAP_FIGURES and not 0 <= parameters[name] <= 1:
            raise ValueError(f"has {name!r} outside 0..1 among its parameters")
    return parameters


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
