"""Run folders made by hand, and our routes without the page around them."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from browser.answers import HERE
from fastapi import FastAPI
from fastapi.testclient import TestClient

from memssl_core import paths
from memssl_core.config import PRESETS
from memssl_core.jobs import JobFolder
from ui.context import Context
from ui.guard import Login, make_guard
from ui.routes import add_routes

DEAD = {"pid": 2**22 + 1, "process_start_s": 1.0}  # no process has this number
SETTINGS = replace(PRESETS["smoke"], block_size=32)


def routes_of(context: Context, login: Login | None = None) -> TestClient:
    app = FastAPI()
    add_routes(app, context, make_guard(login, context.public))
    return TestClient(app, base_url=HERE)


def write_run(
    name: str, state: str = "running", *, kept: int = 0, data: str = "drawn:0:64", **status: Any
) -> JobFolder:
    """A run folder as the trainer leaves it; a live one's process is this one. `kept`: the step of its checkpoint."""
    job = JobFolder(paths.runs_dir() / name).create()
    settings = json.loads(json.dumps({"data": data, **asdict(SETTINGS)}))
    (job.path / "config.json").write_text(json.dumps(settings))
    job.write_status("running" if state == "lost" else state, steps=60, **status)
    if state == "lost":
        told = json.loads((job.path / "status.json").read_text())
        (job.path / "status.json").write_text(json.dumps(told | DEAD))
    if kept:
        checkpoint: Path = job.path / "checkpoints" / f"step-{kept:08d}.pt"
        checkpoint.parent.mkdir()
        checkpoint.write_bytes(b"0" * 1000)
    return job


def tell(job: JobFolder, kind: str, step: int, **facts: Any) -> None:
    """One more event."""
    with open(job.events, "a") as file:
        file.write(json.dumps({"event": kind, "step": step, "time_s": time.time(), **facts}) + "\n")


def listed(client: TestClient) -> dict[str, dict]:
    """The runs by name, newest first."""
    answer = client.get("/api/runs")
    return {} if answer.status_code == 204 else {run["id"]: run for run in answer.json()["runs"]}


def act(client: TestClient, run: str, verb: str, rev: str | None = None, **more: str) -> str:
    """The sentence with which a click is refused, "" if it is not. Without `rev` the page is up to date."""
    rev = listed(client)[run]["rev"] if rev is None else rev
    answer = client.post(f"/api/runs/{run}/{verb}", json={"rev": rev, **more}).json()
    return answer["error"]["text"] if "error" in answer else ""
