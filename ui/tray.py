"""The tray above a view: examples, this visit's pictures, and the way in for new ones."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from memssl_core.data.images import MAX_BYTES, TOO_LARGE_FILE, printable
from memssl_core.errors import ImageError
from ui.context import EVENT, Context, Visit
from ui.fetching import fetch
from ui.messages import explain
from ui.store import MAX_VISIT_PICTURES
from ui.views import view

MAX_NAME, MAX_NAME_BYTES = 80, 200  # the latter so that it can name a file, also after a number


def tray(context: Context, visit: gr.State, elem_id: str) -> None:
    squares = view("tray", events=["added"], elem_id=elem_id)

    def add(visit: Visit, event: gr.EventData) -> tuple[Visit, dict]:
        return add_picture(context, visit, event._data if isinstance(event._data, dict) else {})

    squares.added(add, visit, [visit, squares], **EVENT)


def add_picture(context: Context, visit: Visit, asked: dict) -> tuple[Visit, dict[str, Any]]:
    """`asked` {path, name} of an upload, or {url} -> the visit with its handle, {picture} or {error} for the tray."""
    ticket = {"ticket": asked.get("ticket")}
    try:
        if "url" in asked:
            data, name = fetched(context, asked["url"])
        else:
            data, name = uploaded(asked.get("path")).read_bytes(), asked.get("name")
        with context.turns.take("decode"):
            picture = context.pictures.add(data, short_name(name))
    except Exception as error:
        return visit, ticket | {"error": explain(error)}
    forgotten, kept = visit[: -MAX_VISIT_PICTURES + 1], visit[-MAX_VISIT_PICTURES + 1 :]
    context.pictures.drop(forgotten)
    return (*kept, picture.handle), ticket | {"picture": picture.facts()}


def uploaded(path: object) -> Path:
    """The path of an upload, as the page got it from Gradio; anything outside Gradio's own folder is refused."""
    found = None
    with suppress(OSError, ValueError):  # too long a name, a zero byte
        found = Path(str(path)).resolve()
    if not found or not found.is_relative_to(Path(get_upload_folder()).resolve()) or not found.is_file():
        raise ImageError("This file did not arrive here; add the picture again.")
    if found.stat().st_size > MAX_BYTES:
        raise ImageError(TOO_LARGE_FILE)
    return found


def fetched(context: Context, url: object) -> tuple[bytes, str]:
    """A picture by its address, and its name; not for visitors from elsewhere, who could reach with our hands."""
    if context.public:
        raise ImageError("This server fetches nothing for its visitors; save the picture and upload it.")
    if context.offline:
        raise ImageError("The page was started with --offline, so nothing is fetched; save the picture and upload it.")
    with context.turns.take("fetch"):
        return fetch(url if isinstance(url, str) else "")


def short_name(name: object) -> str:
    """The visitor's own name of a file, without folders and control characters, at most MAX_NAME characters and
    MAX_NAME_BYTES as UTF-8."""
    last = str(name or "").replace("\\", "/").rpartition("/")[2]
    short = printable(last)[-MAX_NAME:].encode(errors="replace")[-MAX_NAME_BYTES:]
    return short.decode(errors="ignore") or "picture"
