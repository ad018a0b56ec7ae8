"""Make a gallery, or bring it up to date: what it will take, and the work itself, which goes on after a kill."""

from __future__ import annotations

import errno
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute

from analysis.collect import Embedder, collect, looks, recognised
from analysis.gallery import (
    CLAIM,
    ITEMS,
    Gallery,
    claimed,
    gallery_folder,
    generation_folder,
    newest_claim,
    open_gallery,
    read_gallery,
    refuse_other,
    write_state,
)
from analysis.index import EXACT_UP_TO
from analysis.parts import SEEN, Parts
from analysis.pictures import Listing, Pictures, absolute, open_pictures
from memssl_core.data.images import printable
from memssl_core.data.streams import Item
from memssl_core.errors import DataError, ImageError, ModelError
from memssl_core.jobs import Emit, write_atomically

if TYPE_CHECKING:
    from memssl_core.sources import Model

TRIED = 16
"""pictures embedded to tell how long the rest will take"""
THUMBNAIL_AND_NAMES_BYTES = 6_500
"""of a row on disk, besides its embedding; measured on photographs some 5 000 [assumption]"""
RAM_BYTES, RAM_BYTES_A_PICTURE = 700_000_000, 400
"""of the process that embeds, besides the model; measured by benchmarks/search.py"""
INDEX_S_A_ROW = 2e-4
"""measured by benchmarks/search.py"""

compute: Any = pyarrow.compute


@dataclass(frozen=True)
class Encoder:
    """What embeds the pictures of a gallery, and how it is recognised."""

    source: str
    """the model as a person would type it"""
    model_hash: str
    transform: dict[str, Any]
    width: int
    embed: Embedder
    nbytes: int = 0
    """of the model in main memory"""


@dataclass(frozen=True)
class Need:
    """What an update would do and take."""

    pictures: int
    """that the source holds now"""
    new: int
    """to be read: new or changed files, and those of a first run that was stopped; moved ones not"""
    moved: int
    """of the size and age of one that is gone: read, most likely not embedded"""
    gone: int
    skipped: int
    seconds: float
    """measured on some of the new ones; 0 if there are none"""
    ram_bytes: int
    disk_bytes: int
    ram_free_bytes: int
    disk_free_bytes: int
    problems: tuple[str, ...]
    """why it cannot be done, a sentence each"""


def encoder_of(model: Model, device: str = "cpu") -> Encoder:
    """The backbone of an opened model under the model's own transform."""
    from memssl_core.bundle.embed import embedded

    embed = partial(embedded, model.backbone.to(device), model.transform, device=device, also=looks)
    return Encoder(
        absolute(model.source), model.model_hash, asdict(model.transform), model.card["embedding_width"], embed
    )


def need(name: str, data: str | None, encoder: Encoder, *, again: bool = False) -> Need:
    """What `update_gallery` of the same arguments would take: the source is listed, a few pictures are embedded.

    Raises: what `update_gallery` raises before it starts.
    """
    root = gallery_folder(name)
    pictures, listing, spec = _listed(root, data, None)
    before = _Before.of(root, encoder, again=again)
    listed = recognised(listing.table, before.known(spec))
    unknown = listed.filter(compute.is_null(listed["content"]))
    absent = before.items.join(listed.select(["path"]), keys="path", join_type="left anti")
    moved = len(unknown.join(absent.select(["size", "stamp"]), keys=["size", "stamp"], join_type="left semi"))
    new = len(unknown) - moved
    seconds = _trial_s(pictures, unknown, encoder) * new
    if new and len(listed) > EXACT_UP_TO:
        seconds += INDEX_S_A_ROW * len(listed)
    disk, ram = _disk_bytes(len(listed), new, encoder.width), encoder.nbytes + _ram_bytes(len(listed), encoder.width)
    disk_free, ram_free = _disk_free(root), psutil.virtual_memory().available
    problems = tuple(filter(None, (_too_little("disk", disk, disk_free), _too_little("memory", ram, ram_free))))
    counts = len(listed), new, moved, len(absent), len(listing.skipped)
    return Need(*counts, seconds, ram, disk, ram_free, disk_free, problems)


def update_gallery(
    name: str,
    data: str | None,
    encoder: Encoder,
    *,
    again: bool = False,
    pictures: Pictures | None = None,
    emit: Emit = lambda event, *, step, **facts: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Gallery | None:
    """Make the gallery hold what its source holds now; None if it was stopped, the next call going on from there.

    Files of unchanged size and time are not read, files whose content is known not embedded, files that cannot be read
    named, counted and passed over. What was embedded before a kill is not embedded again.

    Args:
        data: a folder, a .zip or another source of `open_pictures`; None: the one it was made of.
        again: embed everything anew, also by another model than the gallery's.
        pictures: the opened source, if it is open already.
    Raises: ModelError for another model without `again`; DataError if the source cannot be read, there is too little
        disk, or another process changes the gallery.
    """
    root = gallery_folder(name)
    with _told_when_full(name), claimed(root):
        emit("progress", step=0, total=None, words="listing pictures")
        pictures, listing, spec = _listed(root, data, pictures)
        before = _Before.of(root, encoder, again=again)
        before.parts.recover()
        known = before.known(spec)
        new = recognised(listing.table, known)["content"].null_count
        disk = _disk_bytes(len(listing.table), new, encoder.width)
        if sentence := _too_little("disk", disk, _disk_free(root)):
            raise DataError(sentence)
        claim = _claim(encoder, spec)
        before.parts.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(before.folder / CLAIM, json.dumps(claim).encode())
        asked: Any = {"emit": emit, "should_stop": should_stop}
        unreadable = before.unreadable()
        found = collect(pictures, listing, before.parts, encoder.embed, known=known, unreadable=unreadable, **asked)
        if found is None:
            return None
        if not len(found.items):
            path, reason = (found.skipped[column][0].as_py() for column in ("path", "reason"))
            raise DataError(f"None of these pictures can be read. {printable(path)}: {reason}")
        return open_gallery(root) if write_state(root, claim, before.parts, found, before.gallery, **asked) else None


@dataclass(frozen=True, eq=False)
class _Before:
    """What there is when an update begins."""

    gallery: Gallery | None
    """the newest whole state, of any model"""
    folder: Path
    """the generation to bring up to date"""
    parts: Parts

    @staticmethod
    def of(root: Path, encoder: Encoder, *, again: bool) -> _Before:
        """A generation that an earlier run has begun is gone on with. ModelError for another model, unless `again`."""
        facts, claim = read_gallery(root), newest_claim(root)
        current, newest = (int(told["generation"]) if told else 0 for told in (facts, claim))
        if claim and newest > current and (again or not facts):
            try:
                refuse_other(root.name, claim, encoder.model_hash, encoder.transform)
                number = newest
            except ModelError:
                if not again:
                    raise
                number = newest + 1
        elif facts and not again:
            refuse_other(root.name, facts, encoder.model_hash, encoder.transform)
            number = current
        else:
            number = max(current, newest) + 1
        gallery = None
        if facts:
            with nullcontext() if not again else suppress(ModelError):  # a damaged one is made anew
                gallery = open_gallery(root)
        folder = generation_folder(root, number)
        return _Before(gallery, folder, Parts(folder / "parts", encoder.width))

    @property
    def here(self) -> Gallery | None:
        """The whole state of this very generation."""
        return self.gallery if self.gallery and self.gallery.folder.parent == self.folder else None

    @property
    def items(self) -> pa.Table:
        return self.gallery.items if self.gallery else ITEMS.empty_table()

    def known(self, spec: str) -> pa.Table:
        """SEEN of the state's files, also of those that could not be decoded, and of what a killed run embedded; as far
        as they are of this source: in another one a file of the same name, size and time may be another."""
        tables, last = [SEEN.empty_table()], -1
        if self.here is not None:
            lost, last = self.here.skipped_table(), compute.max(self.here.rows["part"]).as_py()
            if self.here.facts["data"] == spec:
                tables += [self.here.items, lost.filter(compute.is_valid(lost["content"]))]
        with suppress(OSError, ValueError, TypeError, KeyError):
            if json.loads((self.folder / CLAIM).read_bytes())["data"] == spec:
                tables.append(self.parts.seen(last))
        return pa.concat_tables([table.select(SEEN.names) for table in tables])

    def unreadable(self) -> dict[str, str]:
        """The reasons of contents that could not be decoded."""
        lost = self.here.skipped_table() if self.here else None
        pairs = zip(lost["content"].to_pylist(), lost["reason"].to_pylist(), strict=True) if lost else ()
        return {content: reason for content, reason in pairs if content}


def _claim(encoder: Encoder, spec: str) -> dict[str, Any]:
    return {
        "data": spec,
        "model": encoder.source,
        "model_hash": encoder.model_hash,
        "transform": encoder.transform,
        "width": encoder.width,
    }


def _listed(root: Path, data: str | None, pictures: Pictures | None) -> tuple[Pictures, Listing, str]:
    """The opened source, its listing, and what it is called."""
    told = read_gallery(root) or newest_claim(root) or {}
    spec = absolute(data) if data else told.get("data")
    if not spec:
        raise DataError(f"Gallery {root.name} is new; say of which pictures to make it, with --data.")
    pictures = pictures or open_pictures(spec)
    return pictures, pictures.listing(), spec


def _trial_s(pictures: Pictures, unknown: pa.Table, encoder: Encoder) -> float:
    """Seconds a picture, of some spread over those to be read."""
    places = unknown["at"].to_numpy()[np.linspace(0, len(unknown) - 1, min(TRIED, len(unknown))).astype(int)]

    def items() -> Iterator[Item]:
        for at in places.tolist():
            with suppress(ImageError):
                yield Item(at, "", None, None, partial(pictures.read, at, pictures.content(at)))

    began = time.monotonic()
    for _ in encoder.embed(items()):
        pass
    return (time.monotonic() - began) / max(1, len(places))


def _disk_bytes(total: int, new: int, width: int) -> int:
    """New parts, and the whole next state beside the old one."""
    index = width + 16 if total > EXACT_UP_TO else 0
    return new * (2 * width + THUMBNAIL_AND_NAMES_BYTES) + total * (2 * width + 200 + index)


def _ram_bytes(total: int, width: int) -> int:
    index = total * (width + 16) + 160 * math.isqrt(total) * 4 * width if total > EXACT_UP_TO else 0
    return RAM_BYTES + RAM_BYTES_A_PICTURE * total + index


def _disk_free(root: Path) -> int:
    return shutil.disk_usage(next(folder for folder in root.parents if folder.is_dir())).free


def _too_little(what: str, needed: int, free: int) -> str:
    if needed <= free:
        return ""
    gb = [f"{size / 1e9:.1f} GB" for size in (needed, free)]
    return f"This takes some {gb[0]} of {what} and {gb[1]} are free; make room, or choose fewer pictures."


@contextmanager
def _told_when_full(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as reason:
        if reason.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"The disk is full. What is embedded of gallery {name} stays; make room and start the same again."
            ) from None
        words = reason.strerror or "its folder cannot be used"
        raise DataError(f"Gallery {name} cannot be written: {words}. Check the disk.") from None
