"""Tab *Attention*: a picture and a query in, the attention rows of every transformer block out, or their rollout."""

from __future__ import annotations

import re
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import gradio as gr

from memssl_core.errors import ModelError
from ui import wire
from ui.context import EVENT, Context, Visit, device_words, handler
from ui.facts import can_read, prefix_tokens
from ui.store import Picture, key_of
from ui.views import view

if TYPE_CHECKING:
    from analysis import Workbench

NO_QUERY = "The query must be the class token, a register or a patch of the picture; click one."
NO_SIZE = "This input size is not offered for this model; choose one from the list."
NOT_OFFERED = "This question is not offered; choose from the page."
TOLD = 2  # counts up with every change of what `maps` tells: browsers keep an answer for a day


def attention_tab(context: Context, visit: gr.State) -> None:
    maps = view("attention", events=["asked"], elem_id="attention")
    maps.asked(handler(context, show), visit, maps, **EVENT)


def show(context: Context, visit: Visit, asked: dict) -> dict[str, Any]:
    """`asked` {ask: maps or rollout, …} -> {key} of what is then at `api/attention` or `api/rollout`."""
    answer = {"maps": maps, "rollout": rollout}.get(str(asked.get("ask")))
    if answer is None:
        raise ModelError(NOT_OFFERED)
    return answer(context, visit, asked)


def maps(context: Context, visit: Visit, asked: dict) -> dict[str, Any]:
    """`asked` {model, handle, query, size} -> {key}: the maps are computed if they are not there.

    `query` is 'cls', 'register:I', 'mean' (over all patches) or a patch; `size` as `can_read`.
    """
    handle, workbench, picture, query, size = question(context, visit, asked)
    key = key_of("attention", TOLD, handle, picture.handle, query, size)
    if context.results.get(key) is None:
        with context.turns.take("model"):
            start = time.perf_counter()
            found = workbench.attention_all(picture.data, query=query, size=size)
            time_s = time.perf_counter() - start
        facts = {
            "grid": found.grid,
            "n_prefix": found.n_prefix,
            "prefix": prefix_tokens(workbench.model.card),
            "frame": asdict(found.frame),
            "query": query,
            "size": size,
            "time_s": round(time_s, 4),
            "format": picture.format,
            "device": device_words(workbench),
        }
        context.results.put(key, wire.pack({"rows": found.rows, "norms": found.norms}, facts))
    return {"key": key}


def rollout(context: Context, visit: Visit, asked: dict) -> dict[str, Any]:
    """`asked` as of `maps` and `start`, the transformer block from which on blocks are multiplied -> {key}."""
    handle, workbench, picture, query, size = question(context, visit, asked)
    start = asked.get("start")
    if type(start) is not int or not 0 <= start < workbench.model.card["blocks"]:
        raise ModelError("This model has no such transformer block; choose one from the page.")
    key = key_of("rollout", handle, picture.handle, query, size, start)
    if context.results.get(key) is None:
        with context.turns.take("model"):
            began = time.perf_counter()
            found = workbench.rollout(picture.data, query=query, size=size, start=start)
            time_s = time.perf_counter() - began
        facts = {
            "grid": found.grid,
            "n_prefix": found.n_prefix,
            "query": query,
            "size": size,
            "start": start,
            "time_s": round(time_s, 4),
        }
        context.results.put(key, wire.pack({"rows": found.rows}, facts))
    return {"key": key}


def question(context: Context, visit: Visit, asked: dict) -> tuple[str, Workbench, Picture, str | int, int]:
    """Model handle, its workbench, picture, query and size that a question names. A sentence for what is not there."""
    handle, workbench = context.model_of(asked)
    picture = context.pictures.of_visit(str(asked.get("handle")), visit)
    query: Any = asked.get("query")
    size = asked.get("size")
    is_named = isinstance(query, str) and re.fullmatch(r"cls|mean|register:\d{1,4}", query)
    if not (is_named or (type(query) is int and abs(query) < 1_000_000)):  # of longer numbers no sentence is made
        raise ModelError(NO_QUERY)
    if why := workbench.model.card["why_no_attention"]:
        raise ModelError(why)
    if type(size) is not int or not can_read(workbench.model.card, size):
        raise ModelError(NO_SIZE)
    return handle, workbench, picture, query, size
