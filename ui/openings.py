"""Models on their way: each opening has a thread of its own, and all who want the same source wait for the same one."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import cachetools

from memssl_core.errors import ModelError
from ui.messages import explain

AT_ONCE = 6
TICKETS = 512  # the latest ones are remembered
SHORT_S = 1.5  # an opening that takes no longer is answered at once


@dataclass(eq=False)
class Opening:
    """One source being opened, and the tickets of those who wait for it."""

    source: str
    words: str = "starting"
    done: int = 0
    total: int | None = None
    """bytes that have come and bytes there are; None when unknown"""
    handle: str | None = None
    problem: dict[str, str] | None = None
    tickets: set[str] = field(default_factory=set)
    over: threading.Event = field(default_factory=threading.Event)
    began: float = field(default_factory=time.monotonic)

    def tell(self, words: str, done: int = 0, total: int | None = None) -> None:
        self.words, self.done, self.total = words, done, total

    @property
    def is_wanted(self) -> bool:
        return bool(self.tickets)

    @property
    def state(self) -> Literal["loading", "ready", "failed"]:
        if self.problem:
            return "failed"
        return "ready" if self.handle else "loading"

    def facts(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "words": self.words,
            "done": self.done,
            "total": self.total,
            "elapsed_s": round(time.monotonic() - self.began, 1),
        }


class Openings:
    """`open_source(opening)` brings and opens `opening.source`, tells how far it is, and returns the model's handle."""

    def __init__(self, open_source: Callable[[Opening], str]) -> None:
        self._open_source = open_source
        self._active: dict[str, Opening] = {}
        self._tickets: cachetools.LRUCache[str, Opening] = cachetools.LRUCache(TICKETS)
        self._lock = threading.Lock()

    def begin(self, source: str) -> str:
        """A ticket for the opening of `source`, which is started if it is not under way. ModelError if too many are."""
        with self._lock:
            opening = self._active.get(source)
            if opening is None:
                if len(self._active) >= AT_ONCE:
                    raise ModelError("Several other models are being opened just now; try again in a moment.")
                opening = self._active[source] = Opening(source)
                threading.Thread(target=self._run, args=[opening], daemon=True).start()
            ticket = secrets.token_urlsafe(12)
            opening.tickets.add(ticket)
            self._tickets[ticket] = opening
        opening.over.wait(SHORT_S)
        return ticket

    def get(self, ticket: str) -> Opening | None:
        with self._lock:
            return self._tickets.get(ticket)

    def cancel(self, ticket: str) -> None:
        """Wait no longer. The opening itself ends when nobody waits for it."""
        with self._lock:
            opening = self._tickets.pop(ticket, None)
            if opening is None:
                return
            opening.tickets.discard(ticket)
            if not opening.is_wanted:
                self._end(opening)

    def _run(self, opening: Opening) -> None:
        try:
            opening.handle = self._open_source(opening)
        except Exception as reason:
            opening.problem = explain(reason) | {"title": "This model could not be opened."}
        with self._lock:
            self._end(opening)
        opening.over.set()

    def _end(self, opening: Opening) -> None:
        if self._active.get(opening.source) is opening:
            del self._active[opening.source]
