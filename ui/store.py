"""What the server remembers for its visitors: pictures and computed results, bounded by bytes."""

from __future__ import annotations

import hashlib
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
    import numpy as np
    from PIL import Image

    from memssl_core.data.pairs import KnownPair

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

    def drop_those(self, are_gone: Callable[[Value], bool]) -> None:
        with self._lock:
            for key in [key for key, value in self._values.items() if are_gone(value)]:
                del self._values[key]


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


@dataclass(frozen=True, eq=False)
class Two:
    """Two pictures to compare; of a pair that was made of one, whose geometry is known, also that."""

    a: Picture
    b: Picture
    homography: np.ndarray | None = None
    """float64 [3, 3], px of a to px of b"""
    origin: str = ""
    """the handle of the picture they were made of"""

    @property
    def nbytes(self) -> int:
        return self.a.nbytes + self.b.nbytes


class Pictures:
    """Examples, open to all, and uploads, each under a handle that cannot be guessed."""

    def __init__(self, max_bytes: int = 512_000_000, max_made_bytes: int = 96_000_000) -> None:
        self._uploads: Store[Picture] = Store(max_bytes, lambda picture: picture.nbytes)
        self._made: Store[Two] = Store(max_made_bytes, lambda two: two.nbytes)
        self._examples: dict[str, Picture] = {}

    def add(self, data: bytes, name: str) -> Picture:
        """Decode an uploaded file. ImageError says in one sentence why it cannot be read."""
        picture = _decode(secrets.token_urlsafe(16), data, name)
        self._uploads.put(picture.handle, picture)
        return picture

    def get(self, handle: str) -> Picture | None:
        """The picture behind a handle; None if there is none (any more)."""
        if handle in examples():
            if handle not in self._examples:
                example = examples()[handle]
                self._examples[handle] = _decode(handle, example.read(), example.name)
            return self._examples[handle]
        key, _, side = handle.rpartition(".")
        if side in ("a", "b") and (two := self._made.get(key)):
            return getattr(two, side)
        return self._uploads.get(handle)

    def of_visit(self, handle: str, visit: tuple[str, ...]) -> Picture:
        """The picture behind a handle that this visitor may use: an example or an upload of the visit."""
        picture = self.get(handle) if handle in examples() or handle in visit else None
        if picture is None:
            raise ImageError("This picture is no longer kept here; add it again.")
        return picture

    def made(self, origin: Picture, kind: str, make: Callable[[Image.Image], KnownPair], names: tuple[str, str]) -> Two:
        """The pair that `make` makes of a picture, under handles as hard to guess as that of its origin.

        `kind` tells pairs of one origin apart; `names`, what the two are in words.
        """
        key = key_of("made", origin.handle, kind)
        two = self._made.get(key)
        if two is None:
            known = make(decode_image(origin.data))
            sides = zip("ab", (known.a, known.b), names, strict=True)
            a, b = (_of_image(f"{key}.{side}", image, f"{origin.name}, {words}") for side, image, words in sides)
            two = Two(a, b, known.homography, origin.handle)
            self._made.put(key, two)
        return two

    def drop(self, visit: tuple[str, ...]) -> None:
        """Forget the pictures of a visit that has ended, and what was made of them."""
        self._uploads.drop(visit)
        self._made.drop_those(lambda two: two.origin in visit)


def key_of(*parts: object) -> str:
    """A key for a result: the same parts give the same key, and an upload's handle keeps it unguessable."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _of_image(handle: str, image: Image.Image, name: str) -> Picture:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return _decode(handle, file.getvalue(), name)


def _decode(handle: str, data: bytes, name: str) -> Picture:
    image = decode_image(data)
    told = {"width": image.width, "height": image.height, "format": image.info["format"], "note": image.info["note"]}
    if max(image.size) > SHOWN_PX:
        image.thumbnail((SHOWN_PX, SHOWN_PX), reducing_gap=2.0)
    return Picture(handle=handle, name=name, data=data, shown=image, **told)
