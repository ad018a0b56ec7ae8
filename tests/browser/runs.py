"""Run folders for tests of the page: one that was really trained, and what is made of it by hand."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
from browser.server import Server

from memssl_core.config import PRESETS, TrainConfig
from memssl_core.jobs import JobFolder, read_events
from memssl_core.training.loop import train
from memssl_core.training.snapshots import Snapshot, read, snapshot_files, step_of

DATA = "drawn:0:64"
DONE = "done"  # the name of the run that was trained
TINY = replace(
    PRESETS["smoke"],
    device="cpu",
    threads=1,
    global_size=32,
    local_size=16,
    width=32,
    depth=2,
    head_hidden=32,
    projection_dim=16,
    steps=24,
    probe_images=60,
    save_every=8,
    probe_every=8,
    snapshot_every=4,
)
"""24 steps of 16 pictures, a memory of 256 slots, a snapshot every 4 steps; about 3 s"""


def trained(folder: Path, config: TrainConfig = TINY, data: str = DATA) -> Path:
    """A finished run."""
    train(config, data, folder)
    return folder


def sleeper() -> subprocess.Popen:
    """A process that stands for a trainer. Whoever asked for it kills it."""
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)


def cut(run: Path, target: Path, step: int, state: str, *, process: int | None = None, **facts: Any) -> JobFolder:
    """A run as it stood after a step of another one.

    Args: process, the trainer's pid; without one it is gone; facts, more for the status.
    """
    shutil.copytree(run, target, ignore=shutil.ignore_patterns("bundle"))
    events, _ = read_events(run / "events.jsonl")
    events = [event for event in events if event["step"] <= step and event["event"] not in ("finished", "stopped")]
    (target / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    for path in snapshot_files(target):
        if step_of(path) > step:
            path.unlink()
    kept = sorted((target / "checkpoints").glob("step-*.pt"))
    if step >= TINY.save_every and step_of(kept[0]) > step:  # only the last two were kept
        shutil.copy(kept[0], kept[0].with_stem(f"step-{step // TINY.save_every * TINY.save_every:08d}"))
    for path in kept:
        if step_of(path) > step:
            path.unlink()
    job = JobFolder(target)
    tell(job, state, step, json.loads((run / "status.json").read_text())["steps"], process=process, **facts)
    return job


def tell(job: JobFolder, state: str, step: int, steps: int, *, process: int | None = None, **facts: Any) -> None:
    """Its status, from a trainer that lives or is gone."""
    status = {"pid": 2**22 + 1, "process_start_s": 1.0}  # no process has this number
    if process is not None:
        status = {"pid": process, "process_start_s": psutil.Process(process).create_time()}
    told = {"state": state, **status, "heartbeat_s": time.time(), "step": step, "steps": steps, "data": DATA, **facts}
    (job.path / "status.json").write_text(json.dumps(told))


def append(job: JobFolder, *events: dict[str, Any]) -> None:
    with open(job.events, "a") as file:
        file.write("".join(f"{json.dumps({'time_s': time.time(), **event})}\n" for event in events))


@dataclass
class Place:
    """A server with a folder of runs, and processes that stand for trainers."""

    server: Server
    runs: Path
    trainers: list[subprocess.Popen] = field(default_factory=list)

    def live(self, name: str, step: int, **facts: object) -> JobFolder:
        """A run that seems to be trained."""
        self.trainers.append(sleeper())
        return cut(self.runs / DONE, self.runs / name, step, "running", process=self.trainers[-1].pid, **facts)

    def ended(self, name: str, step: int, state: str, **facts: object) -> JobFolder:
        return cut(self.runs / DONE, self.runs / name, step, state, **facts)

    def snapshot(self, step: int, name: str = DONE) -> Snapshot:
        return read(self.runs / name / "snapshots" / f"step-{step:08d}.safetensors")
