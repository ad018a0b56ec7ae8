"""Making a gallery and bringing it up to date: of which pictures, what it takes, and the job that does it."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from gradio.utils import get_upload_folder
from pydantic import BaseModel, Field

from memssl_core import jobs, paths
from memssl_core.errors import DataError, ModelError
from ui.context import Context, told
from ui.data import Data, data_of, plainly, shown, spec_of
from ui.jobs import forget_uploads, uploads_dir
from ui.remember import collect
from ui.roots import ARCHIVE, TABLE, archive_inside, inside, table_inside
from ui.training import SettingError
from ui.tray import short_name, uploaded

if TYPE_CHECKING:
    from analysis import Workbench
    from analysis.update import Encoder

GONE = "The pictures of this gallery cannot be read from this page any more; say again of which it is to be made."


class Wish(BaseModel):
    name: str = Field("", max_length=200)
    data: Data | None = None
    """None: where the gallery's pictures came from before"""
    model: str | None = Field(None, max_length=80)
    """a handle"""
    again: bool = False
    """embed all pictures anew, also by another model"""


def add_update_routes(owners: APIRouter, context: Context) -> None:
    starting = threading.Lock()
    clearly = plainly(context)

    def checked(wish: Wish) -> tuple[str, Data, Workbench]:
        """The gallery's name, where its pictures come from, and the model. Raises what speaks against it."""
        from analysis.gallery import refuse_other

        workbench = context.workbench(wish.model)
        name = wish.name or free_name(wish.data)
        known = told_of(name)
        if known and not wish.again:
            refuse_other(name, known, workbench.model.model_hash, asdict(workbench.model.transform))
        data = wish.data or source_of(context, known)
        return name, data, workbench

    @owners.post("/galleries/need")
    @clearly
    def need(wish: Wish) -> dict[str, Any]:
        from analysis.update import need as need_of

        name, data, workbench = checked(wish)
        with laid_out(context, data) as spec:
            found = asdict(need_of(name, spec, encoder(context, workbench), again=wish.again))
        found["problems"] = [shown(context, sentence) for sentence in found["problems"]]
        return {"name": name, **found, "command": command(context, name, data, workbench, again=wish.again)}

    @owners.post("/galleries/update")
    @clearly
    def update(wish: Wish) -> dict[str, Any]:
        name, data, workbench = checked(wish)
        if not context.opened().models.is_current(wish.model or context.opened().handle):
            raise ModelError("This model has changed since it was opened; choose it again, then make the gallery.")
        asked = wish.model_dump() | {"name": name}
        with starting:  # of two who ask at once the second finds the job of the first
            if (job := going(name)) is not None:
                if (job.status() or {}).get("asked") != asked:
                    raise DataError(f"Gallery {name} is being updated just now; wait until that ends, or stop it.")
                return {"job": job.path.name, "name": name}
            facts: dict[str, Any] = {"gallery": name, "model": wish.model, "asked": asked}
            if is_upload(data):
                spec = collected(data)
                facts["uploads"] = str(Path(spec).parent if data.kind == "zip" else spec)
            else:
                spec = place_of(context, data)
            argv = ["gallery", name, "--data", spec, "--model", workbench.model.source]
            argv += ["--device", workbench.device.type, *(["--again"] if wish.again else [])]
            try:
                job = jobs.start(argv, kind="gallery", title=f"Gallery {name}", module="analysis", facts=facts)
            except BaseException:
                forget_uploads(facts)
                raise
        return {"job": job.path.name, "name": name}


# Jobs


def updates() -> Iterator[tuple[jobs.JobFolder, dict[str, Any]]]:
    """The jobs that bring galleries up to date, and how they stand, newest first."""
    for job in jobs.find():
        status = job.status() or {}
        if status.get("kind") == "gallery":
            yield job, status


def going(name: str) -> jobs.JobFolder | None:
    """The job that brings this gallery up to date now."""
    live = (job for job, status in updates() if status.get("gallery") == name and is_going(job, status))
    return next(live, None)


def is_going(job: jobs.JobFolder, status: dict[str, Any]) -> bool:
    return status["state"] in jobs.LIVE and not job.stop_requested()


def standing(context: Context) -> tuple[dict[str, str], dict[str, str]]:
    """By the names of galleries: the jobs that bring them up to date now; and why the last one failed."""
    live: dict[str, str] = {}
    problems: dict[str, str] = {}
    seen: set[str] = set()
    for job, status in updates():
        name = str(status.get("gallery"))
        if is_going(job, status):
            live.setdefault(name, job.path.name)
        elif name not in seen and status["state"] in ("failed", "lost"):
            reason = status.get("message") or "The update ended without a word; see its log among the jobs."
            problems[name] = shown(context, reason)
        seen.add(name)
    return live, problems


# Pictures


def told_of(name: str) -> dict[str, Any] | None:
    """What is known of a gallery, whole or not. SettingError for a name that cannot be one."""
    from analysis.gallery import gallery_folder, newest_claim, read_gallery

    try:
        root = gallery_folder(name)
    except ModelError as reason:
        raise SettingError(str(reason), "name") from None
    return read_gallery(root) or newest_claim(root)


def free_name(data: Data | None) -> str:
    """A name that no gallery here has, out of what its pictures are."""
    if data is None:
        raise SettingError("Say which gallery is to be updated.", "name")
    whole = data.path.rpartition("/")[2] or data.root
    if data.kind == "zip":
        whole = Path(short_name(data.uploads[0].name) if data.uploads else whole).stem
    stem = {"folder": whole, "zip": whole}.get(data.kind, data.kind)
    stem = re.sub(r"[^\w.-]+", "-", stem, flags=re.ASCII).strip("-._")[:60] or "gallery"
    names = (stem, *(f"{stem}-{number}" for number in range(2, 1000)))
    here, coming = paths.galleries_dir(), {status.get("gallery") for job, status in updates() if is_going(job, status)}
    free = (name for name in names if name not in coming and not os.path.lexists(here / name))
    return next(free, f"{stem}-{secrets.token_hex(3)}")


def readable(context: Context, spec: str) -> dict[str, Any] | None:
    """Where a gallery's pictures come from, if they may be read from the page without asking the Hub."""
    found = data_of(context, spec) or {"kind": "hub"}
    leads_out = "root" in found and not Path(spec).resolve().is_relative_to(context.roots[found["root"]])
    return None if found["kind"] == "hub" or leads_out else found


def source_of(context: Context, known: dict[str, Any] | None) -> Data:
    """Where a gallery's pictures came from, if that may be read from the page."""
    found = readable(context, str((known or {}).get("data", "")))
    if found is None:
        raise DataError(GONE)
    return Data(**found)


def place_of(context: Context, data: Data) -> str:
    """The source in the words of `open_pictures`. DataError if it may not be read. Links that lead out of a folder are
    not followed there, so they are no reason to refuse it."""
    if data.kind == "zip":
        return str(archive_inside(context.roots, data.root, data.path))
    if data.kind == "folder" and data.path.lower().endswith(TABLE):
        return str(table_inside(context.roots, data.root, data.path))
    if data.kind == "folder":
        return str(inside(context.roots, data.root, data.path))
    if data.kind == "hub":
        raise DataError("Pictures of the Hub come into a gallery by `python -m analysis gallery NAME --data hf:…`.")
    return spec_of(context, data)


def is_upload(data: Data) -> bool:
    return data.kind == "uploads" or (data.kind == "zip" and bool(data.uploads))


def arrived(data: Data) -> list[tuple[Path, str]]:
    """The uploaded files and their names. DataError if there are none, or they are not what they should be."""
    found = [(uploaded(upload.path), short_name(upload.name)) for upload in data.uploads]
    if not found:
        raise DataError("No picture has arrived; choose some and try again.")
    if data.kind == "zip" and (len(found) > 1 or not found[0][1].lower().endswith(ARCHIVE)):
        raise DataError("Choose one archive whose name ends in .zip, or several pictures.")
    return found


@contextmanager
def laid_out(context: Context, data: Data) -> Iterator[str]:
    """The source while it is looked at; uploads lie there as `collected` will put them, and stay where they are."""
    if not is_upload(data):
        yield place_of(context, data)
        return
    files = arrived(data)
    with TemporaryDirectory(dir=get_upload_folder()) as folder:
        for number, (path, name) in enumerate(files):
            to = Path(folder, name if data.kind == "zip" else f"{number:03d}-{name}")
            try:
                os.link(path, to)
            except OSError:  # a file system without links
                shutil.copy2(path, to)
        yield str(to) if data.kind == "zip" else folder


def collected(data: Data) -> str:
    """Uploads in a folder of their own, which goes when the job has ended; of an archive its path there."""
    ((path, name), *_) = arrived(data)
    if data.kind != "zip":
        return collect(data.uploads)
    folder = uploads_dir() / secrets.token_hex(8)
    folder.mkdir(parents=True)
    return str(shutil.move(path, folder / name))


# Embedding


def encoder(context: Context, workbench: Workbench) -> Encoder:
    """What embeds some pictures to tell how long all will take; it waits for its turn only then."""
    from analysis.update import encoder_of

    found = encoder_of(workbench.model, str(workbench.device))

    def embed(items: Iterable) -> Iterator:
        with context.turns.take("model"):
            yield from found.embed(items)

    return replace(found, embed=embed, nbytes=workbench.model.nbytes)


def command(context: Context, name: str, data: Data, workbench: Workbench, *, again: bool) -> str:
    """The command line that makes the same gallery; of uploads none."""
    if is_upload(data):
        return ""
    words = ["python", "-m", "analysis", "gallery", name, "--data", place_of(context, data)]
    words += ["--model", told(context, workbench.model.source), *(["--again"] if again else [])]
    return shlex.join(words)
