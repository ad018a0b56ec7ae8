"""Galleries on the page: which there are, and what of their pictures may be seen."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import APIRouter, Request, Response

from memssl_core.data.images import decode_image, printable
from memssl_core.errors import DataError, ImageError, MemsslError, ModelError
from ui.answers import cached, gone
from ui.context import Context, told
from ui.data import plainly, shown, words_of
from ui.jobs import uploads_dir
from ui.messages import spoken
from ui.shelves import revision
from ui.store import SHOWN_PX, key_of
from ui.updates import add_update_routes, readable, standing

if TYPE_CHECKING:
    from PIL import Image

    from analysis import Gallery
    from memssl_core.sources import Model

MAX_PATHS, MAX_SKIPPED, MAX_CLASSES = 5, 200, 500  # told of a picture; of a gallery
JUDGED_UP_TO, JUDGED_BY = 50_000, (5, 10, 20)  # pictures among which odd ones are found here; their neighbours
NOT_KEPT = "No picture was kept of this row."
NOT_READABLE = "The pictures of this gallery cannot be read from here, only their thumbnails."


@dataclass(frozen=True)
class GalleryShelf:
    """A gallery that is searched: its rows by id, their tiles and pictures."""

    context: Context
    searched: Gallery

    @cached_property
    def rev(self) -> str:
        return revision(self.searched.facts)

    @property
    def place(self) -> dict[str, Any]:
        return {"kind": "gallery", "name": self.searched.name, "rev": self.rev}

    @property
    def space(self) -> str:
        return "embedding"

    @cached_property
    def is_readable(self) -> bool:
        """Whether more than thumbnails may be shown."""
        return not self.context.public and readable(self.context, self.searched.facts["data"]) is not None

    def row(self, id: int) -> int:
        live = self.searched.live
        if not 0 <= id < len(self.searched.vectors) or (live is not None and not live[id]):  # or its files are gone
            raise ModelError("There is no such picture in this gallery (any more); search again.")
        return id

    def name(self, row: int) -> str:
        return last_name(self.searched.uri(row)) or f"picture {row}"

    def thumbnail(self, id: int) -> bytes:
        return self.searched.thumbnail(self.row(id))

    def picture(self, row: int) -> tuple[Image.Image, bool]:
        """The picture, or else its thumbnail; and whether it is the former."""
        if self.is_readable:
            with suppress(ImageError):
                return self.searched.original(row), True
        if data := self.searched.thumbnail(row):
            return decode_image(data), False
        raise ModelError(f"{NOT_KEPT} Search again.")

    def tiles(self, rows: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
        """Rows for the page, with the addresses of their pictures."""
        found = zip(self.searched.describe(rows), scores.clip(-1, 1).tolist(), strict=True)
        return [self._tile(one, score) for one, score in found]

    def _tile(self, one: dict[str, Any], score: float) -> dict[str, Any]:
        row, public = one["id"], self.context.public
        known = [] if public else self.searched.paths_of(row)[:MAX_PATHS]
        at = f"api/galleries/{self.searched.name}"
        return {
            "id": row,
            "score": score,
            "uri": printable(last_name(one["uri"]) if public else one["uri"]),
            "class_name": one["class_name"],
            "width": one["width"],
            "height": one["height"],
            "paths": [printable(path) for path in known],
            "more_paths": 0 if public else one["copies"] - len(known),
            "thumb": f"{at}/thumb/{row}?rev={self.rev}",
            "picture": f"{at}/picture/{row}?rev={self.rev}" if self.is_readable else None,
        }


def last_name(path: str) -> str:
    return path.rpartition("/")[2]


def as_jpeg(image: Image.Image) -> bytes:
    """At most SHOWN_PX on a side, without anything that was known of the picture besides."""
    image.thumbnail((SHOWN_PX, SHOWN_PX), reducing_gap=2.0)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def fits(facts: dict[str, Any], model: Model) -> bool:
    """Whether the gallery was embedded by this model under this transform."""
    from analysis.gallery import refuse_other

    try:
        refuse_other("", facts, model.model_hash, asdict(model.transform))
    except (ModelError, KeyError):
        return False
    return True


def facts_of(context: Context, one: dict[str, Any], model: Model) -> dict[str, Any]:
    """An entry of `galleries()` for the page; of its source only what is known here by a name."""
    from analysis.gallery import gallery_folder, newest_claim, read_gallery, state_folder
    from analysis.index import EXACT_UP_TO, has_faiss, read_facts

    name = one["name"]
    common = {"name": name, "rev": revision(one), "finished": one["finished"], "fits": fits(one, model)}
    common["pictures"] = one.get("pictures", 0)
    if context.public:
        return common
    root, index, source = gallery_folder(name), None, ""
    if not one["problem"]:
        source = str((read_gallery(root) or newest_claim(root) or {}).get("data", ""))
    if one["finished"] and one.get("rows", 0) > EXACT_UP_TO and has_faiss():
        index = read_facts(state_folder(root, int(one["generation"]), int(one["state"])))
    return {
        **common,
        "problem": one["problem"],
        "rows": one.get("rows", 0),
        "skipped": one.get("skipped", 0),
        "model": one.get("model", ""),
        "source": told(context, one.get("model", "")),
        "model_hash": one.get("model_hash", ""),
        "data": source_words(context, source),
        "from": (found := readable(context, source)),
        "originals": found is not None,
        "index": asdict(index) if index else None,
        "made_s": one.get("created_s"),
        "updated_s": one.get("updated_s"),
        "bytes": one.get("bytes", 0),
    }


def source_words(context: Context, spec: str) -> str:
    if Path(spec).is_relative_to(uploads_dir()):
        return "uploads, which are not kept"
    return words_of(context, spec)


def add_gallery_routes(api: APIRouter, owners: APIRouter, context: Context) -> None:
    """`galleries/…`: to see and search them is open to all, to make, read and delete them is the owner's."""
    clearly = plainly(context)

    @api.get("/galleries")
    @spoken
    def listed(model: str | None = None) -> dict[str, Any]:
        from analysis.gallery import galleries

        opened = context.workbench(model).model
        shown_here = [one for one in galleries() if not context.public or (one["finished"] and not one["problem"])]
        live, problems = ({}, {}) if context.public else standing(context)
        known = [facts_of(context, one, opened) for one in shown_here]
        return {"galleries": known, "live": live, "problems": problems}

    @api.get("/galleries/{name}/classes")
    @spoken
    def classes(name: str) -> dict[str, Any]:
        return some_classes(context.shelves.gallery(name).class_names)

    @api.get("/galleries/{name}/thumb/{id}", response_model=None)
    def thumb(request: Request, name: str, id: int, rev: str = "") -> Response:
        try:
            shelf = GalleryShelf(context, context.shelves.gallery(name, rev))
            if data := shelf.thumbnail(id):
                return cached(request, f"{shelf.rev}-{id}", lambda: (data, "image/webp"))
        except MemsslError as reason:
            return gone(str(reason))
        return gone(NOT_KEPT, status=404)

    @owners.get("/galleries/{name}/picture/{id}", response_model=None)
    def picture(request: Request, name: str, id: int, rev: str = "") -> Response:
        try:
            shelf = GalleryShelf(context, context.shelves.gallery(name, rev))
            row = shelf.row(id)
            if not shelf.is_readable:
                return gone(NOT_READABLE, status=404)

            def make() -> tuple[bytes, str]:
                with context.turns.take("decode"):
                    return as_jpeg(shelf.searched.original(row)), "image/jpeg"

            return cached(request, f"{shelf.rev}-{id}-picture", make)
        except ImageError as reason:
            return gone(str(reason), status=404)
        except MemsslError as reason:
            return gone(str(reason))

    @api.get("/galleries/{name}/oddities")
    @spoken
    def oddities(name: str, k: int = 10) -> dict[str, Any]:
        return json.loads(odd_ones(context, name, k))

    @owners.get("/galleries/{name}/skipped")
    @clearly
    def skipped(name: str) -> dict[str, Any]:
        table = context.shelves.gallery(name).skipped_table()
        first = table.slice(0, MAX_SKIPPED).to_pylist()
        told_of = [{"path": printable(one["path"]), "reason": shown(context, one["reason"])} for one in first]
        return {"skipped": told_of, "count": len(table)}

    @owners.post("/galleries/{name}/delete")
    @clearly
    def delete(name: str) -> dict[str, Any]:
        from analysis.gallery import delete_gallery

        if name in standing(context)[0]:
            raise DataError(f"Gallery {name} is being updated just now; stop that job first.")
        delete_gallery(name)
        context.shelves.forget(name)
        return {}

    add_update_routes(owners, context)


def some_classes(names: list[str]) -> dict[str, Any]:
    return {"classes": names[:MAX_CLASSES], "more": max(0, len(names) - MAX_CLASSES)}


def odd_ones(context: Context, name: str, k: int) -> bytes:
    """JSON: the pictures that are least like their k nearest others, found once for each state of a gallery."""
    from analysis.search import oddities

    if k not in JUDGED_BY:
        raise ModelError(f"Odd pictures are told by their {JUDGED_BY[0]}, {JUDGED_BY[1]} or {JUDGED_BY[2]} neighbours.")
    shelf = GalleryShelf(context, context.shelves.gallery(name))
    if len(shelf.searched) > JUDGED_UP_TO:
        raise ModelError(
            f"Odd pictures are looked for in galleries of at most {JUDGED_UP_TO:,} pictures; make one of a part."
        )
    key = key_of("oddities", name, shelf.rev, k)
    if (known := context.results.get(key)) is not None:
        return known
    with context.turns.take("judge"):
        if (known := context.results.get(key)) is not None:  # found while this one waited
            return known
        found = oddities(shelf.searched, k=k)
    answer = {"oddities": shelf.tiles(found.rows, found.scores), "judged": found.judged, "total": len(shelf.searched)}
    context.results.put(key, made := json.dumps(answer, allow_nan=False).encode())
    return made
