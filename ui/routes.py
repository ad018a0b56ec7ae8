"""Plain HTTP routes beside Gradio: pictures, thumbnails and arrays as bytes, guarded like the page."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response

from memssl_core.errors import MemsslError
from ui import wire
from ui.answers import cached, encode, gone, npz
from ui.compare import add_compare_routes
from ui.data import add_data_routes
from ui.facts import page_facts
from ui.galleries import add_gallery_routes
from ui.guard import make_owner_only
from ui.header import add_model_routes
from ui.jobs import add_job_routes
from ui.map import add_map_routes
from ui.publish import add_publish_routes
from ui.remember import add_remember_routes
from ui.runs import add_run_routes
from ui.search import add_search_routes
from ui.snapshots import add_snapshot_routes
from ui.store import SHOWN_PX
from ui.training import add_training_routes

if TYPE_CHECKING:
    from ui.context import Context

THUMBNAIL_PX = 128  # longest side in the tray
RESULTS = {
    "attention": ("maps", "application/octet-stream"),
    "neighbours": ("neighbours", "application/json"),
    "matches": ("matches", "application/octet-stream"),
    "placed": ("places", "application/octet-stream"),
    "found": ("results", "application/json"),
    "walked": ("pictures", "application/json"),
    "explained": ("comparisons", "application/octet-stream"),
    "rollout": ("maps", "application/octet-stream"),
    "pca": ("colours", "application/octet-stream"),
}


def add_routes(app: FastAPI, context: Context, guard: Callable[..., object]) -> None:
    """`healthz`, open to all, and `api/…`, behind `guard` (a FastAPI dependency)."""

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"state": context.state}

    api = APIRouter(prefix="/api", dependencies=[Depends(guard)])

    @api.get("/facts")
    def facts() -> JSONResponse:
        return JSONResponse(page_facts(context), headers={"Cache-Control": "no-store"})

    @api.get("/picture/{handle}")
    def picture(request: Request, handle: str, size: Literal["shown", "tray"] = "shown") -> Response:
        found = context.pictures.get(handle)
        if found is None:
            return gone("This picture is no longer kept here; add it again.")
        side = SHOWN_PX if size == "shown" else THUMBNAIL_PX
        return cached(request, f"{handle}-{side}", lambda: encode(found.shown, side))

    for kind, (noun, media_type) in RESULTS.items():
        add_result(api, context, kind, noun, media_type)

    @api.get("/attention/{key}/npz")
    def attention_npz(key: str) -> Response:
        data = context.results.get(key)
        if data is None:
            return gone("These maps are no longer kept here; choose the picture again.")
        arrays, facts = wire.unpack(data)
        return npz("attention", grid=np.array(facts["grid"]), n_prefix=facts["n_prefix"], **arrays)

    for kind in ("matches", "pca"):
        add_npz_of_pictures(api, context, kind)

    @api.get("/thumb/{model}/{slot}")
    def thumbnail(request: Request, model: str, slot: int) -> Response:
        try:
            memory = context.workbench(model).model.memory
        except MemsslError as reason:
            return gone(str(reason))
        data = memory.thumbnail(slot) if memory and 0 <= slot < memory.slots else b""
        if not data:
            return gone("No picture was kept for this slot.", status=404)
        media_type = "image/jpeg" if data.startswith(b"\xff\xd8") else "image/webp"
        return cached(request, f"{model}-{slot}", lambda: (data, media_type))

    add_model_routes(api, context)
    add_compare_routes(api, context)
    owners = APIRouter(dependencies=[Depends(make_owner_only(context.public))])
    for add_more in (add_job_routes, add_remember_routes, add_publish_routes):
        add_more(owners, context)
    add_map_routes(api, owners, context)
    add_search_routes(api, context)
    add_gallery_routes(api, owners, context)
    add_data_routes(api if context.training else owners, context)
    if context.training:
        for add_more in (add_training_routes, add_run_routes, add_snapshot_routes):
            add_more(api, context)
    api.include_router(owners)
    app.include_router(api)


def add_result(api: APIRouter, context: Context, kind: str, noun: str, media_type: str) -> None:
    """`api/KIND/KEY`: a result as it was computed."""

    @api.get(f"/{kind}/{{key}}")
    def result(request: Request, key: str) -> Response:
        data = context.results.get(key)
        if data is None:
            return gone(f"These {noun} are no longer kept here; choose the picture again.")
        return cached(request, key, lambda: (data, media_type))


def add_npz_of_pictures(api: APIRouter, context: Context, kind: str) -> None:
    """`api/KIND/KEY/npz`: the arrays of one or two pictures, and their grids, as a file."""

    @api.get(f"/{kind}/{{key}}/npz")
    def file(key: str) -> Response:
        data = context.results.get(key)
        if data is None:
            return gone(f"These {RESULTS[kind][0]} are no longer kept here; choose the pictures again.")
        arrays, facts = wire.unpack(data)
        frames = {side: facts[f"frame_{side}"] for side in "ab" if f"frame_{side}" in facts}
        grids = {f"grid_{side}": [frame["rows"], frame["columns"]] for side, frame in frames.items()}
        return npz(kind, **grids, **arrays)
