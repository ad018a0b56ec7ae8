"""What the server remembers for its visitors: pictures and computed results, bounded by bytes."""

from __future__ import annotations

import io
import secrets
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import cachetools

from memssl_core.data.images import decode_image
from memssl_core.errors import ImageError
from ui.examples import examples

if TYPE_CHECKING:
    from PIL import Image

Value = TypeVar("Value")
MAX_VISIT_PICTURES = 12
SHOWN_PX = 2048


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


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture that can be read: the file as it came, for the model, and a decoded copy for the page."""

    handle: str
    name: str
    """the visitor's own name of the file"""
    data: bytes
    shown: Image.Image
    """upright RGB, its longest side at most SHOWN_PX"""
    width: int
    """of the upright original, px"""
    height: int
    format: str
    """of the file as found: JPEG, PNG, …"""
    note: str
    """what decoding did, in words"""

    @property
    def nbytes(self) -> int:
        return len(self.data) + self.shown.width * self.shown.height * 3

    def facts(self) -> dict:
        return {name: getattr(self, name) for name in ("handle", "name", "width", "height", "format", "note")}


class Pictures:
    """Examples, open to all, and uploads, each under a handle that cannot be guessed."""

    def __init__(self, max_bytes: int = 512_000_000) -> None:
        self._uploads: Store[Picture] = Store(max_bytes, lambda picture: picture.nbytes)
        self._examples: dict[str, Picture] = {}

    def add(self, data: bytes, name: str) -> Picture:
        """Decode an uploaded file. ImageError says in one sentence why it cannot be read."""
        picture = _decode(secrets.token_urlsafe(16), data, name)
        self._uploads.put(picture.handle, picture)
        return picture

    def make(self, handle: str, image: Image.Image, name: str) -> Picture:
        """A picture that was made here, kept like an upload under a handle as hard to guess as that of its origin."""
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=1)
        picture = _decode(handle, file.getvalue(), name)
        self._uploads.put(handle, picture)
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


def _decode(handle: str, data: bytes, name: str) -> Picture:
    image = decode_image(data)
    told = {"width": image.width, "height": image.height, "format": image.info["format"], "note": image.info["note"]}
    if max(image.size) > SHOWN_PX:
        image.thumbnail((SHOWN_PX, SHOWN_PX), reducing_gap=2.0)
    return Picture(handle=handle, name=name, data=data, shown=image, **told)
