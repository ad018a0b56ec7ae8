"""Tab *Attention*: a picture and a query in, the attention rows of every transformer block out."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import gradio as gr

from memssl_core.errors import ModelError
from ui import wire
from ui.context import Visit, handler, key_of
from ui.facts import input_sizes
from ui.views import view

if TYPE_CHECKING:
    from ui.context import Context


def attention_tab(context: Context, visit: gr.State) -> None:
    maps = view("attention", events=["asked"], elem_id="attention")
    maps.asked(
        handler(lambda visit, asked: show(context, visit, asked)),
        visit,
        maps,
        concurrency_id="model",
        concurrency_limit=1,
        trigger_mode="always_last",
        show_progress="hidden",
        api_visibility="private",
    )


def show(context: Context, visit: Visit, asked: dict) -> dict[str, Any]:
    """`asked` {handle, query, size} -> {key} of the bytes at `api/attention/KEY`, computed unless they are there."""
    workbench = context.workbench()
    picture = context.pictures.of_visit(str(asked.get("handle")), visit)
    query, size = checked_query(asked.get("query")), asked.get("size")
    if size not in input_sizes(workbench.model.card):
        raise ModelError("This input size is not offered for this model; choose one from the list.")
    key = key_of("attention", workbench.model.model_hash, picture.handle, query, size)
    if context.results.get(key) is None:
        if query == "centre":
            query = (picture.image.width // 2, picture.image.height // 2)
        start = time.perf_counter()
        found = workbench.attention_all(picture.image, query=query, size=size)
        facts = {
            "grid": list(found.grid),
            "n_prefix": found.n_prefix,
            "frame": asdict(found.frame),
            "query": "cls" if query == "cls" else found.frame.patch_at(*query) if isinstance(query, tuple) else query,
            "size": size,
            "time_s": round(time.perf_counter() - start, 4),
            "format": picture.format,
            "device": context.device,
            "note": "",
        }
        context.results.put(key, wire.pack(found.rows, facts))
    return {"key": key}


def checked_query(query: object) -> str | int:
    if query in ("cls", "centre") or (isinstance(query, int) and not isinstance(query, bool) and query >= 0):
        return query  # type: ignore[return-value]
    raise ModelError("The query must be the class token or a patch of the picture; click one.")
