"""The model picker: what can be opened here, by whom, and opening it for one visitor."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from memssl_core import jobs, paths
from memssl_core.errors import HubError, ModelError
from ui.context import Context, told
from ui.facts import grouped, model_facts
from ui.messages import spoken
from ui.openings import Opening, Openings
from ui.runs import SHOWN, all_facts, steps_kept

if TYPE_CHECKING:
    from memssl_core.catalogue import Entry

MAX_SOURCE = 300  # characters
LOOK_S = 0.25  # between two looks at a download
LOST = "This is no longer known here; choose the model again."


class Wish(BaseModel):
    source: str = Field(max_length=MAX_SOURCE)


def add_model_routes(api: APIRouter, context: Context) -> None:
    """`models`, what the picker lists, and `open`, which brings one of them; the page asks again until it is there."""
    openings = Openings(lambda opening: open_for(context, opening))

    def tell(ticket: str) -> dict[str, Any]:
        opening = openings.get(ticket)
        if opening is None:
            raise ModelError(LOST)
        facts = {"ticket": ticket, "source": told(context, opening.source), **opening.facts()}
        if opening.problem:
            return facts | {"error": opening.problem}
        return facts | ({"model": model_facts(context, opening.handle)} if opening.handle else {})

    @api.get("/models")
    @spoken
    def models() -> dict[str, Any]:
        groups: dict[str, list] = {}
        for entry in offered(context):
            groups.setdefault(entry.group, []).append(row(context, entry))
        return {"groups": groups, "typed": not context.public}

    @api.post("/open")
    @spoken
    def begin(wish: Wish) -> dict[str, Any]:
        context.opened()  # says so while the first model is still on its way
        return tell(openings.begin(allowed(context, wish.source.strip())))

    @api.get("/open/{ticket}")
    @spoken
    def ask(ticket: str) -> dict[str, Any]:
        return tell(ticket)

    @api.post("/open/{ticket}/cancel")
    def cancel(ticket: str) -> dict[str, Any]:
        openings.cancel(ticket)
        return {}


def open_for(context: Context, opening: Opening) -> str:
    """Bring the opening's source if it is not here, open it and return its handle."""
    from memssl_core.sources import is_cached

    if not context.offline and not is_cached(opening.source):
        bring(opening)
    opening.tell("reading the weights")
    return context.opened().models.open(opening.source)


def bring(opening: Opening) -> None:
    """Fetch a source as a job, going on with one that is under way. HubError, as the job puts it, if it fails."""
    source = opening.source
    running = (job for job in jobs.find() if is_fetching(job, source))
    job = next(running, None) or jobs.start(
        ["fetch", source], kind="fetch", title=f"Download of {source}", facts={"source": source}
    )
    while (status := job.status() or {}).get("state") in jobs.LIVE:
        if not opening.is_wanted:
            job.request_stop()
            raise HubError("Stopped.")
        opening.tell(status.get("words") or "asking the Hub", status.get("step") or 0, status.get("total"))
        time.sleep(LOOK_S)
    if status.get("state") != "finished":
        raise HubError(status.get("message") or "The download ended too early; choose the model again to go on.")


def is_fetching(job: jobs.JobFolder, source: str) -> bool:
    status = job.status() or {}
    is_it = status.get("kind") == "fetch" and status.get("source") == source and status.get("state") in jobs.LIVE
    return is_it and not job.stop_requested()


def offered(context: Context) -> list[Entry]:
    """The catalogue; of it, visitors from elsewhere see what is here already."""
    from memssl_core.catalogue import catalogue

    entries = catalogue(runs=context.runs, bundles=paths.bundles_dir())
    return [entry for entry in entries if entry.cached] if context.public else entries


def checkpoints(context: Context) -> list[tuple[str, str]]:
    """(source, title) of every checkpoint that a run has kept, the newest run first; not for visitors from elsewhere,
    unless they may train."""
    if context.public and context.training is None:
        return []
    is_usual = context.runs.absolute() == paths.runs_dir().absolute()
    folders = [context.runs / run["id"] for run in all_facts(context)[:SHOWN]]
    return [
        (f"run:{folder.name if is_usual else folder.absolute()}@{step}", f"{folder.name}, step {grouped(step)}")
        for folder in folders
        for step in steps_kept(folder / "checkpoints", ".pt")
    ]


def allowed(context: Context, asked: str) -> str:
    """The source that a visitor means and may open. ModelError if visitors from elsewhere may not have it."""
    if asked == context.source:
        return context.opened().source
    sources = [*(entry.source for entry in offered(context)), *(source for source, _ in checkpoints(context))]
    for source in sources:
        if asked in (source, told(context, source)):
            return source
    if context.public:
        raise ModelError("Only models that are already on this server are shown here; choose one from the list.")
    if not asked:
        raise ModelError("Write what to open, for example timm:resnet18.a1_in1k or random:vit_tiny_patch16_224.")
    return asked


def row(context: Context, entry: Entry) -> dict[str, Any]:
    """A line of the list."""
    source = told(context, entry.source)
    is_bundle = entry.group == "bundles"  # known by the name it was given here
    return {
        "source": source,
        "title": source.rpartition(":")[2] if is_bundle else entry.title,
        "note": ", ".join(filter(None, (entry.title if is_bundle else "", entry.note))),
        "parameters": entry.parameters,
        "nbytes": entry.nbytes,
        "licence": entry.licence,
        "cached": entry.cached,
    }
