"""Panel *Map* of the tab Memory: the memory's slots laid out in the plane, coloured, searched and taken away."""

from __future__ import annotations

from typing import Any, Literal

import gradio as gr
import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from memssl_core import jobs
from memssl_core.errors import MemsslError, ModelError
from ui import wire
from ui.answers import cached, gone
from ui.context import EVENT, Context, Visit, handler
from ui.layouts import Layout, Space, coloured, colours, levels, packed
from ui.messages import spoken
from ui.slots import FILES, card, matching, memory_of
from ui.store import key_of
from ui.views import view

FOUND_AT_MOST, TAKEN_AT_MOST = 20_000, 200_000


class Fit(BaseModel):
    model: str | None = Field(None, max_length=80)
    space: Space = "memory"
    fast: bool = False


class Taken(BaseModel):
    slots: list[int] = Field(max_length=TAKEN_AT_MOST)
    kind: Literal["csv", "parquet", "zip"] = "csv"


def map_panel(context: Context, visit: gr.State) -> None:
    canvas = view("map", events=["asked"], elem_id="map")
    canvas.asked(handler(context, show), visit, canvas, **EVENT)


def show(context: Context, visit: Visit, asked: dict) -> dict[str, Any]:
    """`asked` {model, handle, space} -> {key}: at `api/placed/KEY` the place of a picture, about, and how similar each
    slot is to it."""
    handle = asked.get("model") or context.opened().handle
    workbench, space = context.workbench(handle), asked.get("space")
    picture = context.pictures.of_visit(str(asked.get("handle")), visit)
    if space not in ("memory", "embedding"):
        raise ModelError("There is no such space; choose memory or embedding.")
    layout = context.layouts.of(workbench, handle, space)
    key = key_of("placed", layout.key, picture.handle)
    if context.results.get(key) is None:
        with context.turns.take("model"):
            query = (workbench.projection if space == "memory" else workbench.embedding)(picture.data)
            _, rows = workbench.slots(space)  # in the order of the layout: both list every written slot
        from analysis.map import place

        scores = rows @ (query / max(float(np.linalg.norm(query)), 1e-12))
        x, y = layout.spread(place(query, rows, layout.xy)[None])[0].tolist()
        low, high = float(scores.min()), float(scores.max())
        values = levels(scores, low, high)
        facts = {"x": x, "y": y, "kind": "scale", "low": low, "high": high, "words": "cosine to the picture"}
        context.results.put(key, wire.pack({"values": values}, facts))
    return {"key": key}


def add_map_routes(api: APIRouter, owners: APIRouter, context: Context) -> None:
    """`map/…`; fitting a map is a job, so only the owner starts one."""

    def layout_of(model: str, space: Space) -> Layout:
        return context.layouts.of(context.workbench(model), model, space)

    @api.get("/map/{model}/{space}")
    @spoken
    def facts(model: str, space: Space) -> dict[str, Any]:
        layout, memory = layout_of(model, space), memory_of(context, model)
        return {
            "key": layout.key,
            "points": len(layout.slots),
            "slots": memory.slots,
            "parameters": layout.parameters,
            "last_step": int(memory.step.max()),
            "colours": colours(layout, memory),
            "job": fitting(model, space),
        }

    @api.get("/map/{model}/{space}/{key}/points", response_model=None)
    def points(request: Request, model: str, space: Space, key: str) -> Response:
        try:
            layout, memory = layout_of(model, space), memory_of(context, model)
        except MemsslError as reason:
            return gone(str(reason))
        if layout.key != key:
            return gone("This map was replaced; it is fetched again.")
        return cached(request, f"{key}-points", lambda: (packed(layout, memory.slots), "application/octet-stream"))

    @api.get("/map/{model}/{space}/{key}/colour/{by}", response_model=None)
    def colour(request: Request, model: str, space: Space, key: str, by: str) -> Response:
        try:
            layout, memory = layout_of(model, space), memory_of(context, model)
        except MemsslError as reason:
            return gone(str(reason))
        if layout.key != key or by not in dict(colours(layout, memory)):
            return gone("This colouring is not there; choose another one.")
        return cached(request, f"{key}-{by}", lambda: (coloured(layout, memory, by), "application/octet-stream"))

    @api.get("/slots/{model}/{space}/{slot}")
    @spoken
    def slot_card(model: str, space: Space, slot: int) -> dict[str, Any]:
        return card(context, model, space, slot)

    @api.get("/slots/{model}")
    @spoken
    def find(model: str, words: str) -> dict[str, Any]:
        found = matching(memory_of(context, model), words[:200])
        return {"slots": found[:FOUND_AT_MOST].tolist(), "count": len(found)}

    @api.post("/slots/{model}/export", response_model=None)
    def export(model: str, taken: Taken) -> Response:
        memory = memory_of(context, model)
        slots = np.array([slot for slot in taken.slots if 0 <= slot < memory.slots], np.int64)
        data, media_type = FILES[taken.kind](memory, slots, context.public)
        name = f"slots.{taken.kind}"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(data, media_type=media_type, headers=headers)

    @owners.post("/map/fit")
    @spoken
    def fit(wish: Fit) -> dict[str, Any]:
        model = wish.model or context.opened().handle
        running = fitting(model, wish.space)
        if running is None:
            source = context.workbench(model).model.source
            argv = ["map", source, "--space", wish.space, *(["--fast"] if wish.fast else [])]
            name = context.workbench(model).model.name
            facts = {"model": model, "space": wish.space}
            running = jobs.start(argv, kind="map", title=f"Map of {name}", module="analysis", facts=facts).path.name
        return {"job": running}


def fitting(model: str, space: str) -> str | None:
    """The job that fits this map now."""
    for job in jobs.find():
        status = job.status() or {}
        wanted = (status.get("kind"), status.get("model"), status.get("space")) == ("map", model, space)
        if wanted and status.get("state") in jobs.LIVE and not job.stop_requested():
            return job.path.name
    return None
