"""What every part of the page is handed: the model being opened, the pictures, the results."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr

from memssl_core import paths
from memssl_core.errors import ModelError
from ui.curves import Stories
from ui.layouts import Layouts
from ui.messages import explain
from ui.shelves import Shelves
from ui.store import Pictures, Store

if TYPE_CHECKING:
    from analysis import Models, Workbench
    from analysis.probe import Probed
    from ui.probes import Probe

WAIT_S = 20
Visit = tuple[str, ...]  # the handles of one visitor's uploads, all that gr.State holds


@dataclass(frozen=True)
class Opened:
    """The models this server holds, and the one that the page opens with: its handle and where it came from."""

    models: Models
    handle: str
    source: str


def open_source(source: str, device: str) -> Opened:
    """What `opening` runs: import the heavy half and open the model. Raises what `open_model` raises."""
    from analysis import Models
    from memssl_core.device import choose_device

    models = Models(device=choose_device(device))
    return Opened(models, models.open(source), source)


@dataclass(frozen=True, kw_only=True)
class Training:
    """Training runs are offered to whoever may visit. None: no limit."""

    at_once: int = 1
    """how many train at a time; the others wait"""
    runs: int | None = None
    """how many are kept"""
    hours: float | None = None
    """how long one may work in all"""
    gigabytes: float | None = None
    """of the folder of runs"""


class Turns:
    """How many may do a heavy thing at once; the others wait, at most WAIT_S unless they say.

    A place goes to whoever waits longest, so that one who asks again and again leaves room for others in between.
    """

    def __init__(self, **places: int) -> None:
        self._free, self._lock = places, threading.Lock()
        self._waiting: dict[str, deque[threading.Event]] = {name: deque() for name in places}

    @contextmanager
    def take(self, name: str, *, wait_s: float = WAIT_S) -> Iterator[None]:
        """Raises ModelError, one sentence, when the turn does not come."""
        has_place = threading.Event()
        with self._lock:
            self._waiting[name].append(has_place)
            self._give(name)
        if not has_place.wait(wait_s):
            with self._lock:
                if not has_place.is_set():
                    self._waiting[name].remove(has_place)
                    raise ModelError("Too many people are asking at once; try again in a moment.")
        try:
            yield
        finally:
            with self._lock:
                self._free[name] += 1
                self._give(name)

    def _give(self, name: str) -> None:
        while self._free[name] and self._waiting[name]:
            self._free[name] -= 1
            self._waiting[name].popleft().set()


def bytes_of(parts: tuple[Probed, ...]) -> int:
    arrays = (array for part in parts for array in (part.embedding, part.layers))
    return sum(array.nbytes for array in arrays if array is not None)


@dataclass(frozen=True)
class Context:
    """`opening` becomes the model of `source` while the page is already being served."""

    source: str
    """as visitors read it"""
    opening: Future[Opened]
    offline: bool = False
    public: bool = False
    """visitors come from elsewhere: no folders of this machine by name, no jobs, only models that are here"""
    roots: Mapping[str, Path] = field(default_factory=dict)
    """folders that may be read, by their names"""
    runs: Path = field(default_factory=paths.runs_dir)
    training: Training | None = None
    """None: no run can be started, seen or changed from the page"""
    pictures: Pictures = field(default_factory=Pictures)
    results: Store[bytes] = field(default_factory=lambda: Store(256_000_000, len))
    probed: Store[tuple[Probed, ...]] = field(default_factory=lambda: Store(256_000_000, bytes_of))
    """sets of pictures, as far as a model has embedded them"""
    probes: Store[Probe] = field(default_factory=lambda: Store(32_000_000, lambda probe: probe.nbytes))
    """sets of thumbnails of memories"""
    layouts: Layouts = field(default_factory=Layouts)
    stories: Stories = field(default_factory=Stories)
    shelves: Shelves = field(default_factory=Shelves)
    turns: Turns = field(default_factory=lambda: Turns(model=1, decode=2, search=2, judge=1, fetch=2, start=1))

    @property
    def state(self) -> str:
        """`starting`, `ready` or `failed`."""
        if not self.opening.done():
            return "starting"
        return "failed" if self.opening.exception() else "ready"

    def opened(self) -> Opened:
        if not self.opening.done():
            raise ModelError("The model is still being opened; try again in a moment.")
        return self.opening.result()

    def workbench(self, handle: str | None = None) -> Workbench:
        """The model behind a handle of `page_facts`; without one, the model that the page opens with."""
        opened = self.opened()
        return opened.models[handle or opened.handle]

    def model_of(self, asked: dict) -> tuple[str, Workbench]:
        """The `model` that a question names by its handle, or else the one that the page opens with."""
        handle = str(asked.get("model") or self.opened().handle)
        return handle, self.workbench(handle)


def told(context: Context, source: str) -> str:
    """A source as it stands in an address, which leads back to it: bundles and runs that were made here by their names.

    To visitors from elsewhere nothing else of a folder is told either.
    """
    kind, _, rest = source.partition(":")
    home = {"bundle": paths.bundles_dir(), "run": context.runs}.get(kind)
    is_made_here = home is not None and Path(rest).absolute().parent == home.absolute()
    return paths.without_folders(source) if context.public or is_made_here else source


def device_words(workbench: Workbench) -> str:
    """'CPU' or 'CUDA'."""
    return workbench.device.type.upper()


def handler(context: Context, answer: Callable[[Context, Visit, dict], dict]) -> Callable[[Visit, gr.EventData], dict]:
    """A Gradio handler out of `answer(context, visit, asked)`: it unpacks the event and turns errors into sentences.

    The view's `ticket` comes back with the answer, so that the page can tell an old answer from the newest.
    """

    def handle(visit: Visit, event: gr.EventData) -> dict:
        asked = event._data if isinstance(event._data, dict) else {}
        try:
            result = answer(context, visit, asked)
        except Exception as error:
            result = {"error": explain(error)}
        return {"ticket": asked.get("ticket"), **result}

    return handle


# Our own turns in place of Gradio's queue: an answer comes 50 ms sooner, and none is lost when one event follows
# another while the queue's event stream is being closed. `asking.js` sends one question at a time, of many the last.
EVENT = {"queue": False, "trigger_mode": "multiple", "show_progress": "hidden", "api_visibility": "private"}
