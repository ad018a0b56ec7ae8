"""The embeddings of a gallery on disk: parts that are written whole, and a journal of the rows that fill none yet.

A row is a picture's content, whatever files hold it. Nothing that was embedded is lost when the process is killed: a
batch is in the journal before the next one is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from memssl_core.errors import DataError
from memssl_core.jobs import replacing

PART = 2_048
"""rows a part, at most"""
ROW_GROUP = 64
"""rows read to show one thumbnail"""
ROWS = pa.schema(
    [("content", pa.string()), ("part", pa.int32()), ("at", pa.int32()), ("width", pa.int32()), ("height", pa.int32())]
)
SEEN = pa.schema([("path", pa.string()), ("size", pa.int64()), ("stamp", pa.int64()), ("content", pa.string())])

compute: Any = pyarrow.compute


def part_schema(width: int) -> pa.Schema:
    """Columns of a part: the embedding has unit length; path, size and stamp are of the file it was made of."""
    return pa.schema(
        [("content", pa.string()), ("embedding", pa.list_(pa.float16(), width)), ("width", pa.int32())]
        + [("height", pa.int32()), ("thumbnail", pa.binary())]
        + [("path", pa.string()), ("size", pa.int64()), ("stamp", pa.int64())]
    )


def thumbnail_at(folder: Path, part: int, at: int) -> bytes:
    """The WebP of a row; b"" if its part has gone."""
    try:
        with pq.ParquetFile(_path(folder, part)) as file:
            group = file.read_row_group(at // ROW_GROUP, columns=["thumbnail"])
        return group["thumbnail"][at % ROW_GROUP].as_py() or b""
    except (pa.ArrowException, OSError, IndexError):
        return b""


class Parts:
    """The parts in a folder of embeddings of one width; one process at a time may add to them."""

    def __init__(self, folder: Path, width: int) -> None:
        self.folder, self.schema = folder, part_schema(width)
        self._waiting: list[pa.RecordBatch] = []
        self._journal: pa.RecordBatchStreamWriter | None = None

    def recover(self) -> None:
        """To be called before something is added: what a killed process left in its journal becomes a part."""
        for torn in self.folder.glob("*.tmp"):
            torn.unlink()
        journal = self.folder / "journal.arrows"
        if journal.exists():
            left = pa.Table.from_batches(_readable(journal, self.schema), self.schema)
            mine = compute.invert(compute.is_in(left["content"], value_set=self.rows()["content"].combine_chunks()))
            if (left := left.filter(mine)).num_rows:
                self._write(left)
            journal.unlink()

    def rows(self, after: int = -1) -> pa.Table:
        """ROWS of the parts numbered above `after`, in order; of rows with the same content the first one. What cannot
        be read is not there."""
        tables = [ROWS.empty_table()]
        for number in self._numbers(after):
            if (found := self._read(number, ["content", "width", "height"])) is not None:
                place = {"part": np.full(len(found), number, np.int32), "at": np.arange(len(found), dtype=np.int32)}
                columns = {name: place[name] if name in place else found[name] for name in ROWS.names}
                tables.append(pa.table(columns, schema=ROWS))
        rows = pa.concat_tables(tables).combine_chunks()
        if compute.count_distinct(rows["content"]).as_py() == len(rows):
            return rows
        numbered = pa.table({"content": rows["content"], "row": np.arange(len(rows))})
        first = numbered.group_by("content").aggregate([("row", "min")])["row_min"].to_numpy()
        return rows.take(np.sort(first)).combine_chunks()

    def seen(self, after: int) -> pa.Table:
        """SEEN of the parts numbered above `after`."""
        found = [self._read(number, SEEN.names) for number in self._numbers(after)]
        return pa.concat_tables([SEEN.empty_table(), *(table for table in found if table is not None)])

    def add(self, rows: pa.RecordBatch) -> None:
        """Keep rows of `part_schema`."""
        if self._journal is None:
            self._file = open(self.folder / "journal.arrows", "wb")  # noqa: SIM115
            self._journal = pa.ipc.new_stream(self._file, self.schema)
        self._journal.write_batch(rows)
        self._file.flush()
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= PART:
            self.flush()

    def flush(self) -> None:
        """All that was added is in parts now."""
        if self._waiting:
            self._write(pa.Table.from_batches(self._waiting, self.schema))
        self.close()
        (self.folder / "journal.arrows").unlink(missing_ok=True)

    def close(self) -> None:
        """Leave what fills no part in the journal."""
        if self._journal is not None:
            self._file.close()
        self._waiting, self._journal = [], None

    def embeddings(self, rows: pa.Table) -> Iterator[np.ndarray]:
        """float16 [n, C] of the given ROWS, some thousands at a time, in their order."""
        for number, places in _by_part(rows):
            found = self._read(number, ["embedding"])
            if found is None:
                raise DataError(f"{_path(self.folder, number).name} of this gallery is damaged; embed it again.")
            flat = found["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            yield flat.reshape(len(found), -1)[places]

    def compacted(self, rows: pa.Table) -> pa.Table:
        """Write the given ROWS into new parts and return their places there. The old parts stay."""
        before = max(self._numbers(), default=-1)
        for number, places in _by_part(rows):
            if (found := self._read(number, self.schema.names)) is not None:
                self._waiting += found.take(places).to_batches()
            while (table := pa.Table.from_batches(self._waiting, self.schema)).num_rows >= PART:
                self._write(table.slice(0, PART))
                self._waiting = table.slice(PART).to_batches()
        self.flush()
        return self.rows(before)

    def keep_only(self, rows: pa.Table) -> None:
        """Remove the parts that none of these ROWS lies in."""
        wanted = {*rows["part"].unique().to_pylist()}
        for number in self._numbers():
            if number not in wanted:
                _path(self.folder, number).unlink()

    def _numbers(self, after: int = -1) -> list[int]:
        names = (re.fullmatch(r"part-(\d{6,9})\.parquet", path.name) for path in self.folder.glob("part-*"))
        return sorted(number for name in names if name and (number := int(name[1])) > after)

    def _read(self, number: int, columns: list[str]) -> pa.Table | None:
        try:
            with pq.ParquetFile(_path(self.folder, number)) as file:
                told = file.schema_arrow
                is_ours = told.names == self.schema.names and told.types[1] == self.schema.types[1]
                return file.read(columns=columns).select(columns) if is_ours else None
        except (pa.ArrowException, OSError):
            return None

    def _write(self, rows: pa.Table) -> None:
        number = max(self._numbers(), default=-1) + 1
        with replacing(_path(self.folder, number)) as file:
            pq.write_table(rows, file, row_group_size=ROW_GROUP, compression="none", use_dictionary=False)


def _path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:06d}.parquet"


def _by_part(rows: pa.Table) -> Iterator[tuple[int, np.ndarray]]:
    """Part by part, and which of its rows; ROWS are in the order of parts."""
    part, at = rows["part"].to_numpy(), rows["at"].to_numpy()
    cuts = np.flatnonzero(np.diff(part)) + 1
    for places, number in zip(np.split(at, cuts), part[np.concatenate([[0], cuts])] if len(part) else [], strict=False):
        yield int(number), places


def _readable(journal: Path, schema: pa.Schema) -> list[pa.RecordBatch]:
    """The whole batches of a journal; the last one may be torn."""
    batches: list[pa.RecordBatch] = []
    try:
        with pa.ipc.open_stream(journal) as reader:
            while reader.schema.equals(schema):
                batches.append(reader.read_next_batch())
    except (pa.ArrowException, OSError, StopIteration):
        pass
    return batches
