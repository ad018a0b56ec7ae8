"""Panel *Map* of the tab Memory: the memory's slots laid out in the plane, coloured, searched and taken away."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, Literal

import gradio as gr
import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from memssl_core import jobs
from memssl_core.errors import MemsslError, ModelError
from ui import wire
from ui.answers import cached, gone
from ui.colours import agreement, coloured, colours, levels
from ui.context import EVENT, Context, Visit, handler
from ui.layouts import Layout, Space, packed
from ui.messages import spoken
from ui.slots import FILES, card, matching, memory_of, since
from ui.store import key_of
from ui.views import view

FOUND_AT_MOST, TAKEN_AT_MOST = 20_000, 200_000
WOKEN = 50  # slots that are compared of student and teacher


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
    """`asked` {model, handle, space} -> {key}: at `api/placed/KEY` the place of a picture, about, how similar each slot
    is to it, and in the memory space which slots student and teacher are nearest to."""
    (_, workbench), space = context.model_of(asked), asked.get("space")
    picture = context.pictures.of_visit(str(asked.get("handle")), visit)
    if space not in ("memory", "embedding"):
        raise ModelError("There is no such space; choose memory or embedding.")
    layout = context.layouts.of(workbench, space)
    key = key_of("placed", layout.key, picture.handle)
    if context.results.get(key) is None:
        with context.turns.take("model"):
            query = (workbench.projection if space == "memory" else workbench.embedding)(picture.data)
            _, rows = workbench.slots(space)  # in the order of the layout: both list every written slot
        from analysis.map import place

        scores = rows @ (query / max(float(np.linalg.norm(query)), 1e-12))
        x, y = layout.spread(place(query, rows, layout.xy)[None])[0].tolist()
        low, high = float(scores.min()), float(scores.max())
        told = {"kind": "scale", "low": low, "high": high, "words": "cosine to the picture"}
        found = {"similarity": (levels(scores, low, high), told)}
        if space == "memory" and workbench.model.student is not None:
            with context.turns.take("model"):
                student = workbench.student_projection(picture.data)
            found["agreement"] = agreement(scores, rows @ student, min(WOKEN, -(-len(rows) // 4)))
        values = {name: one for name, (one, _) in found.items()}
        facts = {"x": x, "y": y, "colours": {name: told for name, (_, told) in found.items()}}
        context.results.put(key, wire.pack(values, facts))
    return {"key": key}


def add_map_routes(api: APIRouter, owners: APIRouter, context: Context) -> None:
    """`map/…`; fitting a map is a job, so only the owner starts one."""
    starting = threading.Lock()

    def layout_of(model: str, space: Space) -> Layout:
        return context.layouts.of(context.workbench(model), space)

    def colours_of(model: str, space: Space, layout: Layout) -> list[tuple[str, str]]:
        has_graph = context.layouts.has_graph(context.workbench(model), layout, space)
        return colours(layout, memory_of(context, model), has_graph=has_graph)

    def made(request: Request, model: str, space: Space, key: str, what: str, make: Callable[[Layout], bytes]):
        try:
            layout = layout_of(model, space)
            if layout.key != key:
                return gone("This map was replaced; it is fetched again.")
            return cached(request, f"{key}-{what}", lambda: (make(layout), "application/octet-stream"))
        except MemsslError as reason:
            return gone(str(reason))

    @api.get("/map/{model}/{space}")
    @spoken
    def facts(model: str, space: Space) -> dict[str, Any]:
        layout, memory = layout_of(model, space), memory_of(context, model)
        return {
            "key": layout.key,
            "points": len(layout.slots),
            "slots": memory.slots,
            "parameters": layout.parameters,
            "last_step": int(memory.step.max()) + 1,
            "cursor": memory.cursor,
            "since": asdict(since(context, model)),
            "colours": colours_of(model, space, layout),
            **({} if context.public else standing(model, space)),
        }

    @api.get("/map/{model}/{space}/{key}/points", response_model=None)
    def points(request: Request, model: str, space: Space, key: str) -> Response:
        return made(request, model, space, key, "points", lambda layout: packed(layout, memory_of(context, model)))

    @api.get("/map/{model}/{space}/{key}/colour/{by}", response_model=None)
    def colour(
        request: Request,
        model: str,
        space: Space,
        key: str,
        by: str,
        threshold: Annotated[float | None, Query(ge=0.5, le=1)] = None,
    ) -> Response:
        def make(layout: Layout) -> bytes:
            if by not in dict(colours_of(model, space, layout)):
                raise ModelError("This colouring is not there; choose another one.")
            graph = partial(context.layouts.graph, context.workbench(model), space)
            return coloured(layout, memory_of(context, model), by, graph, threshold)

        return made(request, model, space, key, f"{by}-{threshold}", make)

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
        slots = np.array([slot for slot in dict.fromkeys(taken.slots) if 0 <= slot < memory.slots], np.int64)
        data, media_type = FILES[taken.kind](memory, slots, context.public)
        name = f"slots.{taken.kind}"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(data, media_type=media_type, headers=headers)

    @owners.post("/map/fit")
    @spoken
    def fit(wish: Fit) -> dict[str, Any]:
        model = wish.model or context.opened().handle
        opened = context.workbench(model).model
        if not context.opened().models.is_current(model):
            raise ModelError("This model has changed since it was opened; choose it again, then fit its map.")
        argv = ["map", opened.source, "--space", wish.space, *(["--fast"] if wish.fast else [])]
        facts = {"model": model, "space": wish.space}
        with starting:  # of two who ask at once the second finds the job of the first
            job = (
                standing(model, wish.space)["job"]
                or jobs.start(argv, kind="map", title=f"Map of {opened.name}", module="analysis", facts=facts).path.name
            )
        return {"job": job}


def standing(model: str, space: str) -> dict[str, str | None]:
    """`job`, the name of the one that fits this map now, and `problem`, the sentence that the last fit failed with."""
    statuses = ((job, job.status() or {}) for job in jobs.find())  # newest first
    wanted = ("map", model, space)
    found = [(job, s) for job, s in statuses if (s.get("kind"), s.get("model"), s.get("space")) == wanted]
    live = [job for job, status in found if status["state"] in jobs.LIVE and not job.stop_requested()]
    last = found[0][1] if found else {}
    problem = last.get("message") or "The fit ended without a word; see its log among the jobs."
    has_failed = last.get("state") in ("failed", "lost")
    return {"job": live[0].path.name if live else None, "problem": problem if has_failed else None}
