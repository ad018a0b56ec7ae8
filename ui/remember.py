"""*Give it a memory*: which pictures, what it takes, and the job that does it."""

from __future__ import annotations

import re
import secrets
import shutil
import time
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from memssl_core import jobs, paths
from memssl_core.errors import ConfigError, DataError
from ui.context import Context
from ui.data import Data, Upload, count_of, spec_of
from ui.examples import examples
from ui.jobs import uploads_dir
from ui.messages import spoken
from ui.tray import short_name, uploaded

if TYPE_CHECKING:
    from analysis import Workbench

MAX_SLOTS = 131_072
BYTES_A_PICTURE = 1_300  # of a bundle: thumbnail and the row that goes with it, measured on photographs
BUNDLE_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,79}")


class Wish(BaseModel):
    model: str
    """a handle"""
    data: Data
    slots: int | None = Field(None, ge=1, le=MAX_SLOTS)
    name: str = ""


def add_remember_routes(api: APIRouter, context: Context) -> None:
    seconds: dict[str, float] = {}  # a picture takes, by handle

    @api.post("/remember/need")
    @spoken
    def need(wish: Wish) -> dict[str, Any]:
        workbench = context.workbench(wish.model)
        pictures = count_of(context, wish.data)
        slots = min(pictures or MAX_SLOTS, wish.slots or MAX_SLOTS)
        if wish.model not in seconds:
            with context.turns.take("model"):
                seconds[wish.model] = seconds_a_picture(workbench)
        return {
            "pictures": pictures,
            "slots": slots,
            "seconds": slots * seconds[wish.model],
            "nbytes": bundle_bytes(workbench, slots),
            "name": free_name(workbench.model.card["architecture"], wish.data),
        }

    @api.post("/remember")
    @spoken
    def remember(wish: Wish) -> dict[str, Any]:
        workbench = context.workbench(wish.model)
        model, out = workbench.model, paths.bundles_dir() / checked_name(wish.name)
        facts: dict[str, Any] = {"model": wish.model}
        if wish.data.kind == "uploads":
            facts["uploads"] = spec = collect(wish.data.uploads)
        else:
            spec = spec_of(context, wish.data)
        argv = ["remember", model.source, "--data", spec, "--out", str(out), "--device", workbench.device.type]
        argv += ["--slots", str(wish.slots)] if wish.slots else []
        job = jobs.start(argv, kind="remember", title=f"Memory {out.name}", facts=facts)
        return {"job": job.path.name}


def collect(uploads: list[Upload]) -> str:
    """Put uploaded pictures into a folder of their own, in the order in which they came."""
    if not uploads:
        raise DataError("No picture has arrived; choose some and try again.")
    found = [(uploaded(upload.path), short_name(upload.name)) for upload in uploads]
    folder = uploads_dir() / secrets.token_hex(8)
    folder.mkdir(parents=True)
    for number, (path, name) in enumerate(found):
        shutil.move(path, folder / f"{number:03d}-{name}")
    return str(folder)


def seconds_a_picture(workbench: Workbench) -> float:
    """Measured: reading and embedding one example picture, the second time."""
    picture = next(iter(examples().values())).read()
    time_s = 0.0
    for _ in range(2):
        start = time.perf_counter()
        workbench.embedding(picture, key=secrets.token_hex(8))  # a key of its own, so nothing comes from a cache
        time_s = time.perf_counter() - start
    return time_s


def bundle_bytes(workbench: Workbench, slots: int) -> int:
    """About how large a bundle with `slots` memories will be: weights in float32, vectors in float16, thumbnails."""
    model = workbench.model
    weights = model.nbytes - (model.memory.nbytes if model.memory else 0)
    width, projection = model.card["embedding_width"], model.card["projection_width"]
    return weights + slots * (2 * width + 2 * (projection or 0) + BYTES_A_PICTURE)


def free_name(architecture: str, data: Data) -> str:
    """A name that no bundle here has: what the model is and what it will remember."""
    what = {"folder": data.path.rpartition("/")[2] or data.root, "hub": data.name}.get(data.kind, data.kind)
    stem = re.sub(r"[^\w.-]+", "-", f"{architecture}-{what}", flags=re.ASCII).strip("-.")[:60]
    names = [stem, *(f"{stem}-{number}" for number in range(2, 100))]
    return next((name for name in names if not (paths.bundles_dir() / name).exists()), f"{stem}-{secrets.token_hex(3)}")


def checked_name(name: str) -> str:
    if not BUNDLE_NAME.fullmatch(name):
        raise ConfigError("A bundle's name has letters, digits, dots, dashes and underscores only; choose another one.")
    if (paths.bundles_dir() / name).exists():
        raise ConfigError(f"There is a bundle named {name} already; choose another name.")
    return name
