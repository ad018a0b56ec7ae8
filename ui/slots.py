"""Slots one by one: where each came from, finding them by words, taking a selection away as a file."""

from __future__ import annotations

import csv
import io
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from memssl_core import paths
from memssl_core.errors import ModelError
from ui.context import Context
from ui.layouts import Layout, Space
from ui.memory import tile

if TYPE_CHECKING:
    from memssl_core.bundle.table import MemoryTable
    from memssl_core.training.runs import Since

NEIGHBOURS = 12
COLUMNS = ("slot", "image_id", "uri", "class_name", "step", "x0", "y0", "x1", "y1")


def memory_of(context: Context, model: str) -> MemoryTable:
    memory = context.workbench(model).model.memory
    if memory is None:
        raise ModelError("This model has no memory, so there is no map of it.")
    return memory


def card(context: Context, model: str, space: Space, slot: int) -> dict[str, Any]:
    """Where a slot's vector came from, and the slots nearest to it in the original space."""
    workbench, memory = context.workbench(model), memory_of(context, model)
    if not 0 <= slot < memory.slots:
        raise ModelError(f"There is no slot {slot}; this memory has slots 0 to {memory.slots - 1}.")
    found = workbench.neighbours_of_slot(slot, space, NEIGHBOURS)
    (row,) = memory.rows(np.array([slot]))
    return {
        **tile(model, row, 1.0),
        "uri": shown_uri(row["uri"], context.public),
        "last_step": int(memory.step.max()) + 1,
        "overwritten_in": (left := (slot - memory.cursor) % memory.slots + 1),
        "times_written": max(0, -(-(memory.written - slot) // memory.slots)),
        "is_stale": left <= since(context, model).keys,
        "bundle_hash": workbench.model.card["bundle_hash"],
        "space": found.space,
        "neighbours": [tile(model, one, score) for one, score in zip(found.rows, found.scores.tolist(), strict=True)],
    }


def since(context: Context, model: str) -> Since:
    """What has become of the run that a memory is a snapshot of; of one that is none, nothing."""
    from memssl_core.training.runs import Since, since_snapshot

    opened = context.workbench(model).model
    kind, _, run = opened.source.partition(":")
    if kind != "run":
        return Since(0, 0, 0, False)
    return since_snapshot(run, memory_of(context, model))


def shown_uri(uri: str | None, public: bool) -> str | None:
    return paths.without_folders(uri) if uri and public else uri


def matching(memory: MemoryTable, words: str) -> np.ndarray:
    """Slots, rising: the one of this number, and those whose class or uri holds the words, whatever their case."""
    import pyarrow.compute

    compute: Any = pyarrow.compute
    words = words.strip()
    if not words:
        return np.empty(0, np.int64)
    hits = np.zeros(memory.slots, bool)
    for column in (memory.class_name, memory.uri):
        found = compute.match_substring(column, words, ignore_case=True)
        hits |= compute.fill_null(found, False).to_numpy(zero_copy_only=False)
    if words.isdecimal() and int(words) < memory.slots:
        hits[int(words)] = True
    return np.flatnonzero(hits)


def table_rows(memory: MemoryTable, slots: np.ndarray, public: bool) -> list[list[Any]]:
    rows = memory.rows(slots)
    return [
        [r["slot"], r["image_id"], shown_uri(r["uri"], public), r["class_name"], r["step"], *r["box"]] for r in rows
    ]


def as_csv(memory: MemoryTable, slots: np.ndarray, public: bool) -> tuple[bytes, str]:
    """Text that a spreadsheet would take for a formula gets a quote before it."""
    sink = io.StringIO()
    safe = lambda cell: f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell
    rows = ([safe(cell) for cell in row] for row in table_rows(memory, slots, public))
    csv.writer(sink).writerows([COLUMNS, *rows])
    return sink.getvalue().encode(), "text/csv"


def as_parquet(memory: MemoryTable, slots: np.ndarray, public: bool) -> tuple[bytes, str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = table_rows(memory, slots, public)
    sink = io.BytesIO()
    pq.write_table(pa.table({name: [row[i] for row in rows] for i, name in enumerate(COLUMNS)}), sink)
    return sink.getvalue(), "application/vnd.apache.parquet"


def points_table(layout: Layout, memory: MemoryTable, public: bool) -> bytes:
    """A parquet file of a map's points: slot, x, y, cluster (-1 none), class_name, uri, step."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    cluster = np.full(len(layout.slots), -1, np.int32) if layout.cluster is None else layout.cluster
    uris = memory.uri.take(layout.slots).to_pylist()
    columns = {
        "slot": layout.slots,
        "x": layout.xy[:, 0],
        "y": layout.xy[:, 1],
        "cluster": cluster,
        "class_name": memory.class_name.take(layout.slots),
        "uri": pa.array([shown_uri(uri, public) for uri in uris], pa.string()),
        "step": memory.step[layout.slots],
    }
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def as_zip(memory: MemoryTable, slots: np.ndarray, public: bool) -> tuple[bytes, str]:
    """The thumbnails, named by slot, and the table."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as file:
        file.writestr("slots.csv", as_csv(memory, slots, public)[0])
        for slot in slots.tolist():
            if data := memory.thumbnail(slot):
                file.writestr(f"{slot}.{'jpg' if data[:1] == bytes([0xFF]) else 'webp'}", data)
    return sink.getvalue(), "application/zip"


FILES = {"csv": as_csv, "parquet": as_parquet, "zip": as_zip}
