"""Panel *Which head matters*: what a model loses when one of its attention heads is silenced."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from memssl_core.errors import ModelError
from ui.context import EVENT, Context, Visit, handler
from ui.store import key_of
from ui.views import view

if TYPE_CHECKING:
    from analysis import Workbench

TOP = 20  # memories that should stay


def head_panel(context: Context, visit: gr.State) -> None:
    table = view("headtable", events=["asked"], elem_id="headtable")
    table.asked(handler(context, show), visit, table, **EVENT)


def show(context: Context, visit: Visit, asked: dict) -> dict[str, Any]:
    """`asked` {ask: block, model, handle, block} -> a row of the table; see `analysis.heads.HeadRow`.

    The page asks block by block: its progress is the rows that came, and not to ask on is to cancel.
    """
    handle, workbench = context.model_of(asked)
    picture = context.pictures.of_visit(str(asked.get("handle")), visit)
    block = asked.get("block")
    if why := workbench.model.card["why_no_attention"]:
        raise ModelError(why)
    if asked.get("ask") != "block" or type(block) is not int or not 0 <= block < workbench.model.card["blocks"]:
        raise ModelError("This model has no such transformer block; measure the table again.")
    key = key_of("heads", handle, picture.handle, block)
    kept = context.results.get(key)
    if kept is None:
        kept = json.dumps(row(context, workbench, picture.data, block), allow_nan=False).encode()
        context.results.put(key, kept)
    return json.loads(kept)


def row(context: Context, workbench: Workbench, data: bytes, block: int) -> dict[str, Any]:
    """Plain values of one transformer block, in turns: others may ask between some attention heads and the next.

    `time_s` is what the turns took, without the waiting for them.
    """
    time_s = 0.0

    @contextmanager
    def turn() -> Iterator[None]:
        nonlocal time_s
        with context.turns.take("model"):
            start = time.perf_counter()
            yield
            time_s += time.perf_counter() - start

    found = workbench.head_row(data, block, TOP, turn=turn)
    names = ("block", "kl", "kept", "moved", "top", "slots", "temperature")
    told = {name: getattr(found, name) for name in names}
    plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in told.items()}
    return plain | {"time_s": round(time_s, 4)}


def table(context: Context, workbench: Workbench, data: bytes, top: int) -> dict[str, Any]:
    """Of all transformer blocks: `kl`, `kept` and `moved` are lists of them, None where nothing can be said."""
    measured = workbench.head_table(data, top, turn=lambda: context.turns.take("model")).summary()
    return {name: measured[name] for name in ("kl", "kept", "moved", "top", "slots", "temperature")}
