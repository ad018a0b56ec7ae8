"""What a gallery is made of: the pictures of a folder, of a zip, or of any source `open_images` knows."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import weakref
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from PIL import Image

from analysis.zips import member_path, members, open_zip, read_member
from memssl_core.data.datasets import Images, open_images, parts_of
from memssl_core.data.images import decode_image, picture_suffixes, printable, read_file
from memssl_core.errors import DataError, ImageError

MAX_PICTURES = 5_000_000
LISTED = pa.schema(
    [
        ("at", pa.int64()),
        ("path", pa.string()),
        ("size", pa.int64()),
        ("stamp", pa.int64()),
        ("class_name", pa.string()),
    ]
)
LINK = "It is a link that leads out of the folder, or nowhere, so it was not followed."
NO_TEXT = "Its name is not valid text (UTF-8). Rename it."
NO_FILE = "It is no ordinary file."
UNLISTED = "This folder cannot be read. Check that it may be."
CHANGED = "It changed while it was read. Run the same again."
ABSENT = "This picture is not there any more; update the gallery."


class Changed(ImageError):
    """A file that is not the one that was listed any more; the next run sees the new one."""


@dataclass(frozen=True, eq=False)
class Listing:
    """What a source holds now; nothing is decoded yet."""

    table: pa.Table
    """LISTED: `at` is the position in the source, `path` relative with "/", each once. Two pictures with the same path,
    size and stamp are the same; the stamp is the time of the last change in ns, the checksum in a zip."""
    skipped: list[tuple[str, str]]
    """path and reason, a sentence, of what looks like a picture but will not be read"""


class Pictures(Protocol):
    """A source of pictures."""

    def listing(self) -> Listing: ...

    def content(self, at: int) -> str:
        """32 hexadecimal digits that name what a picture holds. Raises ImageError if it cannot be read."""
        ...

    def read(self, at: int, content: str) -> Image.Image:
        """The picture as `decode_image` gives it. Raises ImageError; Changed if it holds something else by now."""
        ...

    def named(self, path: str, content: str) -> Image.Image:
        """As `read`, by path; no listing is needed."""
        ...


def open_pictures(spec: str) -> Pictures:
    """A folder and all below it, a `.zip`, or what else `open_images` knows. Raises: DataError."""
    path = Path(spec).expanduser()
    if spec and path.is_dir():
        return FolderPictures(path.resolve())
    if path.suffix.lower() == ".zip" and path.is_file():
        return ZipPictures(path)
    parts = parts_of(spec)
    if len(parts) > 1 and any(Path(part).expanduser().exists() for part in parts):
        raise DataError("A gallery is made of one folder or archive. Give their common folder, or make several.")
    return ListedPictures(open_images(spec))


def absolute(spec: str) -> str:
    """The source, of pictures or of a model, in words that mean the same wherever the program runs."""
    scheme, colon, rest = spec.partition(":")
    if colon and scheme in ("parquet", "bundle"):
        return f"{scheme}:{os.path.abspath(os.path.expanduser(rest))}"
    path = os.path.expanduser(spec)
    return os.path.abspath(path) if os.path.exists(path) else spec


def content_of(data: bytes) -> str:
    """The name of a file's bytes: BLAKE2b of 16 bytes, hexadecimal."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


class FolderPictures:
    """Files with a picture's ending in a folder and below. Hidden ones are passed over; no link is followed."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self._paths = pa.chunked_array([], pa.string())

    def listing(self) -> Listing:
        paths: list[str] = []
        sizes, stamps, skipped = array("q"), array("q"), []
        for path, found in _walk(self.root, picture_suffixes()):
            if isinstance(found, str):
                skipped.append((path, found))
                continue
            paths.append(path)
            sizes.append(found.st_size)
            stamps.append(found.st_mtime_ns)
        if not paths:
            raise DataError(_none("folder", skipped))
        table = _listed(paths, np.array(sizes), np.array(stamps), _folder_classes(paths))
        self._paths = table["path"]
        return Listing(table, skipped)

    def content(self, at: int) -> str:
        return content_of(self._bytes(self._paths[at].as_py()))

    def read(self, at: int, content: str) -> Image.Image:
        return _decoded(self._bytes(self._paths[at].as_py()), content)

    def named(self, path: str, content: str) -> Image.Image:
        if not os.path.lexists(os.path.join(self.root, path)):
            raise ImageError(ABSENT)
        return _decoded(self._bytes(path), content)

    def _bytes(self, path: str) -> bytes:
        whole = os.path.join(self.root, path)
        if os.path.realpath(whole) != os.path.normpath(whole):
            raise ImageError(LINK)
        return read_file(Path(whole))


class ZipPictures:
    """The pictures of a zip archive, each read into memory when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._archive = open_zip(path)
        weakref.finalize(self, self._archive.fp.close)  # type: ignore[union-attr]
        self._members, self._bad = members(self._archive, picture_suffixes())

    def listing(self) -> Listing:
        if not self._members:
            raise DataError(_none("archive", self._bad))
        paths = [member_path(member) for member in self._members]
        tops = {path.partition("/")[0] for path in paths}
        wrapped = len(tops) == 1 and all("/" in path for path in paths)  # all in one folder, as archives often are
        classes = _folder_classes([path.partition("/")[2] for path in paths] if wrapped else paths)
        sizes = np.array([member.file_size for member in self._members], np.int64)
        sums = np.array([member.CRC for member in self._members], np.int64)
        return Listing(_listed(paths, sizes, sums, classes), self._bad)

    def content(self, at: int) -> str:
        return content_of(read_member(self._archive, self._members[at]))

    def read(self, at: int, content: str) -> Image.Image:
        return _decoded(read_member(self._archive, self._members[at]), content)

    def named(self, path: str, content: str) -> Image.Image:
        return self.read(_position([member_path(member) for member in self._members], path), content)


class ListedPictures:
    """Pictures of a table, of tar shards, of a Hub data set or drawn ones: their source and name is their content."""

    def __init__(self, images: Images) -> None:
        if len(images) > MAX_PICTURES:
            raise DataError(f"A gallery holds at most {MAX_PICTURES:,} pictures; give fewer.")
        self.images = images
        counts = Counter(images.uris)
        self._paths = [uri if counts[uri] == 1 else f"{uri} ({at})" for at, uri in enumerate(images.uris)]
        self._state = content_of(_identity(images.spec).encode())

    def listing(self) -> Listing:
        count = len(self.images)
        stamp = int(self._state[:15], 16)
        classes = [self.images.class_name(at) for at in range(count)]
        skipped = [(self.images.spec, note) for note in self.images.notes]
        return Listing(_listed(self._paths, np.zeros(count, np.int64), np.full(count, stamp), classes), skipped)

    def content(self, at: int) -> str:
        return content_of(f"{self._state} {self._paths[at]}".encode(errors="replace"))

    def read(self, at: int, content: str) -> Image.Image:
        return self.images.reader(at)

    def named(self, path: str, content: str) -> Image.Image:
        return self.read(_position(self._paths, path), content)


def _none(kind: str, skipped: Sequence[tuple[str, str]]) -> str:
    if not skipped:
        return f"There are no pictures in this {kind}; choose another one."
    (path, reason), more = skipped[0], f" (and {len(skipped) - 1} more)" if skipped[1:] else ""
    return f"None of the pictures in this {kind} can be read. {printable(path)}{more}: {reason}"


def _position(paths: Sequence[str], path: str) -> int:
    try:
        return paths.index(path)
    except ValueError:
        raise ImageError(ABSENT) from None


def _walk(root: str, suffixes: frozenset[str]) -> Iterator[tuple[str, os.stat_result | str]]:
    """Relative path and state of each picture file, or the reason why it is not read."""
    folders = [""]
    while folders:
        inside = folders.pop()
        try:
            with os.scandir(os.path.join(root, inside)) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            yield printable(inside) or ".", UNLISTED
            continue
        for entry in found:
            path = f"{inside}/{entry.name}" if inside else entry.name
            if entry.name.startswith("."):
                continue
            try:
                is_picture = os.path.splitext(entry.name)[1].lower() in suffixes
                if entry.is_symlink():
                    if (is_picture or entry.is_dir()) and not _leads_inside(root, path):
                        yield printable(path), LINK
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif is_picture:
                    yield _told(path, entry.stat(follow_symlinks=False))
            except OSError:
                yield printable(path), NO_FILE


def _told(path: str, found: os.stat_result) -> tuple[str, os.stat_result | str]:
    try:
        path.encode()
    except UnicodeEncodeError:
        return printable(path), NO_TEXT
    return path, found if stat.S_ISREG(found.st_mode) else NO_FILE


def _leads_inside(root: str, path: str) -> bool:
    real = Path(os.path.realpath(os.path.join(root, path)))
    return real.is_relative_to(root) and real.exists()


def _folder_classes(paths: Sequence[str]) -> list[str | None]:
    """As `open_images`: every picture exactly one folder down, and at least two folders."""
    folders = [path.partition("/")[0] for path in paths]
    has_classes = all(path.count("/") == 1 for path in paths) and len({*folders}) > 1
    return [printable(folder) for folder in folders] if has_classes else [None] * len(paths)


def _listed(paths: Sequence[str], sizes: np.ndarray, stamps: np.ndarray, classes: Sequence[str | None]) -> pa.Table:
    if len(paths) > MAX_PICTURES:
        raise DataError(f"A gallery holds at most {MAX_PICTURES:,} pictures; choose a smaller source.")
    columns = [np.arange(len(paths)), pa.array(paths, pa.string()), sizes, stamps, pa.array(classes, pa.string())]
    return pa.table(dict(zip(LISTED.names, columns, strict=True)), schema=LISTED)


def _decoded(data: bytes, content: str) -> Image.Image:
    if content_of(data) != content:
        raise Changed(CHANGED)
    return decode_image(data)


def _identity(spec: str) -> str:
    """What a source's pictures depend on besides their names; of drawn ones not how many there are."""
    if drawn := re.fullmatch(r"drawn:(\d+):\d+(?::(\d+))?", spec):
        return f"drawn {drawn[1]} {drawn[2] or 96}"
    path = Path(spec.removeprefix("parquet:")).expanduser()
    if path.is_file():
        told = path.stat()
        return f"{path.resolve()} {told.st_size} {told.st_mtime_ns}"
    return spec
