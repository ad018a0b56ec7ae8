"""What every part of the page is handed: the model being opened, the pictures, the results."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import gradio as gr

from memssl_core.errors import ModelError
from ui.messages import explain
from ui.store import Pictures, Store

if TYPE_CHECKING:
    from analysis import Workbench

Visit = tuple[str, ...]  # the handles of one visitor's uploads, all that gr.State holds


@dataclass(frozen=True)
class Context:
    """`opening` becomes the Workbench of `source` while the page is already being served."""

    source: str
    opening: Future[Workbench]
    offline: bool = False
    public: bool = False
    pictures: Pictures = field(default_factory=Pictures)
    results: Store[bytes] = field(default_factory=lambda: Store(256_000_000, len))

    @property
    def state(self) -> str:
        """`starting`, `ready` or `failed`."""
        if not self.opening.done():
            return "starting"
        return "failed" if self.opening.exception() else "ready"

    def workbench(self) -> Workbench:
        if not self.opening.done():
            raise ModelError("The model is still being opened; try again in a moment.")
        return self.opening.result()


def key_of(*parts: object) -> str:
    """A key for a result: the same parts give the same key, and an upload's handle keeps it unguessable."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def handler(answer: Callable[[Visit, dict], dict]) -> Callable[[Visit, gr.EventData], dict]:
    """A Gradio handler out of `answer(visit, asked)`: it unpacks the event and turns errors into sentences.

    The view's `ticket` comes back with the answer, so that the page can tell an old answer from the newest.
    """

    def handle(visit: Visit, event: gr.EventData) -> dict:
        asked = event._data if isinstance(event._data, dict) else {}
        try:
            result = answer(visit, asked)
        except Exception as error:
            result = {"error": explain(error)}
        return {"ticket": asked.get("ticket"), **result}

    return handle
