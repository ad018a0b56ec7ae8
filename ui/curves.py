"""A run's events as the page draws them: columns of numbers, thinned, and the marks between them."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import cachetools
import numpy as np

from memssl_core.jobs import read_events

Event = dict[str, Any]
Columns = dict[str, list]
MOST_POINTS = 2_000  # of a line
MOST_MARKS = 100  # of a kind, the newest
MOST_MESSAGE = 500  # characters
LINES = {"step": "steps", "probe": "probes"}
HISTORY = ("started", "resumed", "stopped", "failed", "finished", "skipped_image")
"""marks that stay when what followed them is void"""
MARKS = (*HISTORY, "saved", "alarm", "snapshot")
HEAD_BYTES = 64  # hold the time of the first event
_STEP_LINE = b'{"event": "step"'
_LARGEST = 2**53  # integers that every reader of JSON keeps


def told(path: Path, since: int, words: Callable[[str], str] = str) -> dict[str, Any]:
    """What a page that knows the events up to byte `since` lacks.

    `{next, steps, probes, marks}`, and `reset` where points beyond that step are void (-1: all), because the run was
    taken up again there or the file is another one. `words` makes messages fit to be read.
    """
    anew = since > 0 and not _is_a_line_end(path, since)
    if anew:
        since = 0
    events, after = read_events(path, since)
    lines, marks, reset = standing(well_formed(events))
    if since == 0:
        reset = -1 if anew else None
    answer: dict[str, Any] = {"next": after, **({} if reset is None else {"reset": reset})}
    answer |= {noun: {"columns": thinned(table(lines[kind]))} for kind, noun in LINES.items()}
    shown = [{**mark, "message": words(mark["message"])} if "message" in mark else mark for mark in newest(marks)]
    return answer | {"marks": shown}


def well_formed(events: Iterable[Any]) -> list[Event]:
    """Those that are events at all: a file may hold anything."""
    return [
        event
        for event in events
        if isinstance(event, dict)
        and isinstance(event.get("event"), str)
        and type(event.get("step")) is int
        and 0 <= event["step"] < _LARGEST
    ]


def standing(events: Iterable[Event]) -> tuple[dict[str, list[Event]], list[Event], int | None]:
    """What still holds: events of each of LINES, with rising steps, and marks; and the smallest step at which the run
    was taken up (-1: from the start), None if it was not.

    A run that is taken up at an earlier step, after a kill or from an older checkpoint, voids what lay beyond.
    """
    lines: dict[str, list[Event]] = {kind: [] for kind in LINES}
    marks: list[Event] = []
    reset = None
    for event in events:
        kind, step = event["event"], event["step"]
        if kind == "started":
            last = taken_up_at(event)
            reset = last if reset is None else min(reset, last)
            for line in lines.values():
                _cut(line, last)
            marks = [mark for mark in marks if mark["event"] in HISTORY or mark["step"] <= last]
        if kind in lines:
            _cut(lines[kind], step - 1)
            lines[kind].append(event)
        elif kind in MARKS:
            marks.append(_mark(event))
    return lines, marks, reset


def taken_up_at(started: Event) -> int:
    """The last step that stands when a run is `started`; -1 for a run that begins."""
    return started["step"] if started.get("resumed") else -1


def table(events: list[Event]) -> Columns:
    """`step` and every number that one of the events has, a row an event; None where it is missing or not finite."""
    columns = {name: _column(events, name) for name in dict.fromkeys(chain(["step"], *events))}
    return {name: values for name, values in columns.items() if name == "step" or any(x is not None for x in values)}


def _column(events: list[Event], name: str) -> list:
    values: list[Any] = [event.get(name) for event in events]
    if set(map(type, values)) == {float} and all(map(math.isfinite, values)):
        return values  # as nearly all are: a long run has millions
    return [value if _is_number(value) else None for value in values]


def thinned(columns: Columns, most: int = MOST_POINTS) -> Columns:
    """At most `most` (4 or more) rows that show the same curves.

    The first and the last row stay. Of each of the equal parts between them a column keeps its smallest and its largest
    value, in the order in which they came, at the part's first and last step.
    """
    count = len(columns["step"])
    if count <= most:
        return columns
    edges = np.rint(np.linspace(1, count - 1, (most - 2) // 2 + 1)).astype(int)
    kept = {}
    for name, values in columns.items():
        first, last = values[0], values[-1]
        if name == "step":
            pairs = [[values[low], values[high - 1]] for low, high in zip(edges, edges[1:], strict=False)]
        else:
            pairs = _extremes(np.array([math.nan if value is None else value for value in values], float), edges)
        kept[name] = [first, *(value for pair in pairs for value in pair), last]
    return kept


def newest(marks: list[Event]) -> list[Event]:
    """The newest MOST_MARKS of each kind, in their order."""
    left = dict.fromkeys(MARKS, MOST_MARKS)
    kept = []
    for mark in reversed(marks):
        left[mark["event"]] -= 1
        if left[mark["event"]] >= 0:
            kept.append(mark)
    return kept[::-1]


@dataclass
class Story:
    """What the list of runs needs of an event file, read on as it grows; of steps only the last is looked into."""

    offset: int = 0
    file: int = 0
    """its number on the disk"""
    head: bytes = b""
    """its first bytes: a file that takes the place of a deleted one may be given the same number"""
    first: Event | None = None
    started: Event | None = None
    last: Event | None = None
    step: Event | None = None
    probes: list[Event] = field(default_factory=list)
    alarm: Event | None = None
    ended_s: float = 0.0
    """time the run has worked up to its last start"""

    @property
    def worked_s(self) -> float:
        return self.ended_s + _between(self.started, self.last)

    def best(self, figure: str) -> list[float] | None:
        """[value, step] of the best probe by a figure."""
        found = [(value, -probe["step"]) for probe in self.probes if (value := number(probe, figure)) is not None]
        value, step = max(found, default=(None, 0))
        return None if value is None else [value, -step]

    def read(self, data: bytes) -> None:
        """Whole lines."""
        step = None
        for line in data.split(b"\n"):
            if self.first and line.startswith(_STEP_LINE):
                step = line
                continue
            for known in filter(None, (step, line)):
                self._hear(known)
            step = None
        if step:
            self._hear(step)

    def _hear(self, line: bytes) -> None:
        for event in well_formed(_parsed(line)):
            kind = event["event"]
            if kind == "started":
                self.ended_s += _between(self.started, self.last)
                self.started = event
                _cut(self.probes, taken_up_at(event))
            elif kind == "step":
                self.step = event
            elif kind == "probe":
                _cut(self.probes, event["step"] - 1)
                self.probes.append(event)
            elif kind == "alarm":
                self.alarm = event
            self.first, self.last = self.first or event, event


class Stories:
    """The stories of the event files that were asked for last. Safe across threads."""

    def __init__(self) -> None:
        self._known: cachetools.LRUCache[Path, Story] = cachetools.LRUCache(500)
        self._lock = threading.Lock()

    def of(self, path: Path) -> Story:
        with self._lock, suppress(OSError):
            stat = path.stat()
            story = self._known.get(path)
            if story is None or story.file != stat.st_ino or story.offset > stat.st_size:
                story = self._known[path] = Story(file=stat.st_ino)
            if story.offset < stat.st_size:
                with open(path, "rb") as file:
                    head = file.read(HEAD_BYTES)
                    if not head.startswith(story.head):
                        story = self._known[path] = Story(file=stat.st_ino)
                    story.head = head
                    file.seek(story.offset)
                    whole = file.read().rpartition(b"\n")[0]
                if whole:
                    story.read(whole)
                    story.offset += len(whole) + 1
            return story
        return Story()


def _mark(event: Event) -> Event:
    kind = "resumed" if event["event"] == "started" and event.get("resumed") else event["event"]
    message = event.get("message", event.get("restored"))
    mark = {"event": kind, "step": event["step"], "time_s": number(event, "time_s")}
    return mark | ({"message": message[:MOST_MESSAGE]} if isinstance(message, str) else {})


def _cut(line: list[Event], last: int) -> None:
    """Drop what lies beyond step `last`; steps rise."""
    while line and line[-1]["step"] > last:
        line.pop()


def _extremes(values: np.ndarray, edges: np.ndarray) -> list[list[float | None]]:
    """Of each part of `values` the smallest and the largest that is a number, the earlier one first."""
    inner, starts, sizes = values[edges[0] : edges[-1]], edges[:-1] - edges[0], np.diff(edges)
    at = np.arange(len(inner))
    both, places = [], []
    for extreme in (np.fmin, np.fmax):
        found = extreme.reduceat(inner, starts)
        is_it = inner == np.repeat(found, sizes)
        places.append(np.minimum.reduceat(np.where(is_it, at, len(at)), starts))
        both.append([None if math.isnan(value) else value for value in found.tolist()])
    rising = (places[0] <= places[1]).tolist()
    return [[low, high] if is_rising else [high, low] for low, high, is_rising in zip(*both, rising, strict=True)]


def number(event: Event | None, name: str) -> Any:
    """A number that JSON can carry, else None."""
    value = (event or {}).get(name)
    return value if _is_number(value) else None


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < _LARGEST if isinstance(value, int) else math.isfinite(value)


def _is_a_line_end(path: Path, offset: int) -> bool:
    try:
        with open(path, "rb") as file:
            file.seek(offset - 1)
            return file.read(1) == b"\n"
    except (OSError, ValueError, OverflowError):
        return False


def _between(started: Event | None, last: Event | None) -> float:
    begin, end = number(started, "time_s"), number(last, "time_s")
    return 0.0 if begin is None or end is None else max(0.0, end - begin)


def _parsed(line: bytes) -> list[Any]:
    with suppress(ValueError, RecursionError):
        return [json.loads(line)]
    return []
