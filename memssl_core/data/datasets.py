"""The one door for data sets: a list of named pictures, read one by one. Folders, tables and the drawn gallery are
here, tar shards in `shards.py`, sets of the Hub in `hub_data.py`; `streams.py` reads the same sources in order."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from memssl_core.data.images import decode_image, picture_suffixes, printable, read_file
from memssl_core.errors import DataError, ImageError

FORMS = (
    "a folder of pictures, a folder of class folders, parquet:FILE, wds:SHARDS, hf:OWNER/NAME[/CONFIG][:SPLIT] "
    "or drawn:SEED:COUNT[:SIZE]"
)
MAX_SHARED_BYTES = 2**30  # of drawn pictures kept for all workers
MAX_DRAWN, MAX_DRAWN_SIDE_PX = 1_000_000, 1_024


@dataclass(frozen=True)
class Images:
    """Pictures with their names and, where known, their classes. A picture's `image_id` is its position here.

    `labels` is int64 [len], an index into `class_names` or -1 for unknown; None when no picture has a class.
    It can be pickled, so that every process of a data loader may have it.
    """

    spec: str
    uris: tuple[str, ...]
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    reader: Callable[[int], Image.Image]
    notes: tuple[str, ...] = ()
    """what had to be left out of the list, a sentence each"""

    def __len__(self) -> int:
        return len(self.uris)

    def read(self, image_id: int) -> Image.Image:
        """The picture as `decode_image` gives it. Raises ImageError, with its uri, when it cannot be read."""
        try:
            return self.reader(image_id)
        except ImageError as problem:
            raise ImageError(f"{self.uris[image_id]}: {problem}") from None

    def label(self, image_id: int) -> int | None:
        known = self.labels is not None and self.labels[image_id] >= 0
        return int(self.labels[image_id]) if known else None  # type: ignore[index]

    def class_name(self, image_id: int) -> str | None:
        label = self.label(image_id)
        return None if label is None else self.class_names[label]


def open_images(spec: str) -> Images:
    """List the pictures a data source names; none is decoded yet.

    spec:
        `DIR`: pictures in it and below, in the order of their relative paths as text. It is a class folder when every
            picture lies exactly one folder down and at least two folders hold some; their names are the classes.
            Hidden files and folders are passed over; links are followed, each folder once.
        `parquet:FILE`, `FILE.parquet`: rows in order. Column `image` holds the file's bytes, or a struct with `bytes`
            and maybe `path`; `class_name`, else `label` (negative: unknown), gives the class if present. Where
            `datasets` wrote the file, its note of the picture column and of the names of the labels is followed.
        `wds:PATTERN`: webdataset tar shards, see `shards.py`.
        `hf:OWNER/NAME[/CONFIG][:SPLIT]`: a data set of the Hub, downloaded; see `hub_data.py`.
        `drawn:SEED:COUNT[:SIZE]`: the first COUNT pictures of the drawn gallery SEED, 96 px unless said.
        `A+B`: one after the other, classes of equal name being one.
    Raises: DataError when there is no such source or it holds no picture.
    """
    parts = parts_of(spec)
    return _open_one(spec) if len(parts) == 1 else _concatenated(spec, [_open_one(part) for part in parts])


def parts_of(spec: str) -> list[str]:
    """The sources that `A+B` joins; the spec itself when a file or folder of that name exists."""
    return [spec] if os.path.exists(spec) or "+" not in spec else [part.strip() for part in spec.split("+")]


def _open_one(spec: str) -> Images:
    scheme, _, rest = spec.partition(":")
    if scheme == "drawn":
        return _open_drawn(spec)
    if scheme == "wds":
        from memssl_core.data.shards import open_shards

        return open_shards(spec)
    if scheme == "hf":
        from memssl_core.data.hub_data import open_hub_images

        return open_hub_images(spec)
    path = Path(os.path.expanduser(rest if scheme == "parquet" else spec))
    if not spec or not os.path.exists(path):
        raise DataError(
            f"{printable(spec)!r}: there is no such folder or file. Give {FORMS}, or several joined by '+'."
        )
    if scheme == "parquet" or path.suffix.lower() == ".parquet":
        return _open_parquet(spec, path)
    if not path.is_dir():
        raise DataError(f"{printable(spec)} is a file. Give the folder that holds it, or {FORMS}.")
    return _open_folder(spec, path)


def ranked(classes: Sequence[Any]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels int64 (-1 where the class is None) and the sorted names they index; (None, ()) if no class is known."""
    names = sorted({name for name in classes if name is not None})
    rank = {name: label for label, name in enumerate(names)}
    labels = np.array([-1 if name is None else rank[name] for name in classes], np.int64)
    return (labels if names else None), tuple(map(str, names))


def classes_of(values: Sequence[Any], names: Sequence[str] = ()) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """What a column of labels tells: positions in `names` if there are any, else numbers or words that are classes."""
    are_numbers = all(isinstance(value, int | None) for value in values)
    if names and are_numbers:
        known = [-1 if value is None or not 0 <= value < len(names) else value for value in values]
        return np.array(known, np.int64), tuple(map(printable, names))
    if are_numbers:
        return ranked([None if value is None or value < 0 else value for value in values])
    return ranked([None if value is None else printable(str(value)) for value in values])


def _concatenated(spec: str, parts: list[Images]) -> Images:
    class_names = sorted({name for part in parts for name in part.class_names})
    rank: dict[str | None, int] = {name: label for label, name in enumerate(class_names)}
    labels = [rank.get(part.class_name(i), -1) for part in parts for i in range(len(part))]
    uris = tuple(uri for part in parts for uri in part.uris)
    reader = partial(_read_part, tuple(parts), np.cumsum([len(part) for part in parts]))
    notes = tuple(note for part in parts for note in part.notes)
    known = np.array(labels, np.int64) if class_names else None
    return Images(spec, uris, known, tuple(class_names), reader, notes)


def _read_part(parts: tuple[Images, ...], ends: np.ndarray, image_id: int) -> Image.Image:
    part = int(np.searchsorted(ends, image_id, side="right"))
    return parts[part].reader(image_id - int(ends[part]) + len(parts[part]))


# Folders


def _open_folder(spec: str, folder: Path) -> Images:
    suffixes = picture_suffixes()
    names = sorted(name for name in _files_below(folder) if os.path.splitext(name)[1].lower() in suffixes)
    if not names:
        raise DataError(
            f"{printable(spec)}: no pictures in this folder. It needs files ending in {', '.join(sorted(suffixes))}."
        )
    folders = [name.split("/")[0] for name in names]
    has_classes = all(name.count("/") == 1 for name in names) and len(set(folders)) > 1
    labels, class_names = ranked([printable(name) for name in folders] if has_classes else [])
    uris = tuple(map(printable, names))
    return Images(spec, uris, labels, class_names, partial(_read_file, str(folder.absolute()), tuple(names)))


def _files_below(root: Path) -> Iterator[str]:
    """Relative posix paths of all files that are not hidden."""
    seen = {os.path.realpath(root)}
    for here, folders, files in os.walk(root, followlinks=True):
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(here, name))
            if name.startswith(".") or real in seen:
                folders.remove(name)
            seen.add(real)
        folders.sort()
        inside = Path(here).relative_to(root).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        yield from (prefix + name for name in files if not name.startswith("."))


def _read_file(folder: str, names: tuple[str, ...], image_id: int) -> Image.Image:
    return decode_image(read_file(Path(folder, names[image_id])))


# Tables


def _open_parquet(spec: str, path: Path) -> Images:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        features = _features(schema.metadata)
        image_column = _first(schema.names, "image", *(n for n, told in features.items() if told["_type"] == "Image"))
        image: Any = schema.field(image_column).type if image_column else pa.null()
        fields = {field.name: field.type for field in image} if pa.types.is_struct(image) else {"bytes": image}
        if image_column is None or fields.get("bytes") not in (pa.binary(), pa.large_binary()):
            raise DataError(
                f"{printable(spec)} has no column of pictures. It needs a column 'image' of binary, or of a struct "
                f"with 'bytes' and 'path'; its columns are {', '.join(map(printable, schema.names))}."
            )
        names = {name: told["names"] for name, told in features.items() if told["_type"] == "ClassLabel"}
        class_column = _first(schema.names, "class_name", "label", *names)
        classes = pq.read_table(path, columns=[class_column])[0].to_pylist() if class_column else []
        rows = _Rows(str(path.absolute()), image_column)
        column = rows.column  # loaded now, for workers forked from this process to share
    except (pa.ArrowException, OSError):
        raise DataError(
            f"{printable(spec)} is not a Parquet file that can be read. Copy or download it again."
        ) from None
    if not len(column):
        raise DataError(f"{printable(spec)} has no rows. Give a table with a picture in each row.")
    chunks = column.chunks if "path" in fields else []
    paths = [path for chunk in chunks for path in chunk.field("path").to_pylist()] or [None] * len(column)
    uris = tuple(printable(str(name)) if name else f"row {row}" for row, name in enumerate(paths))
    return Images(spec, uris, *classes_of(classes, names.get(class_column or "", ())), rows)


def _first(present: Sequence[str], *wanted: str) -> str | None:
    return next((name for name in wanted if name in present), None)


def _features(metadata: dict[bytes, bytes] | None) -> dict[str, dict[str, Any]]:
    """What `datasets` noted about the columns in a file's schema: of a ClassLabel the `names`, all of them text."""
    try:
        told = json.loads((metadata or {})[b"huggingface"])["info"]["features"].items()
        return {
            name: {"_type": feature["_type"], "names": list(map(str, feature.get("names") or ()))}
            for name, feature in told
            if isinstance(feature, dict) and "_type" in feature
        }
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


@dataclass(frozen=True)
class _Rows:
    """The encoded pictures of a Parquet file; left out of a pickle and loaded again by whoever unpickles it."""

    path: str
    image_column: str

    @cached_property
    def column(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        file = pq.ParquetFile(self.path, memory_map=True)
        # group by group: a struct column of more than 2 GB cannot be read in one piece
        groups = [file.read_row_group(group, columns=[self.image_column])[0] for group in range(file.num_row_groups)]
        kind = file.schema_arrow.field(self.image_column).type
        return pa.chunked_array([chunk for group in groups for chunk in group.chunks], kind)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "image_column": self.image_column}

    def __call__(self, image_id: int) -> Image.Image:
        cell = self.column[image_id].as_py()
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if data is None:
            raise ImageError("This row holds no picture. Remove it from the table.")
        return decode_image(data)


# The drawn gallery


def _open_drawn(spec: str) -> Images:
    from memssl_core.data.drawn import CLASS_NAMES, labels

    parts = re.fullmatch(r"drawn:(\d{1,18}):(\d{1,9})(?::(\d{1,9}))?", spec, re.ASCII)
    seed, count, size = (int(number or 96) for number in parts.groups()) if parts else (0, 0, 0)
    if not (0 < count <= MAX_DRAWN and 16 <= size <= MAX_DRAWN_SIDE_PX):
        raise DataError(
            f"{printable(spec)!r} does not name drawn pictures. Write drawn:SEED:COUNT or drawn:SEED:COUNT:SIZE, "
            f"COUNT up to {MAX_DRAWN} and SIZE from 16 to {MAX_DRAWN_SIDE_PX}, for example drawn:7:2000:96."
        )
    uris = tuple(f"drawn:{seed}:{index}" for index in range(count))
    return Images(spec, uris, labels(seed, count), CLASS_NAMES, _Drawn(seed, size, *_shared_pixels(count, size)))


def _shared_pixels(count: int, size: int) -> tuple[Any, Any]:
    """Tensors in shared memory, uint8 [count,size,size,3] and bool [count]; (None, None) where they do not fit."""
    import torch

    if count * size * size * 3 > MAX_SHARED_BYTES:
        return None, None
    try:
        # as torch's own collate does; share_memory_() would write all of it once (8 times slower for 20 000 of 96 px)
        storage = torch.UntypedStorage._new_shared(count * size * size * 3)
        pixels = torch.empty(0, dtype=torch.uint8).set_(storage).view(count, size, size, 3)
        return pixels, torch.zeros(count, dtype=torch.bool).share_memory_()
    except RuntimeError:  # a small /dev/shm, as in a container
        return None, None


@dataclass(frozen=True)
class _Drawn:
    """Draws a picture when it is first asked for; all processes share what has been drawn."""

    seed: int
    size: int
    pixels: Any
    is_drawn: Any

    def __call__(self, image_id: int) -> Image.Image:
        from memssl_core.data.drawn import draw

        if self.pixels is None:
            return decode_image(draw(self.seed, image_id, self.size).image)
        if not self.is_drawn[image_id]:
            self.pixels[image_id].numpy()[:] = draw(self.seed, image_id, self.size).image
            self.is_drawn[image_id] = True
        return decode_image(self.pixels[image_id].numpy())
