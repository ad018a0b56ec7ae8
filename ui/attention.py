"""Tab *Attention*: a picture and a query in, the attention rows of every transformer block out."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import gradio as gr

from memssl_core.errors import ModelError
from ui import wire
from ui.context import EVENT, Context, Visit, device_words, handler
from ui.facts import input_sizes
from ui.store import key_of
from ui.views import view


def attention_tab(context: Context, visit: gr.State) -> None:
    maps = view("attention", events=["asked"], elem_id="attention")
    maps.asked(handler(context, show), visit, maps, **EVENT)


def show(context: Context, visit: Visit, asked: dict) -> dict[str, Any]:
    """`asked` {model, handle, query, size} -> {key}: the maps are at `api/attention/KEY`, computed if they were not.

    `query` is 'cls', 'mean' (over all patches) or a patch; `size` one of `input_sizes`.
    """
    handle = asked.get("model") or context.opened().handle
    workbench = context.workbench(handle)
    picture = context.pictures.of_visit(str(asked.get("handle")), visit)
    query, size = asked.get("query"), asked.get("size")
    if not (query in ("cls", "mean") or type(query) is int):
        raise ModelError("The query must be the class token or a patch of the picture; click one.")
    if size not in input_sizes(workbench.model.card):
        raise ModelError("This input size is not offered for this model; choose one from the list.")
    key = key_of("attention", handle, picture.handle, query, size)
    if context.results.get(key) is None:
        with context.turns.take("model"):
            start = time.perf_counter()
            found = workbench.attention_all(picture.data, query=query, size=size)
            time_s = time.perf_counter() - start
        facts = {
            "grid": found.grid,
            "n_prefix": found.n_prefix,
            "frame": asdict(found.frame),
            "query": query,
            "size": size,
            "time_s": round(time_s, 4),
            "format": picture.format,
            "device": device_words(workbench),
        }
        context.results.put(key, wire.pack({"rows": found.rows}, facts))
    return {"key": key}
