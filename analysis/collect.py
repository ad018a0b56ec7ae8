"""Bring a gallery up to a listing: what is known is not read, what was read before under another name not embedded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from PIL import Image

from analysis.parts import Parts
from analysis.pictures import CHANGED, Changed, Listing, Pictures
from memssl_core.bundle.embed import Embedded
from memssl_core.bundle.thumbnails import thumbnail
from memssl_core.data.images import printable
from memssl_core.data.streams import Item
from memssl_core.errors import ImageError
from memssl_core.jobs import Emit

THUMBNAIL_PX, THUMBNAIL_BYTES = 256, 6_000
TOLD_EVERY = 1_000  # pictures read without one being embedded
NOTHING = "The model gives no embedding of it."
SKIPPED = pa.schema(
    [("path", pa.string()), ("size", pa.int64()), ("stamp", pa.int64()), ("content", pa.string())]
    + [("reason", pa.string())]
)

Looks = tuple[int, int, bytes]
"""width, height, thumbnail"""
Embedder = Callable[[Iterable[Item]], Iterator[Embedded[Looks]]]

compute: Any = pyarrow.compute


@dataclass(frozen=True, eq=False)
class Collected:
    """What a source holds, as far as it could be read; the embeddings are in the parts."""

    rows: pa.Table
    """ROWS of the parts"""
    items: pa.Table
    """LISTED with `content` and `row`, the position in `rows`; increasing by row"""
    skipped: pa.Table
    """SKIPPED: `content` where it is the content that cannot be read"""


def looks(picture: Image.Image) -> Looks:
    """What is kept of a picture besides its embedding."""
    return picture.width, picture.height, thumbnail(picture, side_px=THUMBNAIL_PX, max_bytes=THUMBNAIL_BYTES)


def recognised(table: pa.Table, known: pa.Table) -> pa.Table:
    """LISTED with the `content` of each picture, null where it has to be read; `known` are SEEN ones."""
    key = ["path", "size", "stamp"]
    unique = known.select([*key, "content"]).group_by(key).aggregate([("content", "max")])
    unique = unique.rename_columns([*key, "content"])
    return table.join(unique, keys=key, join_type="left outer").sort_by("at").combine_chunks()


def collect(
    pictures: Pictures,
    listing: Listing,
    parts: Parts,
    embed: Embedder,
    *,
    known: pa.Table,
    unreadable: Mapping[str, str],
    emit: Emit,
    should_stop: Callable[[], bool],
) -> Collected | None:
    """Embed what is new; None if it was stopped, what was embedded being kept.

    Args: known, SEEN of what was read before; unreadable, the reasons of contents that cannot be decoded.
    """
    answered = pa.array([*unreadable], pa.string()), parts.rows()["content"].combine_chunks()
    known = known.filter(compute.is_in(known["content"], value_set=pa.concat_arrays(answered)))
    run = _Run(pictures, recognised(listing.table, known), parts, dict(unreadable), emit, should_stop)
    for path, reason in listing.skipped:
        run.skip(path, reason)
    for batch in embed(run.new()):
        run.keep(batch)
        if should_stop():
            break
    if should_stop():
        parts.close()
        return None
    parts.flush()
    return run.collected(listing)


class _Run:
    def __init__(
        self,
        pictures: Pictures,
        listed: pa.Table,
        parts: Parts,
        failed: dict[str, str],
        emit: Emit,
        should_stop: Callable[[], bool],
    ) -> None:
        self.pictures, self.listed, self.parts, self.emit, self.should_stop = pictures, listed, parts, emit, should_stop
        self.failed = failed  # content -> reason
        self.reasons: dict[int, str] = {}  # position -> reason, of what has no content
        self.contents: list[str | None] = listed["content"].to_pylist()
        self.have: set[str] = {*parts.rows()["content"].to_pylist()}
        self.places = np.flatnonzero(listed["content"].combine_chunks().is_null().to_numpy(zero_copy_only=False))
        self.done = self.skipped = 0

    def new(self) -> Iterator[Item]:
        """The pictures whose content is not embedded yet, each once."""
        for done, at in enumerate(self.places.tolist()):
            if self.should_stop():
                return
            if done - self.done >= TOLD_EVERY:
                self.told(done)
            path = self.listed["path"][at].as_py()
            try:
                content = self.contents[at] = self.pictures.content(at)
            except ImageError as reason:
                self.reasons[at] = str(reason)
                self.skip(path, str(reason))
                continue
            if content not in self.have and content not in self.failed:
                self.have.add(content)
                yield Item(at, path, None, None, partial(self._read, at, path, content))

    def keep(self, batch: Embedded[Looks]) -> None:
        for sentence in batch.skipped:
            self.skip(None, sentence)
        if not batch.items:
            return
        rows = batch.embeddings.cpu().numpy()
        lengths = np.linalg.norm(rows, axis=1)
        good = np.flatnonzero(np.isfinite(lengths) & (lengths > 0))
        for bad in {*range(len(rows))} - {*good.tolist()}:
            self.failed[self.contents[batch.items[bad].image_id] or ""] = NOTHING
            self.skip(batch.items[bad].uri, NOTHING)
        self.parts.add(self._batch(batch, good, (rows[good] / lengths[good, None]).astype(np.float16)))
        self.told(int(np.searchsorted(self.places, batch.items[-1].image_id)) + 1)

    def told(self, done: int) -> None:
        self.done = done
        self.emit("progress", step=done, total=len(self.places), words="embedding pictures")

    def skip(self, path: str | None, reason: str) -> None:
        self.skipped += 1
        message = f"{printable(path)}: {reason}" if path else reason
        self.emit("skipped_image", step=self.done, message=message, skipped=self.skipped)

    def collected(self, listing: Listing) -> Collected:
        rows = self.parts.rows()
        listed = self.listed.set_column(
            self.listed.schema.get_field_index("content"), "content", pa.array(self.contents, pa.string())
        )
        row = compute.index_in(listed["content"], value_set=rows["content"].combine_chunks())
        listed = listed.append_column("row", row)
        items, lost = listed.filter(compute.is_valid(row)), listed.filter(compute.is_null(row)).to_pylist()
        return Collected(rows, items.sort_by([("row", "ascending"), ("path", "ascending")]), self._lost(lost, listing))

    def _lost(self, lost: list[dict[str, Any]], listing: Listing) -> pa.Table:
        told: list[dict[str, Any]] = [{"path": path, "reason": reason} for path, reason in listing.skipped]
        for one in lost:
            failed = self.failed.get(one["content"])
            reason = failed or self.reasons.get(one["at"], CHANGED)
            told.append({**one, "content": one["content"] if failed else None, "reason": reason})
        return pa.Table.from_pylist([{name: one.get(name) for name in SKIPPED.names} for one in told], SKIPPED)

    def _read(self, at: int, path: str, content: str) -> Image.Image:
        """In a thread of the embedder."""
        try:
            return self.pictures.read(at, content)
        except ImageError as reason:
            if not isinstance(reason, Changed):
                self.failed[content] = str(reason)
            raise ImageError(f"{printable(path)}: {reason}") from None

    def _batch(self, batch: Embedded[Looks], good: np.ndarray, rows: np.ndarray) -> pa.RecordBatch:
        places = [batch.items[i].image_id for i in good]
        extras = [batch.extras[i] for i in good]
        embeddings = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
        origin = self.listed.select(["path", "size", "stamp"]).take(pa.array(places, pa.int64())).combine_chunks()
        columns = [
            pa.array([self.contents[at] for at in places], pa.string()),
            embeddings,
            *(pa.array([extra[side] for extra in extras], pa.int32()) for side in (0, 1)),
            pa.array([extra[2] for extra in extras], pa.binary()),
            *(column.chunk(0) if column.num_chunks else pa.array([], column.type) for column in origin.columns),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.parts.schema)
