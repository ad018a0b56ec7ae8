"""A run tells its story as JSON lines: one event a line, `event`, `time_s` and `step` always, units in the names."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Emit = Callable[..., None]


def event_writer(path: Path, *also: Emit) -> Emit:
    """emit(event, step=..., **facts): appends a line to `path` and hands the same to every listener in `also`."""

    def emit(event: str, *, step: int, **facts: Any) -> None:
        line = {"event": event, "time_s": round(time.time(), 3), "step": step}
        line |= {name: _plain(value) for name, value in facts.items()}
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for listener in also:
            listener(event, step=step, **facts)

    return emit


def read_events(path: Path) -> list[dict[str, Any]]:
    """Every whole line of an event file; a last line cut off by a crash is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
