"""Where pictures come from, as the page asks for it and as it is told: declared folders, the drawn gallery, the Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, Field

from memssl_core.data.images import printable
from memssl_core.errors import DataError, MemsslError
from memssl_core.paths import without_folders
from ui.context import Context
from ui.messages import explain, spoken
from ui.roots import ARCHIVE, TABLE, inside, listing, refuse_links_out, table_inside

MAX_UPLOADS, MAX_DRAWN = 200, 100_000
DRAWN_SEED = 0
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*){1,2}(:\w[\w.-]*)?")
_DRAWN = re.compile(rf"drawn:{DRAWN_SEED}:(\d{{1,6}})")
_FOLDERS = re.compile(r"(?<![\w/.~])~?/(?!/)(?:[^\s/'\",;:()]+/)*([^\s/'\",;:()]+)")


class Upload(BaseModel):
    path: str = Field(max_length=4000)
    name: str = Field(max_length=1000)


class Data(BaseModel):
    """Where the pictures come from; only the fields of its kind are read."""

    kind: Literal["folder", "drawn", "hub", "uploads", "zip"]
    root: str = Field("", max_length=200)
    path: str = Field("", max_length=4000)
    """below the root: a folder, a table of pictures, or an archive of some"""
    count: int = 0
    """of the drawn gallery, or of pictures that will be uploaded"""
    name: str = Field("", max_length=200)
    """of a data set on the Hub: OWNER/NAME[/CONFIG][:SPLIT]"""
    uploads: list[Upload] = Field([], max_length=MAX_UPLOADS)
    """pictures, or one zip"""


def add_data_routes(api: APIRouter, context: Context) -> None:
    @api.get("/folders")
    @spoken
    def folders(root: str, path: str = "") -> dict[str, Any]:
        return listing(context.roots, root, path)


def spec_of(context: Context, data: Data) -> str:
    """The data source in the words of `open_stream`. DataError if it may not be read, or is none."""
    if data.kind == "folder":
        if data.path.lower().endswith(TABLE):
            return str(table_inside(context.roots, data.root, data.path))
        folder = inside(context.roots, data.root, data.path)
        refuse_links_out(folder, context.roots[data.root])
        return str(folder)
    if data.kind == "drawn":
        if not 1 <= data.count <= MAX_DRAWN:
            raise DataError(f"The drawn gallery is offered with 1 to {MAX_DRAWN} pictures; choose another count.")
        return f"drawn:{DRAWN_SEED}:{data.count}"
    if data.kind in ("uploads", "zip"):
        raise DataError("Uploads and archives cannot be used for this; name a folder with --root.")
    if context.public:
        raise DataError("Data sets of the Hub are not fetched for visitors; choose another source.")
    if not HUB_NAME.fullmatch(data.name):
        raise DataError("This is no name of a data set on the Hub; write OWNER/NAME, if need be with :SPLIT.")
    if context.offline:
        raise DataError("The page was started with --offline, so the Hub is not asked; choose another source.")
    return f"hf:{data.name}"


def count_of(context: Context, data: Data) -> int | None:
    """How many pictures there are; None where only reading them would tell."""
    if data.kind == "uploads":
        if not 1 <= data.count <= MAX_UPLOADS:
            raise DataError(f"Choose 1 to {MAX_UPLOADS} pictures to upload; for more, name their folder with --root.")
        return data.count
    from memssl_core.data.streams import open_stream

    spec = spec_of(context, data)
    try:
        return open_stream(spec).count
    except DataError:
        if data.kind != "folder" or spec.lower().endswith(TABLE):
            raise
        raise DataError("There are no pictures in this folder; open one that has some, in it or below it.") from None


def data_of(context: Context, spec: str) -> dict[str, Any] | None:
    """What `spec_of` made a source of; None for one that it does not make, or that is declared here no more."""
    if drawn := _DRAWN.fullmatch(spec):
        count = int(drawn[1])
        return {"kind": "drawn", "count": count} if 1 <= count <= MAX_DRAWN else None
    if spec.startswith("hf:"):
        name = spec.removeprefix("hf:")
        return {"kind": "hub", "name": name} if HUB_NAME.fullmatch(name) else None
    for name, root in context.roots.items():
        if os.path.isabs(spec) and ".." not in Path(spec).parts and Path(spec).is_relative_to(root):
            path = Path(spec).relative_to(root).as_posix()
            kind = "zip" if path.lower().endswith(ARCHIVE) and os.path.isfile(spec) else "folder"
            return {"kind": kind, "root": name, "path": "" if path == "." else path}
    return None


def words_of(context: Context, spec: str) -> str:
    """A data source as a person reads it: folders by the names they have here, others by their last names."""
    found = data_of(context, spec) or {}
    if "root" in found:
        return printable("/".join(filter(None, (found["root"], found["path"]))))
    return printable(without_folders(spec))


def shown(context: Context, text: str) -> str:
    """A sentence without the folders of this machine, and without what cannot be shown or sent."""
    for name, root in sorted(context.roots.items(), key=lambda known: -len(str(known[1]))):
        if root != Path(root.anchor):
            text = re.sub(re.escape(str(root)) + r"(?![\w-])", lambda _, name=name: name, text)
    return printable(_FOLDERS.sub(lambda path: path[1], text))


def plainly(context: Context) -> Callable:
    """A decorator like `spoken`: a mistake comes back as `{error: {title, text}}`, without folders of this machine.

    With `field`, what in a form it is about, if the mistake tells.
    """

    def decorate(answer: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(answer)
        def speak(*arguments: Any, **named: Any) -> Any:
            try:
                return answer(*arguments, **named)
            except HTTPException:
                raise
            except Exception as reason:
                return refusal(context, reason)

        return speak

    return decorate


def refusal(context: Context, reason: Exception) -> dict[str, Any]:
    told = explain(reason)
    field = getattr(reason, "field", "data" if isinstance(reason, DataError) else "")
    is_ours = isinstance(reason, MemsslError)
    told["text"] = shown(context, told["text"]) if is_ours else told["text"]
    return {"error": told, **({"field": field} if field else {})}
