"""Where is searched, and with what: pictures of a visit, rows of galleries, slots of a memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from memssl_core.data.images import decode_image
from memssl_core.errors import ModelError
from ui.galleries import GalleryShelf
from ui.shelves import Space
from ui.slots import shown_uri

if TYPE_CHECKING:
    from PIL import Image

    from analysis import Workbench
    from analysis.search import MemoryRows
    from ui.context import Context, Visit
    from ui.store import Picture

MAX_ID = 1 << 40
LESS_WEIGHT = 0.5


class Typed(BaseModel):
    """What a page sends, taken as it is: a text is no number."""

    model_config = ConfigDict(strict=True)


class Place(Typed):
    kind: Literal["memory", "gallery"]
    space: Space = "memory"
    name: str = Field("", max_length=80)
    rev: str | None = Field(None, max_length=40)
    """of a gallery, when ids of its rows are named"""


class Query(Typed):
    """A picture of the tray, or the id of a row of a gallery or of a slot of the memory."""

    handle: str | None = Field(None, max_length=200)
    id: int | None = Field(None, ge=0, le=MAX_ID)
    place: Place | None = None
    """of the id, if elsewhere than where is searched"""

    @model_validator(mode="after")
    def _one(self) -> Query:
        if (self.handle is None) == (self.id is None):
            raise ValueError("either handle or id")
        return self


@dataclass(frozen=True)
class MemoryShelf:
    """A model's memory that is searched: its slots by id, their tiles and pictures."""

    context: Context
    handle: str
    searched: MemoryRows
    space: Space
    """in which its vectors lie"""
    place: dict[str, Any]

    rev = ""

    def row(self, id: int) -> int:
        row = int(np.searchsorted(self.searched.slots, id))
        if row == len(self.searched.slots) or self.searched.slots[row] != id:
            raise ModelError(f"Slot {id} holds no picture, so nothing is like it; choose another one.")
        return row

    def name(self, row: int) -> str:
        return f"slot {self.searched.slots[row]}"

    def thumbnail(self, id: int) -> bytes:
        return self.searched.thumbnail(id)

    def picture(self, row: int) -> tuple[Image.Image, bool]:
        """The picture that was kept of the slot, which is never the original."""
        if data := self.searched.thumbnail(int(self.searched.slots[row])):
            return decode_image(data), False
        raise ModelError("No picture was kept of this slot; choose another one.")

    def tiles(self, rows: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
        """Rows for the page, with the addresses of their pictures."""
        found = zip(self.searched.describe(rows), scores.clip(-1, 1).tolist(), strict=True)
        return [self._tile(one, score) for one, score in found]

    def _tile(self, one: dict[str, Any], score: float) -> dict[str, Any]:
        slot, uri = one["id"], shown_uri(one["uri"], self.context.public)
        return {
            "id": slot,
            "score": score,
            "uri": uri,
            "class_name": one["class_name"],
            "width": None,
            "height": None,
            "paths": [],
            "more_paths": 0,
            "image_id": one["image_id"],
            "step": one["step"],
            "thumb": f"api/thumb/{self.handle}/{slot}" if self.searched.has_thumbnail(slot) else None,
            "picture": None,
        }


Shelf = GalleryShelf | MemoryShelf


def shelf_of(context: Context, handle: str, place: Place, *, newest: bool = False) -> Shelf:
    """What is asked about, opened; `newest`, of a gallery the newest state and not that of the place's ids.

    Raises: ModelError if there is none, or its vectors are not this model's.
    """
    workbench = context.workbench(handle)
    if place.kind == "gallery":
        gallery = context.shelves.gallery(place.name, "" if newest else place.rev or "")
        gallery.require(workbench.model.model_hash, asdict(workbench.model.transform))
        return GalleryShelf(context, gallery)
    space = place.space if workbench.model.head else "embedding"
    rows = context.shelves.memory(workbench, place.space)
    return MemoryShelf(context, handle, rows, space, {"kind": "memory", "space": place.space})


@dataclass(frozen=True, eq=False)
class Like:
    """What is searched with: a picture of the visit, or a row of a shelf."""

    name: str
    picture: Picture | None = None
    shelf: Shelf | None = None
    row: int = -1

    def vector(self, context: Context, workbench: Workbench, space: str) -> np.ndarray:
        """float32 [D] or [C] in the given space."""
        if self.shelf is not None:
            known = kept_vector(context, workbench, self.shelf, self.row, space)
            if known is not None:
                return known
            with context.turns.take("decode"):
                image, _ = self.shelf.picture(self.row)
        else:
            assert self.picture is not None
            image = self.picture.data
        with context.turns.take("model"):
            return (workbench.projection if space == "memory" else workbench.embedding)(image)


def kept_vector(context: Context, workbench: Workbench, shelf: Shelf, row: int, space: str) -> np.ndarray | None:
    """The vector of a row in a space; None where it was not kept, so that the picture has to be read."""
    if shelf.space == space:
        return shelf.searched.vectors[row].astype(np.float32)
    memory = workbench.model.memory
    if isinstance(shelf, GalleryShelf) or memory is None or (space == "embedding" and memory.embeddings is None):
        return None
    other = context.shelves.memory(workbench, "memory" if space == "memory" else "embedding")
    (at,) = np.nonzero(other.slots == shelf.searched.slots[row])
    return other.vectors[at[0]] if len(at) else None


def like(context: Context, visit: Visit, handle: str, query: Query, place: Place) -> Like:
    if query.id is None:
        picture = context.pictures.of_visit(str(query.handle), visit)
        return Like(picture.name, picture=picture)
    shelf = shelf_of(context, handle, place)
    row = shelf.row(query.id)
    return Like(shelf.name(row), shelf=shelf, row=row)


def between(
    context: Context, workbench: Workbench, queries: Sequence[Like], less: Sequence[Like], space: str
) -> np.ndarray:
    """One vector for all: between the queries, away from the others."""
    from analysis.search import less_like, mean_of

    asked, others = ([one.vector(context, workbench, space) for one in some] for some in (queries, less))
    return less_like(mean_of(asked) if len(asked) > 1 else asked[0], others, LESS_WEIGHT)
