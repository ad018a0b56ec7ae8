"""Job folders: what a long-running process of ours leaves for others to read, and how it is started and stopped.

A folder has `job.json` (what was asked; written once, by whoever starts it), `status.json` (replaced atomically),
`events.jsonl` (one JSON object a line, only ever appended to), `control/` (flag files) and `log.txt`.
A training run's folder is one too, without `job.json` if it was started from a command line.
"""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil
from filelock import FileLock, Timeout

from memssl_core.errors import MemsslError
from memssl_core.paths import jobs_dir

Emit = Callable[..., None]
"""emit(event, *, step, **facts)"""
HEARTBEAT_S = 5.0
PROGRESS_S = 0.5  # between two status files of a job
WAIT_S = 0.3  # between two looks at a lock
NICENESS = 10
LIVE = ("waiting", "running")


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when it is whole: a reader sees the old one or the new one, also after a
    crash. Nothing is left of one that could not be written."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # the file is there; some file systems cannot be asked to keep a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_atomically(path: Path, content: bytes) -> None:
    """`replacing` with content that is there already."""
    with replacing(path) as file:
        file.write(content)


def event_writer(path: Path, *also: Emit) -> Emit:
    """emit(event, step=..., **facts): appends a line to `path` and hands the same to every listener in `also`.

    A line has `event`, `time_s` and `step` always; units stand in the names. Lines begin anew after one that was cut
    off.
    """
    with open(path, "ab+") as file:
        file.seek(max(0, file.tell() - 1))
        if file.read() not in (b"", b"\n"):
            file.write(b"\n")

    def emit(event: str, *, step: int, **facts: Any) -> None:
        line = {"event": event, "time_s": round(time.time(), 3), "step": step}
        line |= {name: _plain(value) for name, value in facts.items()}
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for listener in also:
            listener(event, step=step, **facts)

    return emit


def read_events(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of an event file from a byte offset on, and the offset after them.

    A last line that is still being written is left for the next time; one that a crash cut off, or that is no JSON
    object, is passed over.
    """
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            whole = file.read().rpartition(b"\n")[0]
    except FileNotFoundError:
        return [], offset
    lines = whole.split(b"\n") if whole else []
    events = []
    for line in lines:
        with suppress(ValueError, RecursionError):
            if isinstance(event := json.loads(line), dict):
                events.append(event)
    return events, offset + (len(whole) + 1 if whole else 0)


@dataclass(frozen=True)
class JobFolder:
    """The folder of one job or training run."""

    path: Path

    def create(self) -> JobFolder:
        (self.path / "control").mkdir(parents=True, exist_ok=True)
        return self

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    def write_status(self, state: str, *, process: psutil.Process | None = None, **facts: Any) -> None:
        """`state` is waiting, running, stopped, finished or failed.

        Pid and start time of the process (ours unless given) tell a living writer from a dead one. On a full disk it
        is written over the one before, which has a place there, so that a run can still say why it ends.
        """
        path, content = self.path / "status.json", _status(state, process or psutil.Process(), facts)
        try:
            write_atomically(path, content)
        except OSError as reason:
            if reason.errno not in (errno.ENOSPC, errno.EDQUOT) or not path.exists():
                raise
            with open(path, "r+b") as file:
                file.write(content)
                file.truncate()

    def status(self) -> dict[str, Any] | None:
        """What was asked and how it stands; None before the first status and for a folder that is no job.

        A waiting or running job whose process is gone is `lost`.
        """
        told = _read_json(self.path / "status.json")
        if told is None or not {"state", "pid", "process_start_s"} <= told.keys():
            return None
        if told["state"] in LIVE and not _is_alive(told):
            told["state"] = "lost"
        return {**(_read_json(self.path / "job.json") or {}), **told}

    def log_tail(self, limit: int = 4_000) -> str:
        """The last characters of what the process printed."""
        try:
            return (self.path / "log.txt").read_bytes()[-4 * limit :].decode("utf-8", "replace")[-limit:]
        except FileNotFoundError:
            return ""

    def request_stop(self) -> None:
        (self.path / "control" / "stop").touch()

    def stop_requested(self) -> bool:
        return os.path.exists(self.path / "control" / "stop")

    def request_save(self) -> None:
        (self.path / "control" / "save").touch()

    def save_requested(self) -> bool:
        return os.path.exists(self.path / "control" / "save")

    def clear_save(self) -> None:
        (self.path / "control" / "save").unlink(missing_ok=True)

    def is_ours(self) -> bool:
        """Whether this process, or the torchrun that started it, spoke last in the status."""
        pid = (_read_json(self.path / "status.json") or {}).get("pid")
        return pid in (os.getpid(), os.getppid())

    def clear_requests(self) -> None:
        """Forget what was asked before this process; what has been asked of it while it waited still counts."""
        if self.is_ours() and (self.status() or {}).get("state") == "waiting":
            return
        for flag in (self.path / "control").iterdir():
            flag.unlink(missing_ok=True)

    def kill(self) -> bool:
        """End a live job's process and all that it started at once, with nothing saved; it is lost then.

        False if there is none but this one, or if it could not be ended.
        """
        told = self.status()
        if told is None or told["state"] not in LIVE or told["pid"] == os.getpid():
            return False
        with suppress(psutil.Error):
            process = psutil.Process(told["pid"])
            family = [process, *process.children(recursive=True)]
            for each in family if _is_alive(told) else ():
                with suppress(psutil.Error):
                    each.kill()
            psutil.wait_procs(family, timeout=1)
        return not _is_alive(told)

    def remove(self) -> None:
        """Forget a job that has ended."""
        if (self.status() or {}).get("state") in LIVE:
            raise MemsslError("This job is still running; stop it first.")
        shutil.rmtree(self.path, ignore_errors=True)


def start(
    argv: list[str],
    *,
    kind: str,
    title: str,
    module: str = "memssl_core",
    root: Path | None = None,
    folder: Path | None = None,
    facts: dict[str, Any] | None = None,
) -> JobFolder:
    """Run `python -m MODULE ARGV --job FOLDER` as a process of its own, which outlives this one.

    Args: root, where the job's folder is made; folder, in place of that one that is there, or was used before: nothing
        is added to ARGV, and its log goes on; kind, title and facts (JSON), what stays in every status of the job.
    """
    name = f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    job = JobFolder(folder or (root or jobs_dir()) / name).create()
    asked = {"kind": kind, "title": title, "started_s": time.time(), **(facts or {})}
    write_atomically(job.path / "job.json", json.dumps(asked).encode())
    command = [sys.executable, "-m", module, *argv, *(() if folder else ("--job", str(job.path)))]
    home = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))}
    earlier = _read_json(job.path / "status.json")
    with open(job.path / "log.txt", "ab") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    with suppress(psutil.Error, OSError):  # the job speaks for itself soon
        process = psutil.Process(child.pid)
        process.nice(NICENESS)
        first = job.path / "first.tmp"
        first.write_bytes(_status("waiting", process, {"words": "starting"}))
        if earlier is None:
            os.link(first, job.path / "status.json")  # unless the job has already spoken for itself
        elif _read_json(job.path / "status.json") == earlier:
            os.replace(first, job.path / "status.json")
    with suppress(OSError):
        (job.path / "first.tmp").unlink(missing_ok=True)
    return job


def find(root: Path | None = None) -> list[JobFolder]:
    """The jobs of a folder, newest first; whatever else lies there is passed over."""
    root = root or jobs_dir()
    folders = [path for path in root.iterdir() if os.path.isfile(path / "job.json")] if root.is_dir() else []
    jobs = [JobFolder(path) for path in folders]
    known = {job.path: status for job in jobs if (status := job.status())}
    started = {path: told for path, status in known.items() if isinstance(told := status.get("started_s"), int | float)}
    return sorted((job for job in jobs if job.path in known), key=lambda job: -started.get(job.path, 0))


class Work:
    """A job at work: it tells how far it is, and asks whether it should stop."""

    def __init__(self, job: JobFolder | None, listen: Emit | None, asked: Callable[[], bool]) -> None:
        self._job, self._asked, self._told_at, self.result = job, asked, 0.0, None
        also = [listen] if listen else []
        self._emit = event_writer(job.events, *also) if job else (listen or (lambda event, *, step, **facts: None))

    def emit(self, event: str, *, step: int, **facts: Any) -> None:
        self._emit(event, step=step, **facts)
        now = time.monotonic()
        if self._job and event == "progress" and now - self._told_at > PROGRESS_S:
            self._job.write_status("running", step=step, **facts)
            self._told_at = now

    def should_stop(self) -> bool:
        return self._asked() or (self._job is not None and self._job.stop_requested())

    def finish(self, result: object) -> None:
        """The work is whole; `result` is what it made, a path or an address."""
        self.result = str(result)


@contextmanager
def working(
    folder: Path | None,
    *,
    resource: str | None = None,
    listen: Emit | None = None,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Work]:
    """Do the work of a job in its folder; with None, only tell `listen` how far it is.

    Args: resource, what only one job of the same root may use at a time: the others wait for it. The lock goes with
        the process, however it ends.
    """
    if folder is None:
        yield Work(None, listen, asked_to_stop)
        return
    job = JobFolder(folder).create()
    work = Work(job, listen, asked_to_stop)
    with ExitStack() as held:
        try:
            if resource and not _take(job, resource, work.should_stop, held):
                raise MemsslError("Stopped before its turn came.")
            job.write_status("running")
            yield work
        except BaseException as reason:
            stopped = work.should_stop()
            ours = "Stopped." if stopped else "It ended by a mistake of ours; see its log."
            message = str(reason) if isinstance(reason, MemsslError) else ours
            job.write_status("stopped" if stopped else "failed", message=message)
            raise
        if work.result is None:
            job.write_status("stopped" if work.should_stop() else "failed")
        else:
            job.write_status("finished", result=work.result)


def _take(job: JobFolder, resource: str, should_stop: Callable[[], bool], held: ExitStack) -> bool:
    folder = job.path.parent / "locks"
    folder.mkdir(exist_ok=True)
    lock = FileLock(folder / f"{resource}.lock")
    while not should_stop():
        with suppress(Timeout):
            held.enter_context(lock.acquire(timeout=0))
            return True
        job.write_status("waiting", words="waiting for another job to end")
        time.sleep(WAIT_S)
    return False


def _status(state: str, process: psutil.Process, facts: dict[str, Any]) -> bytes:
    told = {"state": state, "pid": process.pid, "process_start_s": process.create_time(), "heartbeat_s": time.time()}
    return json.dumps({**told, **{name: _plain(value) for name, value in facts.items()}}).encode()


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_alive(status: dict[str, Any]) -> bool:
    try:
        process = psutil.Process(status["pid"])
        return process.create_time() == status["process_start_s"] and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, TypeError, ValueError, OverflowError):
        return False


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
