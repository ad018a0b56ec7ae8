"""Named endpoints for programs (REST, gradio_client): the page's questions, by the parameter names of the design.

Gradio reads the return types of these functions from their signatures, so annotations stay unquoted here.
"""

import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, Literal

import gradio as gr
import numpy as np
from gradio.data_classes import FileData
from gradio.utils import get_upload_folder

from memssl_core.errors import ModelError
from ui.context import Context, told
from ui.header import offered
from ui.messages import explain
from ui.tray import uploaded

MAX_K = 1000


def add_endpoints(context: Context) -> None:
    """`attention`, `neighbours` and `model_card`. To be called inside the page's Blocks."""

    def attention(
        image: FileData, model: str | None = None, layer: int = -1, query: str = "cls", size: int | None = None
    ) -> tuple[FileData, dict[str, Any]]:
        """Attention rows of one transformer block: an npz file (rows, grid, n_prefix) and a summary."""
        workbench, picture = named(context, model), opened(image)
        with context.turns.take("model"):
            found = workbench.attention(picture, layer=layer, query=query, size=size)
        folder = tempfile.mkdtemp(dir=get_upload_folder())
        path = Path(folder, "attention.npz")
        np.savez(path, rows=found.rows, grid=np.array(found.grid), n_prefix=np.array(found.n_prefix))
        return FileData(path=str(path), orig_name=path.name), found.summary()

    def neighbours(
        image: FileData, space: Literal["memory", "embedding"] = "memory", k: int = 20, model: str | None = None
    ) -> list[dict[str, Any]]:
        """The k nearest memories, best first: id, score, image_id, uri, class_name, step, box."""
        if k > MAX_K:
            raise ModelError(f"k is {k}; ask for at most {MAX_K} neighbours.")
        workbench, picture = named(context, model), opened(image)
        with context.turns.take("model"):
            return workbench.neighbours(picture, space=space, k=k).records()

    def model_card(model: str | None = None) -> dict[str, Any]:
        """What is known of the model: architecture, data, memory, figures, hashes."""
        return named(context, model).model.card

    for endpoint in (attention, neighbours):
        gr.api(spoken(endpoint), api_name=endpoint.__name__, concurrency_id="model", concurrency_limit=1)
    gr.api(spoken(model_card), api_name="model_card", queue=False)


def named(context: Context, model: str | None):
    """The workbench of a handle that is open here, or of a source that the picker lists and that is cached.

    None is the model the page opens with.
    """
    if model in (None, context.source):
        return context.workbench()
    opened = context.opened()
    with suppress(ModelError):
        return opened.models[model]
    for entry in offered(context):
        if entry.cached and model in (entry.source, told(context, entry.source)):
            return opened.models[opened.models.open(entry.source)]
    raise ModelError("This model is not served here; leave `model` out, or name one that the page lists as cached.")


def opened(image: Any) -> bytes:
    """The file a program has uploaded; Gradio hands its FileData over as a plain dict."""
    return uploaded(image.get("path") if isinstance(image, dict) else None).read_bytes()


def spoken(endpoint: Callable) -> Callable:
    """The endpoint with its errors as one sentence."""

    @wraps(endpoint)
    def answer(*arguments: Any) -> Any:
        try:
            return endpoint(*arguments)
        except Exception as error:
            told = explain(error)
            raise gr.Error(f"{told['title']} {told['text']}", print_exception=False) from None

    return answer
