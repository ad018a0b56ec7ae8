"""Panel *Beside it*: the first principal components of patch features as colours, of one picture or of two."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from memssl_core.errors import ModelError
from ui import wire
from ui.attention import NO_SIZE, NOT_OFFERED
from ui.context import EVENT, Context, Visit, device_words, handler
from ui.facts import attention_sizes, input_sizes
from ui.store import key_of
from ui.views import view

if TYPE_CHECKING:
    from analysis.pca import Pca


def beside_panel(context: Context, visit: gr.State) -> None:
    colours = view("beside", events=["asked"], elem_id="beside")
    colours.asked(handler(context, show), visit, colours, **EVENT)


def show(context: Context, visit: Visit, asked: dict) -> dict[str, Any]:
    """`asked` {ask: pca, model, a, b or None, facet, layer, size, foreground} -> {key} of what is at `api/pca`.

    Arrays of each picture: `colours_` uint8 [N, 3], `front_` uint8 [N], 1 in the foreground, `components_` float32
    [N, 3].
    """
    if asked.get("ask") != "pca":
        raise ModelError(NOT_OFFERED)
    handle, workbench = context.model_of(asked)
    card = workbench.model.card
    sides = ("a",) if asked.get("b") is None else ("a", "b")
    pictures = [context.pictures.of_visit(str(asked.get(side)), visit) for side in sides]
    facet, layer, size, foreground = (asked.get(name) for name in ("facet", "layer", "size", "foreground"))
    if facet not in card["facets"] or type(layer) is not int or not 0 <= layer < card["layers"]:
        raise ModelError("This model has no such features; choose others from the list.")
    if type(size) is not int or size not in {*input_sizes(card), *(px for px, _, _ in attention_sizes(card))}:
        raise ModelError(NO_SIZE)
    key = key_of("pca", handle, [picture.handle for picture in pictures], facet, layer, size, bool(foreground))
    if context.results.get(key) is None:
        with context.turns.take("model"):
            start = time.perf_counter()
            data = [picture.data for picture in pictures]
            found = workbench.pca(*data, facet=facet, layer=layer, size=size, foreground=bool(foreground))
            time_s = time.perf_counter() - start
        facts = {
            **{f"frame_{side}": asdict(getattr(found, f"frame_{side}")) for side in sides},
            "pictures": [picture.facts() for picture in pictures],
            "explained": found.explained.tolist(),
            "facet": facet,
            "layer": layer,
            "size": size,
            "foreground": bool(foreground),
            "time_s": round(time_s, 4),
            "device": device_words(workbench),
        }
        context.results.put(key, wire.pack(arrays_of(found, sides), facts))
    return {"key": key}


def arrays_of(found: Pca, sides: Iterable[str]) -> dict[str, np.ndarray]:
    """`colours_`, `front_` and `components_` of each side, with rows for patches."""
    arrays = {}
    for side in sides:
        colours, front, components = (getattr(found, f"{name}{side}") for name in ("colours_", "front_", ""))
        arrays[f"colours_{side}"] = colours.reshape(-1, 3)
        arrays[f"front_{side}"] = front.reshape(-1).astype(np.uint8)
        arrays[f"components_{side}"] = components.reshape(-1, 3).astype(np.float32)
    return arrays
