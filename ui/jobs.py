"""Jobs on the page: what runs detached from it, told in changes, and stopped from it."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException, Response

from memssl_core import jobs, paths
from memssl_core.jobs import JobFolder
from ui.context import Context, told
from ui.messages import spoken

SHOWN = 20  # the newest ones
LOG_CHARACTERS = 4_000
MAKES_A_BUNDLE = ("remember", "convert")


def add_job_routes(api: APIRouter, context: Context) -> None:
    """`jobs` and what can be asked of one. None of them is there for visitors from elsewhere."""

    @api.get("/jobs", response_model=None)
    def listed(known: str = "") -> dict[str, Any] | Response:
        """`{now_s, jobs}` newest first; of those in `known` (`rev,rev,…`) only `{id, rev}`; 204 if nothing changed."""
        all_jobs = [facts(context, job) for job in jobs.find()[:SHOWN]]
        had = known.split(",") if known else []
        if had == [job["rev"] for job in all_jobs]:
            return Response(status_code=204)
        changed = [job if job["rev"] not in had else {"id": job["id"], "rev": job["rev"]} for job in all_jobs]
        return {"now_s": time.time(), "jobs": changed}

    @api.get("/jobs/{name}/log")
    def log(name: str) -> dict[str, str]:
        return {"text": named(name).log_tail(LOG_CHARACTERS)}

    @api.post("/jobs/{name}/stop")
    def stop(name: str) -> dict[str, Any]:
        named(name).request_stop()
        return {}

    @api.post("/jobs/{name}/forget")
    @spoken
    def forget(name: str) -> dict[str, Any]:
        named(name).remove()
        return {}


def named(name: str) -> JobFolder:
    """The job of that name; 404 for anything else."""
    found = next((job for job in jobs.find() if job.path.name == name), None)
    if found is None:
        raise HTTPException(404, "There is no such job (any more).")
    return found


def facts(context: Context, job: JobFolder) -> dict[str, Any]:
    """A job as the page shows it; `rev` changes when anything else of it does."""
    status = job.status() or {"state": "lost"}
    is_live = status["state"] in jobs.LIVE
    if not is_live:
        forget_uploads(status)
    told_of = {
        "id": job.path.name,
        "kind": status.get("kind"),
        "title": status.get("title") or job.path.name,
        "state": status["state"],
        "stopping": is_live and job.stop_requested(),
        "words": status.get("words") or "",
        "step": status.get("step"),
        "total": status.get("total"),
        "started_s": status.get("started_s"),
        "told_s": status.get("heartbeat_s"),
        "message": status.get("message") or "",
        **made(context, status),
    }
    lasting = {name: value for name, value in told_of.items() if name != "told_s" or not is_live}
    return told_of | {"rev": hashlib.blake2b(json.dumps(lasting).encode(), digest_size=6).hexdigest()}


def made(context: Context, status: dict[str, Any]) -> dict[str, str]:
    """What a finished job leaves: `opens`, a model's source, `gallery`, its name, or `link`, an address on the Hub."""
    result, kind = str(status.get("result") or ""), status.get("kind")
    if status["state"] != "finished":
        return {}
    if kind in MAKES_A_BUNDLE and result:
        return {"opens": told(context, f"bundle:{result}")}
    if kind == "fetch":
        return {"opens": str(status.get("source"))}
    if kind == "gallery":
        return {"gallery": result}
    return {"link": result} if kind == "publish" and result.startswith(("https://", "http://")) else {}


def uploads_dir() -> Path:
    """Pictures that were uploaded for a job, a folder each; they go when the job has ended."""
    return paths.home() / "uploads"


def forget_uploads(status: dict[str, Any]) -> None:
    folder = status.get("uploads")
    if isinstance(folder, str) and Path(folder).parent == uploads_dir():
        shutil.rmtree(folder, ignore_errors=True)
