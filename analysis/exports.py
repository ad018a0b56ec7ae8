"""Results taken away: a table as CSV, or a zip of the table and the thumbnails."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

COLUMNS = ("query", "rank", "score", "id", "uri", "class_name")


def found_csv(records: Sequence[dict[str, Any]]) -> bytes:
    """Records of `Found.records`, each with the name of its `query`. Text that a spreadsheet would take for a formula
    gets a quote before it."""
    sink = io.StringIO()
    rows = ([_harmless(record.get(column)) for column in COLUMNS] for record in records)
    csv.writer(sink).writerows([COLUMNS, *rows])
    return sink.getvalue().encode(errors="replace")


def found_zip(records: Sequence[dict[str, Any]], thumbnail: Callable[[dict[str, Any]], bytes]) -> bytes:
    """`found.csv` and the thumbnails, named by the place of a record in the table, from 1."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as file:
        file.writestr("found.csv", found_csv(records))
        for place, record in enumerate(records, 1):
            if data := thumbnail(record):
                file.writestr(f"{place:04d}.{'jpg' if data[:1] == bytes([0xFF]) else 'webp'}", data)
    return sink.getvalue()


def _harmless(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell
