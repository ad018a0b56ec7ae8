"""Tab *Search*: what is most like some pictures, in the memory or in a gallery, and questions about what was found."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import gradio as gr
import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, Field, ValidationError

from memssl_core.errors import ImageError, MemsslError, ModelError
from ui import wire
from ui.answers import gone
from ui.context import EVENT, Context, Visit, handler
from ui.facts import first_size
from ui.galleries import GalleryShelf, as_jpeg, last_name, some_classes
from ui.messages import spoken
from ui.queries import MAX_ID, Like, Place, Query, Shelf, Typed, between, like, shelf_of
from ui.slots import memory_of, shown_uri
from ui.store import key_of
from ui.views import view

if TYPE_CHECKING:
    from analysis import Workbench

MAX_K, MAX_QUERIES = 200, 8
NOT_OFFERED = "This question is not offered; choose from the page."
NO_PATHS = "Paths are not shown to visitors here, so results cannot be chosen by them; leave the path empty."
EXPIRED = "These results are no longer kept here; search again."


class Asked(Typed):
    model: str | None = Field(None, max_length=80)
    place: Place
    class_name: str | None = Field(None, max_length=300)
    words: str | None = Field(None, max_length=300)
    """that the path holds; Gradio takes whatever is called `path` in an event for a file"""


class Search(Asked):
    queries: list[Query] = Field(min_length=1, max_length=MAX_QUERIES)
    less: list[Query] = Field([], max_length=MAX_QUERIES)
    k: int = Field(ge=1, le=MAX_K)
    exact: bool | None = None


class Walk(Asked):
    a: Query
    b: Query
    n: int = Field(ge=3, le=24)


class Explain(Asked):
    queries: list[Query] = Field(min_length=1, max_length=MAX_QUERIES)
    less: list[Query] = Field([], max_length=MAX_QUERIES)
    id: int = Field(ge=0, le=MAX_ID)


class Taken(BaseModel):
    kind: Literal["csv", "zip"] = "csv"
    ids: list[int] | None = Field(None, max_length=MAX_K)
    pictures: bool = False
    """larger ones in place of thumbnails, where they can be read"""


def search_tab(context: Context, visit: gr.State) -> None:
    results = view("search", events=["asked"], elem_id="search")
    results.asked(handler(context, show), visit, results, **EVENT)


def show(context: Context, visit: Visit, asked: dict) -> dict[str, Any]:
    """`asked` {ask: search, walk or explain, …} -> {key} of what is at `api/found`, `api/walked` or `api/explained`."""
    offered: dict[str, tuple[type[Asked], Callable[..., str]]] = {
        "search": (Search, found),
        "walk": (Walk, walked),
        "explain": (Explain, explained),
    }
    try:
        form, answer = offered[str(asked.get("ask"))]
        wish = form.model_validate(asked)
    except (KeyError, ValidationError):
        raise ModelError(NOT_OFFERED) from None
    if context.public and wish.words:
        raise ModelError(NO_PATHS)
    return {"key": answer(context, visit, wish)}


def likes(context: Context, visit: Visit, handle: str, wish: Asked, queries: list[Query]) -> list[Like]:
    return [like(context, visit, handle, query, query.place or wish.place) for query in queries]


def filters(wish: Asked) -> dict[str, Any]:
    return {"class_name": wish.class_name or None, "path": wish.words or None}


# The three questions


def found(context: Context, visit: Visit, wish: Search) -> str:
    from analysis.search import groups, search

    handle = wish.model or context.opened().handle
    workbench, shelf = context.workbench(handle), shelf_of(context, handle, wish.place, newest=True)
    queries, less = (likes(context, visit, handle, wish, some) for some in (wish.queries, wish.less))
    key = key_of("found", handle, shelf.rev, wish.model_dump())
    if context.results.get(key) is not None:
        return key
    query, only = between(context, workbench, queries, less, shelf.space), filters(wish)
    itself = own_row(shelf, queries[0]) if len(queries) == 1 and not less else None
    with context.turns.take("search"):
        result = search(shelf.searched, query, wish.k, exact=wish.exact is True, itself=itself, **only)
        duplicate = context.shelves.duplicate(shelf.searched)
    results = shelf.tiles(result.rows, result.scores)
    alike = [group.tolist() for group in groups(shelf.searched.vectors[result.rows], duplicate)]
    for group in alike:
        for rank in group:
            results[rank]["group"] = group[0]
    names, others = (" + ".join(one.name for one in some) for some in (queries, less))
    total, kept = (count(shelf, shelf.searched.keep(**some)) for some in ({}, only))
    told = {
        "model": handle,
        "place": shelf.place,
        "query": f"{names} − {others}" if less else names,
        "k": wish.k,
        "exact": result.exact,
        "recall": result.recall,
        "time_s": round(result.time_s, 4),
        "total": total,
        "kept": kept,
        "combined": len(queries) > 1 or bool(less),
        "results": results,
        "duplicate": duplicate,
        "groups": [group for group in alike if len(group) > 1],
    }
    context.results.put(key, json.dumps(told, allow_nan=False).encode())
    return key


def count(shelf: Shelf, keep: np.ndarray | None) -> int:
    return len(shelf.searched.vectors) if keep is None else int(keep.sum())


def own_row(shelf: Shelf, query: Like) -> int | None:
    """The row of the very picture that is asked with."""
    if query.shelf is not None:
        return query.row if query.shelf.place == shelf.place else None
    if isinstance(shelf, GalleryShelf) and query.picture:
        return shelf.searched.row_of(query.picture.data)
    return None


def walked(context: Context, visit: Visit, wish: Walk) -> str:
    from analysis.search import walk

    handle = wish.model or context.opened().handle
    workbench, shelf = context.workbench(handle), shelf_of(context, handle, wish.place, newest=True)
    ends = likes(context, visit, handle, wish, [wish.a, wish.b])
    key = key_of("walked", handle, shelf.rev, wish.model_dump())
    if context.results.get(key) is not None:
        return key
    a, b = (one.vector(context, workbench, shelf.space) for one in ends)
    with context.turns.take("search"):
        began = time.perf_counter()
        way = walk(shelf.searched, a, b, wish.n, **filters(wish))
        time_s = time.perf_counter() - began
    places = (step / (wish.n - 1) for step in range(wish.n))  # angles are equal steps
    points = [{"at": at, **tile} for at, tile in zip(places, shelf.tiles(way.rows, way.scores), strict=True)]
    angle = math.degrees(float(way.angles[-1]))
    told = {"model": handle, "place": shelf.place, "angle": angle, "points": points, "time_s": round(time_s, 4)}
    context.results.put(key, json.dumps(told, allow_nan=False).encode())
    return key


def explained(context: Context, visit: Visit, wish: Explain) -> str:
    from analysis.search import explain

    handle = wish.model or context.opened().handle
    workbench, shelf = context.workbench(handle), shelf_of(context, handle, wish.place)
    row = shelf.row(wish.id)
    queries, less = (likes(context, visit, handle, wish, some) for some in (wish.queries, wish.less))
    key = key_of("explained", handle, shelf.rev, wish.model_dump())
    if context.results.get(key) is not None:
        return key
    query = between(context, workbench, queries, less, "embedding")  # which is what patches can be compared with
    with context.turns.take("decode"):
        image, is_original = shelf.picture(row)
    size = first_size(workbench.model.card)
    with context.turns.take("model"):
        heat = explain(workbench, query, image, size).astype(np.float16)
        _, frame = workbench.features(image, size)  # kept from a moment ago
    (tile,) = shelf.tiles(np.array([row]), np.ones(1))
    facts = {
        "id": wish.id,
        "rows": heat.shape[0],
        "columns": heat.shape[1],
        "low": float(heat.min()),
        "high": float(heat.max()),
        "width": image.width,
        "height": image.height,
        "frame": asdict(frame),
        "picture": tile["picture"] if is_original else tile["thumb"],
        "original": is_original,
    }
    context.results.put(key, wire.pack({"heat": heat}, facts))
    return key


# For programs, and to take away


def records_like(
    context: Context, workbench: Workbench, data: bytes, gallery: str | None, k: int
) -> list[dict[str, Any]]:
    """What is most like a picture, as plain values: in a gallery, or in the model's memory."""
    from analysis.search import search

    if gallery is not None:
        opened = context.shelves.gallery(gallery)
        opened.require(workbench.model.model_hash, asdict(workbench.model.transform))
        searched, itself, embed = opened, opened.row_of(data), workbench.embedding
        name = last_name
    else:
        searched, itself = context.shelves.memory(workbench, "memory"), None
        embed = workbench.projection if workbench.model.head else workbench.embedding
        name = lambda uri: shown_uri(uri, True)
    with context.turns.take("model"):
        query = embed(data)
    with context.turns.take("search"):
        records = search(searched, query, k, itself=itself).records(searched)
    return [{**one, "uri": name(one["uri"])} for one in records] if context.public else records


def add_search_routes(api: APIRouter, context: Context) -> None:
    @api.get("/classes/{model}")
    @spoken
    def classes(model: str) -> dict[str, Any]:
        names = memory_of(context, model).class_name.drop_null().unique().to_pylist()
        return some_classes(sorted(names))

    @api.post("/found/{key}/export", response_model=None)
    def export(key: str, taken: Taken) -> Response:
        from analysis.exports import found_csv, found_zip

        try:
            told = json.loads(context.results.get(key) or b"")
            results = told["results"]
        except (ValueError, KeyError, TypeError):
            return gone(EXPIRED)
        wanted = None if taken.ids is None else {*taken.ids}
        ranked = [{**one, "query": told["query"], "rank": rank} for rank, one in enumerate(results, 1)]
        records = [one for one in ranked if wanted is None or one["id"] in wanted]
        if taken.kind == "csv":
            return as_file("found.csv", found_csv(records), "text/csv")
        try:
            shelf = shelf_of(context, told["model"], Place(**told["place"]))
            data = found_zip(records, lambda one: small_or_large(context, shelf, one["id"], large=taken.pictures))
        except MemsslError as reason:
            return gone(str(reason))
        return as_file("found.zip", data, "application/zip")


def as_file(name: str, data: bytes, media_type: str) -> Response:
    return Response(data, media_type=media_type, headers={"Content-Disposition": f'attachment; filename="{name}"'})


def small_or_large(context: Context, shelf: Shelf, id: int, *, large: bool) -> bytes:
    if large and isinstance(shelf, GalleryShelf) and shelf.is_readable:
        with suppress(ImageError), context.turns.take("decode"):
            return as_jpeg(shelf.searched.original(shelf.row(id)))
    return shelf.thumbnail(id)
