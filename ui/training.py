"""A new run: what may be chosen and why, what it would take, and starting it."""

from __future__ import annotations

import ast
import inspect
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, Field

from memssl_core import jobs, paths
from memssl_core.config import PRESETS, TrainConfig
from memssl_core.errors import ConfigError, RunError
from memssl_core.training.start import explained
from ui.context import Context
from ui.curves import Story
from ui.data import Data, plainly, shown, spec_of, words_of
from ui.runs import command, give_way, hours_left, refuse_beyond

if TYPE_CHECKING:
    from memssl_core.training.plan import Plan

LARGEST = 1e9  # of a number in a setting
MEASURES_KEPT = 5
MOST_COUNTED = 2_000_000  # pictures that a plan is made for; more change nothing in it but the steps
GONE = "This measurement is not known here any more; measure again."
TITLES = {
    "smoke": (
        "2-minute smoke test",
        "60 steps of a tiny model: all works, next to nothing is learnt.",
    ),
    "demo": ("CPU overnight", "A small model on pictures of 64 px. Made for a few CPU cores: from an hour to a night."),
    "vit-s16-800ep": ("One GPU, ViT-S/16", "The published settings, 800 passes over the pictures."),
    "vit-b16-400ep": ("Several GPUs, ViT-B/16", "The published settings of the larger model, 400 passes."),
    "resnet50-100ep": (
        "One GPU, ResNet-50",
        "A convolutional network, settings of the authors' code, 100 passes.",
    ),
}
KNOBS = {
    "steps": ("Steps", "Length of the run. Empty: as many as the epochs take."),
    "epochs": ("Epochs", "Passes over the pictures, where no steps are given."),
    "batch_size": ("Batch size", "Pictures of one step. More of them steady the learning and take more memory."),
    "memory_slots": ("Memory slots", "Keys that views are compared with. At most a quarter of the pictures."),
    "block_size": ("Block size", "Slots compared together: about an eighth of the memory."),
    "lr": ("Learning rate", "For 256 pictures a step. Too high breaks the loss, too low leaves it at chance."),
    "local_views": ("Local views", "Small crops of a picture beside the two large ones. Each makes a step longer."),
    "global_size": ("Picture size, px", "Side of the large crops. The time of a step grows with its square."),
    "backbone": ("Backbone", "The network that is trained."),
    "seed": ("Seed", "The same seed, pictures and settings give the same run."),
}  # fmt: skip
BACKBONES = (
    *("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224"),
    *("resnet18", "resnet50", "swin_tiny_patch4_window7_224", "convnext_atto"),
)
_WORDS = {"backbone": re.compile(r"[a-z0-9][a-z0-9_.]{0,79}"), "device": re.compile(r"auto|cpu|mps|cuda(:\d{1,2})?")}
FIELDS = tuple(field.name for field in fields(TrainConfig))


class SettingError(ConfigError):
    """A mistake in one `field` of the form."""

    def __init__(self, sentence: str, field: str) -> None:
        super().__init__(sentence)
        self.field = field


class Wish(BaseModel):
    data: Data
    preset: str = Field(max_length=80)
    changes: dict[Annotated[str, Field(max_length=80)], Any] = Field({}, max_length=len(FIELDS))
    """of the preset's settings, by their names"""
    name: str = Field("", max_length=200)
    processes: int = Field(1, ge=1, le=64)


def add_training_routes(api: APIRouter, context: Context) -> None:
    """`train/…`: nothing else than our trainer can be started, and only by the settings that it has."""
    clearly = plainly(context)

    @api.get("/train")
    @clearly
    def offer() -> dict[str, Any]:
        return offered(context)

    @api.post("/train/plan")
    @clearly
    def plan(wish: Wish) -> dict[str, Any]:
        config, data = config_of(wish.preset, wish.changes), spec_of(context, wish.data)
        folder = folder_of(context, wish, data)
        counted = asdict(planned(context, config, data, wish.processes))
        counted |= {name: [shown(context, text) for text in counted[name]] for name in ("problems", "advice")}
        line = command(context, config, data, folder, preset=wish.preset, processes=wish.processes)
        return {"plan": counted, "command": line, "name": folder.name}

    @api.post("/train/measure")
    @clearly
    def measure(wish: Wish) -> dict[str, Any]:
        from memssl_core.training.start import settings_argv

        config, data = config_of(wish.preset, wish.changes), spec_of(context, wish.data)
        argv = ["plan", "--data", data, *settings_argv(config, preset=wish.preset)]
        argv += ["--processes", str(wish.processes)]
        with context.turns.take("start"), explained(measures_dir()):
            make_room()
            job = jobs.start(argv, kind="measure", title="Measuring a few steps", root=measures_dir())
        return {"job": job.path.name}

    @api.get("/train/measure/{job}")
    @clearly
    def measured(job: str) -> dict[str, Any]:
        return result(context, measuring(job))

    @api.post("/train/measure/{job}/stop")
    @clearly
    def stop(job: str) -> dict[str, Any]:
        found = measuring(job)
        with explained(found.path):
            found.request_stop()
        return {}

    @api.post("/train/start")
    @clearly
    def start(wish: Wish) -> dict[str, Any]:
        from memssl_core.training.start import start_run

        config, data = config_of(wish.preset, wish.changes), spec_of(context, wish.data)
        with context.turns.take("start"):
            folder = folder_of(context, wish, data)
            counted = planned(context, config, data, wish.processes)
            if counted.problems:
                raise RunError(counted.problems[0])
            refuse_beyond(context, counted.disk_bytes, new=True)
            start_run(
                folder,
                config,
                data,
                preset=wish.preset,
                processes=wish.processes,
                at_once=context.training.at_once if context.training else 1,
                hours=hours_left(context, Story()),
                disk_bytes=counted.disk_bytes,
            )
        give_way(context)
        return {"run": folder.name}


# What may be chosen


def offered(context: Context) -> dict[str, Any]:
    training = context.training
    limits = asdict(training) if training else {}
    at_once = limits.pop("at_once", 1)
    devices, gpus = places()
    return {
        "presets": [
            {"name": name, "title": title, "words": words, "config": asdict(PRESETS[name])}
            for name, (title, words) in TITLES.items()
        ],
        "knobs": [setting(name, *told) for name, told in KNOBS.items()],
        "folded": [setting(name, name.replace("_", " ").capitalize(), reasons().get(name, "")) for name in others()],
        "devices": devices,
        "processes": list(range(1, max(1, gpus) + 1)),
        "roots": list(context.roots),
        "offline": context.offline or context.public,
        "limits": limits if any(value is not None for value in limits.values()) else None,
        "at_once": at_once,
    }


def setting(name: str, label: str, why: str) -> dict[str, Any]:
    """A control of the form."""
    kind, is_optional = type_of(name)
    told: dict[str, Any] = {"name": name, "label": label, "why": why}
    if kind is bool:
        return told | {"kind": "switch"}
    choices = BACKBONES if name == "backbone" else get_args(kind) if get_origin(kind) is Literal else ()
    if choices:
        return told | {"kind": "choice", "choices": [[value, value] for value in choices]}
    told |= {"kind": "number", **({"step": 1} if kind is int else {})}
    return told | ({"optional": True} if is_optional else {})


def others() -> list[str]:
    """Settings of one value that are no knobs; the device has a choice of its own."""
    simple = (name for name in FIELDS if get_origin(type_of(name)[0]) is not tuple)
    return [name for name in simple if name not in KNOBS and name != "device"]


@cache
def reasons() -> dict[str, str]:
    """What stands under the fields of `TrainConfig`."""
    (told,) = ast.parse(inspect.getsource(TrainConfig)).body
    assert isinstance(told, ast.ClassDef)
    found = {}
    for one, after in zip(told.body, told.body[1:], strict=False):
        if isinstance(one, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[ast.unparse(one.target)] = str(after.value.value)
    return found


def places() -> tuple[list[dict[str, str]], int]:
    """The devices that can be trained on, and how many GPUs are among them."""
    import torch

    from memssl_core.training.start import cores

    cpu = {"value": "cpu", "label": f"CPU, {cores()} core{'s' * (cores() > 1)}"}
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = [{"value": f"cuda:{i}", "label": torch.cuda.get_device_name(i)} for i in range(gpus)]
    if torch.backends.mps.is_available():
        found.append({"value": "mps", "label": "Apple GPU"})
    first = {"value": "auto", "label": f"automatic: {(found or [cpu])[0]['label']}"}
    return [first, *found, *([cpu] if found else [])], gpus


# From the form to settings


def config_of(preset: str, changes: Mapping[str, Any]) -> TrainConfig:
    """The preset with changes. SettingError for a name that is none, or a value that it cannot have."""
    if preset not in PRESETS:
        raise SettingError("There is no preset of this name; choose one of the list.", "preset")
    for name in changes:
        if name not in FIELDS:
            raise SettingError("There is a setting among these that no run has; load the page again.", "")
    try:
        return replace(PRESETS[preset], **{name: value_of(name, value) for name, value in changes.items()})
    except SettingError:
        raise
    except ConfigError as reason:
        about = next((word for word in re.findall(r"\w+", str(reason)) if word in FIELDS), "")
        raise SettingError(str(reason), about) from reason


def value_of(name: str, value: object) -> Any:
    """A value of JSON as the field has it."""
    kind, is_optional = type_of(name)
    if value is None and is_optional:
        return None
    if get_origin(kind) is Literal and value in get_args(kind):
        return value
    if kind is bool and isinstance(value, bool):
        return value
    if kind is str and isinstance(value, str) and _WORDS[name].fullmatch(value):
        return value
    if kind is int and is_number(value) and value == int(value):  # type: ignore[call-overload]
        return int(value)  # type: ignore[call-overload]
    if kind is float and is_number(value):
        return float(value)  # type: ignore[arg-type]
    sizes = get_args(kind) if get_origin(kind) is tuple else ()
    if sizes and isinstance(value, list | tuple) and len(value) == len(sizes) and all(map(is_number, value)):
        return tuple(map(float, value))
    wanted = {int: "a whole number of at most 9 digits", float: "a number of at most 9 digits", bool: "on or off"}
    rule = f"{len(sizes)} numbers" if sizes else wanted.get(kind, "one of those that are offered")
    raise SettingError(f"{name} must be {rule}; write another one.", name)


def is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= LARGEST and math.isfinite(value)


@cache
def type_of(name: str) -> tuple[Any, bool]:
    """Of a field, without None; and whether it may be None."""
    hint = get_type_hints(TrainConfig)[name]
    if get_origin(hint) not in (Union, UnionType):
        return hint, False
    (kind,) = (one for one in get_args(hint) if one is not type(None))
    return kind, True


def folder_of(context: Context, wish: Wish, data: str) -> Path:
    """Where the run would lie: under the name that is asked for, else under a free one."""
    from memssl_core.training.start import checked_run_name

    name = wish.name.strip()
    if not name:
        what = words_of(context, data).rpartition("/")[2]
        what = "drawn" if data.startswith("drawn:") else what.removeprefix("hf:").removesuffix(".parquet")
        stem = re.sub(r"[^\w.-]+", "-", f"{what}-{wish.preset}", flags=re.ASCII).strip("-._")[:60] or "run"
        names = (stem, *(f"{stem}-{number}" for number in range(2, 1000)))
        name = next((name for name in names if not os.path.lexists(context.runs / name)), stem)
    try:
        return checked_run_name(context.runs, name)
    except ConfigError as reason:
        raise SettingError(str(reason), "name") from reason


def planned(context: Context, config: TrainConfig, data: str, processes: int) -> Plan:
    """What a run would take. Of a data set that is still to be fetched only what the Hub tells of it is counted."""
    from memssl_core.training.plan import plan

    if not data.startswith("hf:"):
        return plan(config, data, context.runs, processes=processes)
    from memssl_core.data.datasets import Images
    from memssl_core.data.hub_data import open_hub_rows

    rows = open_hub_rows(data)
    if isinstance(rows, Images):
        return plan(config, data, context.runs, processes=processes)
    count = rows.count or max(4 * config.memory_slots, config.batch_size)
    stand_in = f"drawn:0:{min(count, MOST_COUNTED)}"
    found = plan(config, stand_in, context.runs, processes=processes)
    problems = tuple(text.replace(stand_in, data) for text in found.problems)
    fetching = "The data set is fetched when the run begins; the time and the room that it takes are not counted here."
    facts = {"classes": len(rows.names) or None, "problems": problems, "advice": (*found.advice, fetching)}
    if not rows.count:
        facts |= {"images": None, "steps": config.steps or 0, "steps_per_epoch": 0}
    return replace(found, **facts)


# Measuring


def measures_dir() -> Path:
    """Jobs that measure a few steps; they are not among those that the page lists."""
    return paths.home() / "measures"


def make_room() -> None:
    """Only the newest measurement is wanted: stop the others, end those that do not stop, and forget those that have
    long ended."""
    known = [(job, (job.status() or {}).get("state")) for job in jobs.find(measures_dir())]
    for job in [job for job, state in known if state in jobs.LIVE]:
        if job.stop_requested():
            job.kill()
        else:
            job.request_stop()
    for job, _ in [one for one in known if one[1] not in jobs.LIVE][MEASURES_KEPT:]:
        job.remove()


def measuring(name: str) -> jobs.JobFolder:
    found = next((job for job in jobs.find(measures_dir()) if job.path.name == name), None)
    if found is None:
        raise HTTPException(404, GONE)
    return found


def result(context: Context, job: jobs.JobFolder) -> dict[str, Any]:
    """`{state, words, measured}` of a measurement; `measured` when it is finished. RunError if it came to nothing."""
    status = job.status() or {"state": "lost"}
    state = status["state"]
    if state == "failed" or state == "lost":
        lost = "The measurement ended without a word, as when the machine runs out of memory; try smaller settings."
        raise RunError(str(status.get("message") or lost))
    told = {"state": state, "words": status.get("words") or ""}
    if state != "finished":
        return told
    try:
        found = json.loads((job.path / "result.json").read_bytes())
    except (OSError, ValueError):
        raise RunError(GONE) from None
    if found["measured"] is None:
        raise RunError((found["plan"]["problems"] or [GONE])[0])
    return told | {"measured": found["measured"]}
