"""Snapshots of a run over HTTP: what the teacher saw in pinned pictures, and its memory on fixed axes."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from memssl_core.errors import MemsslError, RunError
from ui import wire
from ui.answers import cached
from ui.context import Context
from ui.data import refusal
from ui.runs import named
from ui.store import key_of

if TYPE_CHECKING:
    from analysis.turning import Axes
    from memssl_core.training.snapshots import Snapshot

BYTES = "application/octet-stream"
NO_PICTURE = "No picture was kept here."
Make = Callable[[Path], tuple[bytes, str]]
"""of a snapshot's file: what is sent, and its media type"""


def add_snapshot_routes(api: APIRouter, context: Context) -> None:
    """`runs/NAME/snapshots/STEP`, and below it the map and the pictures."""

    def answer(request: Request, name: str, step: int, what: str, make: Make) -> Response:
        folder = named(context, name)
        try:
            path = file_of(folder, step)
            response = cached(request, key_of(folder, *stamp(path), what), lambda: make(path))
        except MemsslError as reason:
            return JSONResponse(refusal(context, reason), status_code=404)
        response.headers["Cache-Control"] = "private, no-cache"  # another run may get the name of one that was deleted
        return response

    def picture(request: Request, name: str, step: int, what: str, find: Callable[[Snapshot], bytes]) -> Response:
        def make(path: Path) -> tuple[bytes, str]:
            data = find(snapshot_at(path))
            if not data:
                raise RunError(NO_PICTURE)
            return data, "image/jpeg" if data.startswith(b"\xff\xd8") else "image/webp"

        return answer(request, name, step, what, make)

    @api.get("/runs/{name}/snapshots/{step}", response_model=None)
    def snapshot(request: Request, name: str, step: int) -> Response:
        return answer(request, name, step, "film", lambda path: (film(snapshot_at(path)), BYTES))

    @api.get("/runs/{name}/snapshots/{step}/map", response_model=None)
    def turned(request: Request, name: str, step: int, axes: int) -> Response:
        before = step_before(named(context, name), step)

        def make(path: Path) -> tuple[bytes, str]:
            on = file_of(path.parents[1], axes)
            key = key_of("turned", *stamp(path), *stamp(on), before)
            data = context.results.get(key)
            if data is None:
                data = memory_map(snapshot_at(path), snapshot_at(on), _axes(*stamp(on)), before)
                context.results.put(key, data)
            return data, BYTES

        return answer(request, name, step, f"map on {axes} since {before}", make)

    @api.get("/runs/{name}/snapshots/{step}/picture/{i}", response_model=None)
    def pinned(request: Request, name: str, step: int, i: int) -> Response:
        return picture(request, name, step, f"picture {i}", lambda it: nth(it.pictures, i))

    @api.get("/runs/{name}/snapshots/{step}/recalled/{i}/{j}", response_model=None)
    def recalled(request: Request, name: str, step: int, i: int, j: int) -> Response:
        return picture(request, name, step, f"recalled {i} {j}", lambda it: nth(nth(it.recalled_pictures, i), j))

    @api.get("/runs/{name}/snapshots/{step}/crops", response_model=None)
    def crops(request: Request, name: str, step: int) -> Response:
        return picture(request, name, step, "crops", lambda it: it.crops)


def file_of(folder: Path, step: int) -> Path:
    """RunError if a run has no snapshot of that step (any more)."""
    from memssl_core.training.snapshots import snapshot_files, step_of

    found = next((path for path in snapshot_files(folder) if step_of(path) == step), None)
    if found is None:
        raise RunError(f"There is no snapshot of step {step} (any more); choose another one.")
    return found


def stamp(path: Path) -> tuple[Path, int, int]:
    """Changes when the file does."""
    try:
        stat = path.stat()
    except OSError:
        raise RunError("This snapshot is not there any more; choose another one.") from None
    return path, stat.st_mtime_ns, stat.st_size


def snapshot_at(path: Path) -> Snapshot:
    return _read(*stamp(path))


@lru_cache(8)  # of at most 5 MB each
def _read(path: Path, *_: int) -> Snapshot:
    from memssl_core.training.snapshots import read

    return read(path)


@lru_cache(16)
def _axes(path: Path, *_: int) -> Axes:
    from analysis.turning import axes_of

    return axes_of(snapshot_at(path))


def film(snapshot: Snapshot) -> bytes:
    """What the teacher sees in the pinned pictures: attention uint8 [P, rows, columns], each to its own largest."""
    arrays, facts = {}, {}
    if snapshot.attention is not None:
        weights = snapshot.attention.astype(np.float32)
        largest = weights.max((1, 2))
        arrays["attention"] = np.rint(255 * weights / np.maximum(largest, 1e-12)[:, None, None]).astype(np.uint8)
        facts = {"attention_max": largest.tolist(), "rows": weights.shape[1], "columns": weights.shape[2]}
    rows = zip(
        snapshot.recalled_slots.tolist(),
        snapshot.recalled_scores.tolist(),
        snapshot.recalled_names,
        snapshot.recalled_at.tolist(),
        snapshot.recalled_pictures,
        strict=True,
    )
    told = {
        "step": snapshot.step,
        "total": snapshot.total,
        "cursor": snapshot.cursor,
        "written": snapshot.written,
        "pictures": len(snapshot.pictures),
        "picture_names": snapshot.picture_names,
        "recalled": [
            [
                {"slot": slot, "score": score, "name": name, "at": at, "pictured": bool(kept)}
                for slot, score, name, at, kept in zip(*row, strict=True)
            ]
            for row in rows
        ],
        "has_crops": bool(snapshot.crops),
        "views": snapshot.crops_views,
    }
    return wire.pack(arrays, told | facts)


def step_before(folder: Path, step: int) -> int:
    """Of the snapshot before that of `step`; 0 if there is none."""
    from memssl_core.training.snapshots import snapshot_files, step_of

    return max((earlier for path in snapshot_files(folder) if (earlier := step_of(path)) < step), default=0)


def memory_map(snapshot: Snapshot, on: Snapshot, axes: Axes, before: int) -> bytes:
    """`x`, `y` uint16 [M] of the slots of a snapshot on the axes of another; `age` uint8 [M]; `fresh` uint8 [M], 1
    where a key was written since step `before`; `slots` int32 [M]. RunError if they are of different memories.
    """
    from analysis.turning import ages, written_since

    if on.vectors.shape[1] != snapshot.vectors.shape[1]:
        raise RunError("These snapshots are of different memories; choose other ones.")
    x, y = axes.places(snapshot.vectors).T
    fresh = written_since(snapshot.written_at, before).astype(np.uint8)
    facts = {
        "step": snapshot.step,
        "axes": on.step,
        "points": len(snapshot.slots),
        "total": snapshot.total,
        "cursor": snapshot.cursor,
        "written": snapshot.written,
        "before": before,
    }
    arrays = {"x": x, "y": y, "age": ages(snapshot.written_at), "fresh": fresh}
    return wire.pack(arrays | {"slots": snapshot.slots.astype(np.int32)}, facts)


def nth(values: tuple, i: int) -> Any:
    """RunError for a number that no value has."""
    if not 0 <= i < len(values):
        raise RunError(NO_PICTURE)
    return values[i]
