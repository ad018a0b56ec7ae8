"""Data sources read in order, in parts: the pictures of any source, split between processes and workers."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from PIL import Image

from memssl_core.data.datasets import Images, open_images, parts_of


@dataclass(frozen=True)
class Item:
    """One picture of a stream, not yet decoded."""

    image_id: int
    uri: str
    label: int | None
    class_name: str | None
    read: Callable[[], Image.Image] = field(repr=False)
    """the picture as `decode_image` gives it; raises ImageError, with the uri, when it cannot be read"""


@dataclass(frozen=True)
class Stream:
    """The pictures of a source in order. It can be pickled.

    `walk(first_id, part, parts)` yields the items of a part, the source's first picture having `first_id`, and returns
    the id after the source's last one; `items` is what callers use.
    """

    spec: str
    count: int | None
    """how many pictures there are; of a streamed `hf:` set what the Hub declares, None if it does not"""
    class_names: tuple[str, ...] | None
    """what `Item.label` indexes; None where only reading everything would tell, labels then being the source's own"""
    walk: Callable[[int, int, int], Generator[Item, None, int]] = field(repr=False)
    notes: tuple[str, ...] = ()

    def items(self, part: int = 0, parts: int = 1) -> Iterator[Item]:
        """The pictures of one part; all parts together are every picture once, with the same ids for any `parts`."""
        if not 0 <= part < parts:
            raise ValueError(f"part {part} of {parts}")
        return self.walk(0, part, parts)


def open_stream(spec: str) -> Stream:
    """Read what `open_images` knows, with its ids, uris and class names; an `hf:` set need not be downloaded first.

    A part is one run of neighbouring pictures, so that reading stays sequential; only of an `hf:` set that is not made
    of Parquet files, whose length nobody knows, every part reads everything and keeps each `parts`-th picture.

    Raises: DataError as `open_images` does, and while streaming when the Hub cannot be reached any more.
    """
    parts = parts_of(spec)
    if not any(part.startswith("hf:") for part in parts):
        return _listed(open_images(spec))
    streams = tuple(_streamed(part) if part.startswith("hf:") else _listed(open_images(part)) for part in parts)
    return streams[0] if len(streams) == 1 else _joined(spec, streams)


def items_of(images: Images, rows: Iterable[int], first_id: int = 0) -> Iterator[Item]:
    """Chosen pictures of a list, in the order of `rows`; the list's first picture has the id `first_id`."""
    return (
        Item(first_id + i, images.uris[i], images.label(i), images.class_name(i), partial(images.read, i)) for i in rows
    )


def share(count: int, part: int, parts: int) -> range:
    """The positions of one part: neighbours, the parts differing by one at most."""
    return range(count * part // parts, count * (part + 1) // parts)


def _listed(images: Images) -> Stream:
    return Stream(images.spec, len(images), images.class_names, partial(_walk_listed, images), images.notes)


def _walk_listed(images: Images, first_id: int, part: int, parts: int) -> Generator[Item, None, int]:
    yield from items_of(images, share(len(images), part, parts), first_id)
    return first_id + len(images)


def _streamed(spec: str) -> Stream:
    from memssl_core.data.hub_data import open_hub_rows

    rows = open_hub_rows(spec)
    if isinstance(rows, Images):
        return _listed(rows)
    return Stream(spec, rows.count, rows.class_names, rows.walk)


def _joined(spec: str, streams: tuple[Stream, ...]) -> Stream:
    counts = [stream.count for stream in streams if stream.count is not None]
    known = [stream.class_names for stream in streams if stream.class_names is not None]
    names = sorted({name for class_names in known for name in class_names}) if len(known) == len(streams) else None
    return Stream(
        spec,
        sum(counts) if len(counts) == len(streams) else None,
        None if names is None else tuple(names),
        partial(_walk_joined, streams, {name: label for label, name in enumerate(names or ())}),
        tuple(note for stream in streams for note in stream.notes),
    )


def _walk_joined(
    streams: tuple[Stream, ...], labels: dict[str | None, int], first_id: int, part: int, parts: int
) -> Generator[Item, None, int]:
    for stream in streams:
        walk = stream.walk(first_id, part, parts)
        try:
            while True:
                item = next(walk)
                yield replace(item, label=labels.get(item.class_name))
        except StopIteration as end:
            first_id = end.value
    return first_id
