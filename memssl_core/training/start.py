"""A training run as a process of its own: named, started, taken up again, made to wait its turn, renamed, deleted.

Nothing here imports torch before it has to, so that a page may list and start runs at once.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from memssl_core import jobs
from memssl_core.config import PRESETS, TrainConfig
from memssl_core.errors import ConfigError, MemsslError, RunError
from memssl_core.jobs import HEARTBEAT_S, LIVE, WAIT_S, JobFolder, read_events, write_atomically

CONFIG, JOB, LOCK, TURNS = "config.json", "job.json", ".lock", ".turns"
RUN_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,79}", re.ASCII)
STOPPED = "Stopped before its turn came."
LEAVING_S = 3.0  # a trainer that has told its end may still be in the folder
_DELETED = ".deleted-"


def checked_run_name(runs: Path, name: str) -> Path:
    """The folder of a new run. Raises: ConfigError for a name that could lead elsewhere, or is taken."""
    if not RUN_NAME.fullmatch(name):
        raise ConfigError(
            "A run's name has at most 80 letters, digits, points, hyphens and underscores, the first a letter or "
            "digit; choose another name."
        )
    if os.path.lexists(runs / name):
        raise ConfigError(f"There is a run named {name} already; choose another name.")
    return runs / name


def settings_argv(config: TrainConfig, *, preset: str) -> list[str]:
    """`--preset` and the flags of all fields that differ from it."""
    default, argv = PRESETS[preset], ["--preset", preset]
    for name in (field.name for field in fields(TrainConfig)):
        if (value := getattr(config, name)) != getattr(default, name):
            argv += _flag(name.replace("_", "-"), value)
    return argv


def _flag(name: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, tuple):
        return [f"--{name}", *map(repr, value)]
    word = str(value)
    return [f"--{name}={word}"] if word.startswith("-") else [f"--{name}", word]


def train_argv(config: TrainConfig, data: str, run_dir: Path | str, *, preset: str) -> list[str]:
    """What follows `python -m memssl_core train`: data, folder, preset, and only the fields that differ from it."""
    return [*_flag("data", data), *_flag("run-dir", str(run_dir)), *settings_argv(config, preset=preset)]


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_kind(device: str) -> str:
    """cuda, mps or cpu: where a device of the config would train. It is not touched."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.device(device).type
    except RuntimeError:
        return "cpu"  # the trainer refuses it


def limited(config: TrainConfig, *, processes: int = 1) -> TrainConfig:
    """The config with as many threads and workers as leave a core to others, where it trains on the CPU; threads that
    are given stay, as sums depend on them in their last bits."""
    if device_kind(config.device) != "cpu":
        return config
    threads = config.threads or max(1, (cores() - 1) // processes)
    return replace(config, threads=threads, workers=min(config.workers, max(1, cores() // processes - threads)))


def start_run(
    folder: Path,
    config: TrainConfig,
    data: str,
    *,
    preset: str,
    processes: int = 1,
    at_once: int | None = 1,
    hours: float | None = None,
    disk_bytes: int = 0,
) -> JobFolder:
    """Train in a new folder, as a process that outlives this one.

    Args: folder, see `checked_run_name`; processes, more than one are started by torchrun; at_once, see `your_turn`;
        hours, after which it saves and stops; disk_bytes, that it may come to write, told in its status.
    Raises: RunError if the folder is there, or cannot be made.
    """
    config = limited(config, processes=processes)
    facts = {"preset": preset, "processes": processes, "data": data, "settings": asdict(config)}
    facts["disk_bytes"] = disk_bytes
    argv = _argv(folder, config, data, preset, at_once, hours)
    with explained(folder):
        folder.mkdir(parents=True)
    try:
        with explained(folder):
            return _start(folder, argv, facts)
    except RunError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def resume_run(folder: Path, *, at_once: int | None = 1, hours: float | None = None) -> JobFolder:
    """Go on with a run that has ended, with its own settings and data.

    Raises: RunError if it is live or finished, or if its settings cannot be read.
    """
    with _alone(folder):
        status = JobFolder(folder).status() or {}
        if status.get("state") == "finished" and (folder / "bundle").is_dir():
            raise RunError(f"{folder.name} is finished; start a new run with other settings to train further.")
        config, data, preset = settings_of(folder)
        facts = {**(_read(folder / JOB) or _begun(folder)), "title": folder.name, "preset": preset, "data": data}
        if not isinstance(processes := facts.get("processes"), int) or processes < 1:
            facts["processes"] = 1
        argv = _argv(folder, config, data, preset, at_once, hours)
        JobFolder(folder).create().clear_requests()
        return _start(folder, argv, facts)


def _argv(
    folder: Path, config: TrainConfig, data: str, preset: str, at_once: int | None, hours: float | None
) -> list[str]:
    argv = train_argv(config, data, folder, preset=preset)
    argv += [] if at_once is None else ["--at-once", str(at_once)]
    argv += [] if hours is None else ["--stop-after-hours", str(hours)]
    try:
        fits = all(b"\0" not in os.fsencode(word) for word in argv)
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise ConfigError("A setting holds characters that no command line can carry; type it again.")
    return argv


def _start(folder: Path, argv: list[str], facts: dict[str, Any]) -> JobFolder:
    module, argv = "memssl_core", ["train", *argv]
    if (processes := facts["processes"]) > 1:
        argv = ["--standalone", "--nproc-per-node", str(processes), "-m", module, *argv]
        module = "torch.distributed.run"
    return jobs.start(argv, kind="train", title=folder.name, module=module, folder=folder, facts=facts)


def _begun(folder: Path) -> dict[str, Any]:
    """What a run that was started from a command line tells of itself."""
    begun = [event for event in read_events(JobFolder(folder).events)[0] if event.get("event") == "started"]
    return {"processes": begun[-1].get("processes"), "started_s": begun[0].get("time_s")} if begun else {}


def settings_of(folder: Path) -> tuple[TrainConfig, str, str]:
    """Config, data source and preset of a run; of one that never wrote its config, what was asked for.

    The preset of a run that does not name one is the nearest. Raises: RunError.
    """
    config, job = _read(folder / CONFIG), _read(folder / JOB) or {}
    told: Any = job.get("settings") if config is None else config
    try:
        known = {field.name: told[field.name] for field in fields(TrainConfig) if field.name in told}
        values: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in known.items()}
        read = TrainConfig(**values)
        data = (job if config is None else config)["data"]
        if not isinstance(data, str):
            raise TypeError("the data source is no text")
    except (ConfigError, KeyError, TypeError, ValueError) as reason:
        raise RunError(f"The settings of {folder.name} cannot be read; restore its {CONFIG}, or delete it.") from reason
    preset = job.get("preset")
    if not isinstance(preset, str) or preset not in PRESETS:
        preset = min(PRESETS, key=lambda name: len(settings_argv(read, preset=name)))
    return read, data, preset


def rename_run(folder: Path, name: str) -> Path:
    """Give a run that has ended another name; its new folder. Raises: RunError, ConfigError for the name."""
    with _alone(folder):
        new = checked_run_name(folder.parent, name)
        if (asked := _read(folder / JOB)) is not None:
            write_atomically(folder / JOB, json.dumps({**asked, "title": name}).encode())
        folder.rename(new)
    return new


def delete_run(folder: Path) -> None:
    """Delete a run that has ended, with all its files. Raises: RunError."""
    with _alone(folder):
        folder.rename(folder.with_name(f"{_DELETED}{secrets.token_hex(4)}"))
    for gone in folder.parent.glob(f"{_DELETED}*"):  # with what is left of earlier ones
        shutil.rmtree(gone, ignore_errors=True)


def is_run(folder: Path) -> bool:
    """Whether a training run lies here, begun or about to begin."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    return os.path.isfile(folder / CONFIG) or (_read(folder / JOB) or {}).get("kind") == "train"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep trainers and others away from a run that has ended. Raises: RunError if it has not, or is none."""
    if not is_run(folder):
        raise RunError(f"There is no training run named {folder.name!r} here; check the name.")
    busy = RunError(f"{folder.name} has not ended yet; stop it first.")
    is_live = lambda: (JobFolder(folder).status() or {}).get("state") in LIVE
    with explained(folder):
        try:
            held = FileLock(folder / LOCK).acquire(timeout=0 if is_live() else LEAVING_S)
        except Timeout:
            raise busy from None
        with held:
            if is_live():
                raise busy
            yield


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """RunError, one sentence, where a folder cannot be written."""
    try:
        yield
    except FileExistsError:
        raise RunError(f"There is a run named {folder.name} already; choose another name.") from None
    except OSError as reason:
        why = (reason.strerror or "the disk refuses").lower()
        raise RunError(f"The folder of {folder.name} cannot be written: {why}; mend that, then try again.") from reason


@contextmanager
def your_turn(run_dir: Path, at_once: int, should_stop: Callable[[], bool], *, device: str = "auto") -> Iterator[None]:
    """Wait until fewer than `at_once` runs that came before, and also ask, are left in this folder of runs.

    Each kind of device has its own queue. A place in it goes with the process, however it ends. Under torchrun the
    first process waits for all.
    Raises: RunError if it was asked to stop before.
    """
    job = JobFolder(run_dir)
    if os.environ.get("RANK", "0") != "0":
        _follow_first(job, should_stop)
        yield
        return
    with ExitStack() as held:
        with explained(run_dir):
            job.create().clear_requests()
            ticket = _ticket(run_dir, device_kind(device), held)
        told, told_at = None, 0.0
        while len(earlier := _earlier(ticket)) >= at_once:
            if should_stop() or job.stop_requested():
                job.write_status("stopped", message=STOPPED)
                raise RunError(STOPPED)
            if told != earlier or time.monotonic() - told_at > HEARTBEAT_S:
                words = f"waiting for another run to end ({', '.join(earlier[:at_once])})"
                job.write_status("waiting", words=words)
                told, told_at = earlier, time.monotonic()
            time.sleep(WAIT_S)
        job.write_status("waiting", words="starting", group=_group())
        yield


def _ticket(run_dir: Path, kind: str, held: ExitStack) -> Path:
    """A place at the end of the queue: a file that is locked as long as it counts."""
    queue = run_dir.parent / TURNS
    queue.mkdir(exist_ok=True)
    with FileLock(queue / "guard.lock"):
        last = max((int(path.name.split(".")[1]) for path in queue.glob(f"{kind}.*.turn")), default=0)
        ticket = queue / f"{kind}.{last + 1:012d}.{run_dir.name[:50]}.turn"
        held.enter_context(FileLock(ticket))
        held.callback(ticket.unlink, missing_ok=True)
    return ticket


def _earlier(ticket: Path) -> list[str]:
    """The names of the runs before this one, first come first."""
    kind, names = ticket.name.partition(".")[0], []
    for path in sorted(ticket.parent.glob(f"{kind}.*.turn")):
        if path.name >= ticket.name:
            break
        try:
            with FileLock(path).acquire(timeout=0):  # its process is gone
                path.unlink(missing_ok=True)
        except Timeout:
            names.append(path.stem.split(".", 2)[2])
    return names


def _follow_first(job: JobFolder, should_stop: Callable[[], bool]) -> None:
    while (told := job.status() or {}).get("group") != _group() or told.get("words") != "starting":
        if should_stop():
            raise RunError(STOPPED)
        time.sleep(WAIT_S)


def _group() -> str:
    """What tells the processes that torchrun started together from all others; nothing without torchrun."""
    names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_PORT")
    return ":".join(os.environ.get(name, "") for name in names) if "RANK" in os.environ else ""


@contextmanager
def failures_told(run_dir: Path) -> Iterator[None]:
    """What ends a run before its trainer could say so stands in the status, if it was started from the page; nothing
    stays of a folder that was made to wait in."""
    job = JobFolder(run_dir)
    try:
        yield
    except BaseException as reason:
        told = job.status() or {}
        is_ours = job.is_ours() or (bool(_group()) and told.get("group") == _group())
        if is_ours and told.get("state") == "waiting":
            ours = "It ended by a mistake of ours before its first step; its log says more."
            message = str(reason) if isinstance(reason, MemsslError) else ours
            with suppress(OSError):
                job.write_status("failed", message=message)
        if is_ours and not is_run(run_dir):
            with suppress(OSError):
                (run_dir / "status.json").unlink()
                (run_dir / "control").rmdir()
                (run_dir / LOCK).unlink(missing_ok=True)
                run_dir.rmdir()
        raise


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
