"""Job folders: what a long-running process of ours leaves for others to read, and how it is asked to stop."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

HEARTBEAT_S = 5.0


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content`: a reader sees the old file or the new one, also after a crash."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@dataclass(frozen=True)
class JobFolder:
    """A folder with `status.json` (replaced atomically), `events.jsonl` and `control/` flag files."""

    path: Path

    def create(self) -> JobFolder:
        (self.path / "control").mkdir(parents=True, exist_ok=True)
        return self

    def write_status(self, state: str, **facts: Any) -> None:
        """`state` is running, stopped, finished or failed; pid and start time tell a living writer from a dead one."""
        process = psutil.Process()
        status = {"state": state, "pid": process.pid, "process_start_s": process.create_time()}
        status |= {"heartbeat_s": time.time(), **facts}
        write_atomically(self.path / "status.json", json.dumps(status).encode())

    def status(self) -> dict[str, Any] | None:
        """The last status; of a `running` one whose process is gone the state is `lost`. None before the first."""
        try:
            status = json.loads((self.path / "status.json").read_bytes())
        except FileNotFoundError:
            return None
        if status["state"] == "running" and not _is_alive(status):
            status["state"] = "lost"
        return status

    def stop_requested(self) -> bool:
        return (self.path / "control" / "stop").exists()

    def clear_requests(self) -> None:
        for flag in (self.path / "control").iterdir():
            flag.unlink()


def _is_alive(status: dict[str, Any]) -> bool:
    try:
        return psutil.Process(status["pid"]).create_time() == status["process_start_s"]
    except psutil.NoSuchProcess:
        return False
