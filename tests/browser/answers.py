"""What tests of the page's routes share: opening a model as the page does, and jobs as they lie on disk."""

from __future__ import annotations

import json
import time

from fastapi.testclient import TestClient

from memssl_core import jobs, paths
from memssl_core.jobs import JobFolder

HERE = "http://127.0.0.1:7860"


def write_job(kind: str, state: str = "running", *, facts: dict | None = None, **status) -> JobFolder:
    """A job folder as `jobs.start` leaves it, whose process is this one."""
    job = JobFolder(paths.jobs_dir() / f"{kind}-{len(jobs.find())}").create()
    asked = {"kind": kind, "title": f"a {kind}", "started_s": time.time(), **(facts or {})}
    (job.path / "job.json").write_text(json.dumps(asked))
    job.write_status(state, **status)
    return job


def opened(client: TestClient, source: str) -> dict:
    """Open a model as the page does: ask until it is there or has failed."""
    answer = client.post("/api/open", json={"source": source}).json()
    while answer.get("state") == "loading":
        answer = client.get(f"/api/open/{answer['ticket']}").json()
    return answer
