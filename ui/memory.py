"""Tab *Memory*: a picture in, the memories it is nearest to out."""

from __future__ import annotations

import json
import time
from typing import Any

import gradio as gr

from memssl_core.errors import ModelError
from ui.context import EVENT, Context, Visit, handler
from ui.store import key_of
from ui.views import view

COUNTS = (10, 20, 50)


def memory_tab(context: Context, visit: gr.State) -> None:
    tiles = view("neighbours", events=["asked"], elem_id="neighbours")
    tiles.asked(handler(context, show), visit, tiles, **EVENT)


def show(context: Context, visit: Visit, asked: dict) -> dict[str, Any]:
    """`asked` {model, handle, space, k} -> {key} of the JSON at `api/neighbours/KEY`, computed if it is not there."""
    handle, workbench = context.model_of(asked)
    picture = context.pictures.of_visit(str(asked.get("handle")), visit)
    space, k = asked.get("space"), asked.get("k")
    if space not in ("memory", "embedding") or k not in COUNTS:
        raise ModelError("This question is not offered; choose a space and a count from the page.")
    key = key_of("neighbours", handle, picture.handle, space, k)
    if context.results.get(key) is None:
        with context.turns.take("model"):
            start = time.perf_counter()
            found = workbench.neighbours(picture.data, space=space, k=k)
            time_s = time.perf_counter() - start
        memory, transform = workbench.model.memory, workbench.model.transform
        assert memory is not None  # `neighbours` has refused such a model
        shown = {
            "rows": [tile(handle, row, score) for row, score in zip(found.rows, found.scores.tolist(), strict=True)],
            "space": found.space,
            "exact": found.exact,
            "time_s": round(time_s, 4),
            "crop": transform.crop_box(picture.width, picture.height),
            "crop_px": transform.crop_px,
            "last_step": int(memory.step.max()),
        }
        context.results.put(key, json.dumps(shown, allow_nan=False).encode())
    return {"key": key}


def tile(model: str, row: dict, score: float) -> dict[str, Any]:
    """A neighbour as the page shows it. `thumb` is a route, None where no picture was kept; so is `box`, the crop."""
    x0, y0, x1, y1 = row["box"]
    return {
        "slot": row["slot"],
        "score": score,
        "class_name": row["class_name"],
        "image_id": row["image_id"],
        "step": row["step"],
        "box": row["box"] if x1 > x0 and y1 > y0 else None,
        "thumb": f"api/thumb/{model}/{row['slot']}" if row["has_thumbnail"] else None,
    }
