"""Training runs on the page: found on disk, told in changes, followed, stopped, taken up again, renamed and deleted."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Response
from pydantic import BaseModel, Field

from memssl_core.data.images import printable
from memssl_core.errors import MemsslError, ModelError, RunError
from memssl_core.jobs import LIVE, JobFolder
from memssl_core.training.start import explained
from ui.context import Context
from ui.curves import Event, Story, number, told
from ui.data import data_of, plainly, shown, words_of

if TYPE_CHECKING:
    from memssl_core.config import TrainConfig

SHOWN = 100  # the newest ones
FIGURES = ("knn_top1", "rankme")  # of which the best checkpoint is kept
ENDED = {
    "stopped": "It was already stopped in another tab.",
    "finished": "It has finished meanwhile.",
    "failed": "It has failed meanwhile; it says why.",
    "lost": "It has ended without a word meanwhile.",
}
STATES = (*LIVE, *ENDED)
WORDS = ("words", "message")
CHANGED = "It has changed in another tab meanwhile; look at it again, then repeat this."
BY_MISTAKE = "It ended by a mistake of ours; log.txt in its folder has the details. Resume it from its last checkpoint."
_TYPE_NAME = re.compile(r"^[\w.]*(Error|Exception|Interrupt|Exit)\b")


class Click(BaseModel):
    rev: str = Field("", max_length=100)
    """of the run as it stood on the page"""


class Renaming(Click):
    name: str = Field(max_length=200)


def add_run_routes(api: APIRouter, context: Context) -> None:
    """`runs` and what can be asked of one."""
    clearly = plainly(context)

    @api.get("/runs", response_model=None)
    @clearly
    def listed(known: Annotated[str, Query(max_length=10_000)] = "") -> dict[str, Any] | Response:
        """`{now_s, runs}` newest first; of those in `known` (`rev,rev,…`) only `{id, rev}`; 204 if nothing changed."""
        give_way(context)
        runs = all_facts(context)[:SHOWN]
        had = known.split(",") if known else []
        if had == [run["rev"] for run in runs]:
            return Response(status_code=204)
        changed = [run if run["rev"] not in had else {"id": run["id"], "rev": run["rev"]} for run in runs]
        return {"now_s": time.time(), "runs": changed}

    @api.get("/runs/{name}")
    @clearly
    def one(name: str) -> dict[str, Any]:
        return details(context, named(context, name))

    @api.get("/runs/{name}/events")
    @clearly
    def events(name: str, since: Annotated[int, Query(ge=0, lt=2**63)] = 0) -> dict[str, Any]:
        return told(JobFolder(named(context, name)).events, since, partial(shown, context))

    @api.post("/runs/{name}/stop")
    @clearly
    def stop(name: str, click: Click) -> dict[str, Any]:
        run = live(context, name)
        if run["stopping"]:
            raise RunError("It is being stopped already.")
        with explained(context.runs / name):
            JobFolder(context.runs / name).request_stop()
        return {}

    @api.post("/runs/{name}/save")
    @clearly
    def save(name: str, click: Click) -> dict[str, Any]:
        run = live(context, name)
        if run["state"] == "waiting":
            raise RunError("It has not begun yet, so there is nothing to save.")
        if not run["stopping"]:  # which saves, too
            with explained(context.runs / name):
                JobFolder(context.runs / name).request_save()
        return {}

    @api.post("/runs/{name}/kill")
    @clearly
    def kill(name: str, click: Click) -> dict[str, Any]:
        if not live(context, name)["stopping"]:
            raise RunError("Ask it to stop first; it can be ended without saving when that takes long.")
        if not JobFolder(context.runs / name).kill():
            raise RunError("It could not be ended; try again.")
        return {}

    @api.post("/runs/{name}/resume")
    @clearly
    def resume(name: str, click: Click) -> dict[str, Any]:
        from memssl_core.training.start import resume_run, settings_of

        with context.turns.take("start"):
            folder = ended(context, name, click, "It was already taken up again in another tab.")
            found = data_of(context, settings_of(folder)[1]) or {}
            if context.public and found.get("kind") not in ("folder", "drawn"):
                raise RunError("Its pictures are in no folder that is declared on this server; start it again there.")
            refuse_beyond(context, still_to_write(context, folder))
            at_once = context.training.at_once if context.training else 1
            resume_run(folder, at_once=at_once, hours=hours_left(context, context.stories.of(JobFolder(folder).events)))
        give_way(context)
        return {}

    @api.post("/runs/{name}/delete")
    @clearly
    def delete(name: str, click: Click) -> dict[str, Any]:
        from memssl_core.training.start import delete_run

        delete_run(ended(context, name, click, "It was taken up again in another tab; stop it first."))
        return {}

    @api.post("/runs/{name}/rename")
    @clearly
    def rename(name: str, wish: Renaming) -> dict[str, Any]:
        from memssl_core.training.start import rename_run

        folder = ended(context, name, wish, "It is running, so it keeps its name; stop it first.")
        return {"run": rename_run(folder, wish.name.strip()).name}


# Which runs there are


def run_folders(context: Context) -> list[Path]:
    """Of training runs; links, and names that cannot be shown, are passed over."""
    from memssl_core.training.start import is_run

    try:
        with os.scandir(context.runs) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    folders = (context.runs / name for name in names if not name.startswith(".") and name.isprintable())
    return [folder for folder in folders if is_run(folder)]


def named(context: Context, name: str) -> Path:
    """The folder of the run of that name; 404 for anything else."""
    found = next((folder for folder in run_folders(context) if folder.name == name), None)
    if found is None:
        raise HTTPException(404, "There is no such run (any more).")
    return found


def live(context: Context, name: str) -> dict[str, Any]:
    """The facts of a run that goes on. RunError says what has become of one that does not."""
    run = facts(context, named(context, name))
    if run["state"] not in LIVE:
        raise RunError(ENDED[run["state"]])
    return run


def ended(context: Context, name: str, click: Click, otherwise: str) -> Path:
    """The folder of a run that has ended and stands as the page shows it. RunError: `otherwise` if it goes on."""
    folder = named(context, name)
    run = facts(context, folder)
    if run["state"] in LIVE:
        raise RunError(otherwise)
    if run["rev"] != click.rev:
        raise RunError(CHANGED)
    return folder


# What is told of them


def all_facts(context: Context) -> list[dict[str, Any]]:
    """Newest first."""
    found = [facts(context, folder) for folder in run_folders(context)]
    return sorted(found, key=lambda run: (-run["started_s"], run["id"]))


def facts(context: Context, folder: Path) -> dict[str, Any]:
    """A run as the page shows it; `rev` changes when anything else of it does."""
    job = JobFolder(folder)
    status, story = status_of(context, job), context.stories.of(job.events)
    state = status["state"]
    is_live = state in LIVE
    step = story.step
    newest = step if state == "running" and _time(step) >= _time(story.started) else None
    probe = story.probes[-1] if story.probes else None
    kept = steps_kept(folder / "checkpoints", ".pt")
    preset, data = _preset_and_data(folder)
    told_of = {
        "id": folder.name,
        "state": state,
        "stopping": is_live and job.stop_requested(),
        "saving": is_live and job.save_requested(),
        "words": status["words"],
        "step": _step(status, story),
        "steps": status.get("steps") or number(story.started, "steps"),
        "started_s": _time(story.first) or status.get("started_s") or _written_at(folder) / 1e9,
        "told_s": status.get("heartbeat_s"),
        "worked_s": round(story.worked_s, 1),
        "preset": preset,
        "data": words_of(context, data),
        "processes": number(story.started, "processes") or status.get("processes") or 1,
        "loss": number(step, "loss"),
        "knn_top1": number(probe, "knn_top1"),
        "eta_s": number(newest, "eta_s"),
        "images_per_s": number(newest, "images_per_s"),
        "alarm": shown(context, str((story.alarm or {}).get("message") or "")),
        "has_checkpoint": bool(kept),
        "source": f"run:{folder.name}" if kept or (folder / "bundle").is_dir() else None,
    }
    told_of["message"] = message(context, status["message"], told_of, kept)
    lasting = {name: value for name, value in told_of.items() if name != "told_s" or not is_live}
    return told_of | {"rev": hashlib.blake2b(json.dumps(lasting).encode(), digest_size=8).hexdigest()}


def status_of(context: Context, job: JobFolder) -> dict[str, Any]:
    """The status of a run without what is not of its kind: one damaged folder is not to hide the others."""
    found = job.status() or {}
    state, numbers = found.get("state"), ("step", "steps", "heartbeat_s", "started_s", "processes", "disk_bytes")
    words = {name: shown(context, told) if isinstance(told := found.get(name), str) else "" for name in WORDS}
    return {name: number(found, name) for name in numbers} | words | {"state": state if state in STATES else "lost"}


def message(context: Context, said: str, run: dict[str, Any], kept: list[int]) -> str:
    """What has become of a run, and what to do, where the state alone does not say it. `said`: by its status."""
    if run["state"] == "lost":
        at = f" at step {run['step']}" if run["step"] else ""
        left = f"Its checkpoint of step {kept[-1]} stands: resume it, or open it." if kept else ""
        left = left or "It had saved nothing yet: resume it, and it begins anew."
        if JobFolder(context.runs / run["id"]).stop_requested():
            return f"It was ended{at} before it had saved. {left}"
        why = "as when the machine runs out of memory or the process is killed"
        return f"It ended without a word{at}, {why}. {left}"
    if run["state"] == "failed":
        return said if said and not _TYPE_NAME.match(said) else BY_MISTAKE
    return said if run["state"] == "stopped" else ""


def details(context: Context, folder: Path) -> dict[str, Any]:
    """A run with its settings, and what of it can be opened and looked at."""
    from memssl_core.config import PRESETS
    from memssl_core.training.start import settings_of

    run, story = facts(context, folder), context.stories.of(JobFolder(folder).events)
    config, data, preset = settings_of(folder)
    settings, default = asdict(config), asdict(PRESETS[preset])
    kept = [figure for figure in FIGURES if os.path.isfile(folder / f"checkpoints/best-{figure}.pt")]
    best = {figure: story.best(figure) for figure in kept}
    is_labelled = any("knn_top1" in probe for probe in story.probes)
    return {
        "run": run,
        "config": settings,
        "changes": {name: value for name, value in settings.items() if value != default[name]},
        "data": data_of(context, data) if data.isprintable() else None,
        "command": command(context, config, data, folder, preset=preset, processes=run["processes"]),
        "chance": math.log(config.block_size),
        "classes": classes_of(data) if is_labelled else None,
        "checkpoints": steps_kept(folder / "checkpoints", ".pt"),
        "best": {figure: found for figure, found in best.items() if found},
        "snapshots": steps_kept(folder / "snapshots", ".safetensors"),
        "slots": config.memory_slots,
        "batch_size": config.batch_size,
    }


def command(context: Context, config: TrainConfig, data: str, folder: Path, *, preset: str, processes: int = 1) -> str:
    """The line that does the same in a terminal; to visitors from elsewhere without folders of this machine."""
    from memssl_core.training.start import train_argv

    torchrun = f"torch.distributed.run --standalone --nproc-per-node {processes} -m " if processes > 1 else ""
    line = f"python -m {torchrun}memssl_core train {shlex.join(train_argv(config, data, folder, preset=preset))}"
    return shown(context, line) if context.public else printable(line)


def steps_kept(folder: Path, suffix: str) -> list[int]:
    """Of which there are checkpoints or snapshots, rising; their own modules would bring torch along."""
    stems = (path.stem.removeprefix("step-") for path in folder.glob(f"step-????????{suffix}"))
    return sorted(int(stem) for stem in stems if stem.isdecimal())


@lru_cache(64)
def classes_of(spec: str) -> int | None:
    """How many classes the labels of a data source tell apart; None without labels, and where only the Hub knows."""
    from memssl_core.data.datasets import open_images

    if "hf:" in spec:
        return None
    try:
        return len(open_images(spec).class_names) or None
    except MemsslError:
        return None


def _preset_and_data(folder: Path) -> tuple[str | None, str]:
    try:
        return _settings(folder, _written_at(folder / "config.json"), _written_at(folder / "job.json"))
    except MemsslError:
        return None, ""


@lru_cache(500)
def _settings(folder: Path, *written_at: int) -> tuple[str, str]:
    from memssl_core.training.start import settings_of

    _, data, preset = settings_of(folder)
    return preset, data


def _written_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _step(status: dict[str, Any], story: Story) -> int | None:
    """What was told last, in the status or by an event."""
    found = [
        (status.get("heartbeat_s") or 0.0, status.get("step")),
        (_time(story.last), number(story.last, "step")),
    ]
    return max((one for one in found if isinstance(one[1], int)), default=(0.0, None))[1]


def _time(event: Event | None) -> float:
    return number(event, "time_s") or 0.0


# What visitors may take


def refuse_beyond(context: Context, nbytes: float, *, new: bool = False) -> None:
    """RunError if a run that will write about `nbytes` more is beyond what is offered here."""
    offered = context.training
    if offered is None:
        return
    if new and offered.runs is not None and len(run_folders(context)) >= offered.runs:
        raise RunError(f"This server keeps at most {offered.runs} runs; delete one first.")
    if offered.gigabytes is None:
        return
    going = [folder for folder in run_folders(context) if (JobFolder(folder).status() or {}).get("state") in LIVE]
    taken = bytes_below(context.runs) + sum(still_to_write(context, folder) for folder in going)
    if taken + nbytes > offered.gigabytes * 1e9:
        raise RunError(
            f"The runs of this server take, or will take, {taken / 1e9:.1f} of {offered.gigabytes:g} GB, which leaves "
            "too little for this one; delete one first."
        )


def still_to_write(context: Context, folder: Path) -> float:
    """Bytes that a run may come to write, by its plan; 0 of one that has none."""
    return max(0, (status_of(context, JobFolder(folder))["disk_bytes"] or 0) - bytes_below(folder))


def hours_left(context: Context, story: Story) -> float | None:
    """That a run may still work; None without a limit. RunError if there are none."""
    if context.training is None or context.training.hours is None:
        return None
    left = context.training.hours - story.worked_s / 3600
    if left <= 0:
        raise RunError(f"It has had the {context.training.hours:g} hours that a run may work here; start a new one.")
    return left


def bytes_below(folder: Path) -> int:
    total = 0
    for here, _, files in os.walk(folder):
        for name in files:
            try:
                stat = os.lstat(os.path.join(here, name))
            except OSError:
                continue
            total += stat.st_size // max(1, stat.st_nlink)  # a best checkpoint is a second name of another one
    return total


# A run and the page's models on one device


def training_on(context: Context, kind_of: Callable[[str], str]) -> set[str]:
    """What runs are on now, or will be at once; `kind_of` makes a kind (cuda, mps, cpu) of a device's name."""
    kinds = set()
    for folder in run_folders(context):
        job = JobFolder(folder)
        if (job.status() or {}).get("state") in LIVE:
            device = (context.stories.of(job.events).started or {}).get("device") or _device(folder)
            kinds.add(kind_of(str(device)))
    return kinds


def _device(folder: Path) -> str:
    from memssl_core.training.start import settings_of

    try:
        return settings_of(folder)[0].device
    except MemsslError:
        return "auto"


def give_way(context: Context) -> None:
    """Put the page's models on the CPU while a run is on their accelerator, and back when it has ended.

    Who is asking a long question just now keeps the device until the next look.
    """
    if context.training is None or context.state != "ready":
        return
    models = context.opened().models
    if models.home.type == "cpu":
        return
    from memssl_core.training.start import device_kind

    is_taken = models.home.type in training_on(context, device_kind)
    wanted = "cpu" if is_taken else models.home
    if models.device.type != ("cpu" if is_taken else models.home.type):
        with suppress(ModelError), context.turns.take("model", wait_s=0):
            models.move(wanted)


def banner(context: Context) -> str:
    """What all tabs say while something trains here; "" otherwise."""
    if context.training is None or not training_on(context, str):
        return ""
    if context.state == "ready" and (models := context.opened().models).device != models.home:
        return f"A run is training on {models.home.type.upper()}, so the page's models are on the CPU and take longer."
    return "A run is training here, so answers take longer."
