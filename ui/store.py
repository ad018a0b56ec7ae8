"""What the server remembers for its visitors: pictures and computed results, bounded by bytes."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Generic, TypeVar

import cachetools

from memssl_core.data.images import decode_image
from memssl_core.errors import ImageError
from ui.examples import examples

if TYPE_CHECKING:
    from PIL import Image

Value = TypeVar("Value")
MAX_VISIT_PICTURES = 12


class Store(Generic[Value]):
    """Values by key; the least recently used go when all together pass `max_bytes`. Safe across threads."""

    def __init__(self, max_bytes: int, size_of: Callable[[Value], int]) -> None:
        self._values: cachetools.LRUCache[str, Value] = cachetools.LRUCache(max_bytes, getsizeof=size_of)
        self._lock = threading.Lock()

    def put(self, key: str, value: Value) -> None:
        with self._lock:
            self._values[key] = value

    def get(self, key: str) -> Value | None:
        with self._lock:
            return self._values.get(key)

    def drop(self, keys: Iterable[str]) -> None:
        with self._lock:
            for key in keys:
                self._values.pop(key, None)


@dataclass(frozen=True)
class Picture:
    """A decoded picture: upright RGB `image`, the visitor's `name` of the file, its `format` as found ("JPEG")."""

    handle: str
    name: str
    image: Image.Image
    format: str

    @property
    def note(self) -> str:
        return self.image.info["note"]

    @property
    def nbytes(self) -> int:
        return self.image.width * self.image.height * 3

    def facts(self) -> dict:
        width, height = self.image.size
        return {
            "handle": self.handle,
            "name": self.name,
            "format": self.format,
            "note": self.note,
            "width": width,
            "height": height,
        }


class Pictures:
    """Examples, open to all, and uploads, each under a handle that cannot be guessed."""

    def __init__(self, max_bytes: int = 512_000_000) -> None:
        self._uploads: Store[Picture] = Store(max_bytes, lambda picture: picture.nbytes)
        self._examples: dict[str, Picture] = {}

    def add(self, file: BinaryIO, name: str) -> Picture:
        """Decode an uploaded file. ImageError says in one sentence why it cannot be read."""
        picture = _decode(secrets.token_urlsafe(16), file, name)
        self._uploads.put(picture.handle, picture)
        return picture

    def get(self, handle: str) -> Picture | None:
        """The picture behind a handle; None if there is none (any more)."""
        if handle in examples():
            if handle not in self._examples:
                example = examples()[handle]
                self._examples[handle] = _decode(handle, example.read(), example.name)
            return self._examples[handle]
        return self._uploads.get(handle)

    def of_visit(self, handle: str, visit: tuple[str, ...]) -> Picture:
        """The picture behind a handle that this visitor may use: an example or an upload of the visit."""
        picture = self.get(handle) if handle in examples() or handle in visit else None
        if picture is None:
            raise ImageError("This picture is no longer kept here; add it again.")
        return picture

    def drop(self, visit: tuple[str, ...]) -> None:
        """Forget the pictures of a visit that has ended."""
        self._uploads.drop(visit)


def _decode(handle: str, source: bytes | BinaryIO, name: str) -> Picture:
    image = decode_image(source)
    return Picture(handle, name, image, image.info["format"])
