"""What a run will need before it is started: counted from its sizes, and measured over a few real steps.

torch and the data are touched inside the functions only.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from memssl_core.config import TrainConfig
from memssl_core.errors import ConfigError, MemsslError, RunError
from memssl_core.jobs import Emit, Work, write_atomically
from memssl_core.paths import runs_dir
from memssl_core.training.start import cores, limited

if TYPE_CHECKING:
    import torch

    from memssl_core.data.datasets import Images
    from memssl_core.model.pair import Pair

RESULT = "result.json"
THUMBNAIL_BYTES, ROW_BYTES = 540, 100  # of a slot in the bundle's table: its picture, and the rest
SNAPSHOT_PICTURES_BYTES = 160_000  # pinned, recalled and the sheet of views, at most
MOST_DEPTH = 100  # transformer blocks, as every one is built to be counted
MOST_HELPERS = 512  # threads, or workers, of a process: more of them take a machine down
PROBED = 64  # pictures that a probe is timed with
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Plan:
    """What a run is made of, what it needs, and what this machine has."""

    images: int
    classes: int | None
    steps: int
    steps_per_epoch: int
    turns: float
    """how often the memory turns over"""
    device: str
    cores: int
    threads: int | None
    """of the training process on a CPU"""
    processes: int
    disk_bytes: int
    """at most: checkpoints (the newest two, the best ones, the one being written), snapshots, bundle"""
    disk_free_bytes: int
    memory_free_bytes: int
    """of the GPU where it trains on one"""
    problems: tuple[str, ...]
    """why it cannot run, a sentence each, the trainer's own where it would refuse"""
    advice: tuple[str, ...]
    """alarms that the sizes give reason to"""


@dataclass(frozen=True)
class Measured:
    """A few real steps, and what follows from them for a whole run."""

    images_per_s: float
    step_s: float
    seconds: float
    """the whole run: all steps, probes and snapshots; without saving and the bundle"""
    memory_bytes: int
    """highest: resident in all processes of the trainer together, or of a GPU what tensors hold"""
    steps: int
    """that were measured"""


def plan(config: TrainConfig, data: str, runs: Path, *, processes: int = 1) -> Plan:
    """Count what a run needs; nothing is trained, written or raised for what would not work: it is in `problems`."""
    problems: list[str] = []

    def tried(make: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return make()
        except MemsslError as reason:
            problems.append(str(reason))
            return otherwise

    images: Images | None = tried(lambda: _opened(config, data, processes, problems), None)
    count = len(images) if images else 0
    steps = tried(lambda: _steps(config, count), 0)
    device = tried(lambda: _device(config, processes), None)
    tried(lambda: _refuse_crowds(config), None)
    pair: Pair | None = tried(lambda: _shapes(config), None)
    checkpoint = _checkpoint_bytes(pair, config) if pair else 0
    needed = _disk_bytes(pair, config, checkpoint, steps) if pair else 0
    free: int | None = tried(lambda: _disk_free(runs), None)
    memory_free = _memory_free(device)
    if free is not None and needed > free:
        problems.append(
            f"The disk has {_size(free)} free and this run may need {_size(needed)} for checkpoints, snapshots and "
            "the bundle; make room, or choose a smaller model or memory."
        )
    if device and pair and (least := checkpoint + _batch_bytes(config) // processes) > memory_free:
        problems.append(
            f"{_size(memory_free)} of memory are free and the model, its optimizer, its memory and the views of a "
            f"batch alone take {_size(least)}; choose a smaller model, fewer memory_slots or a smaller batch_size."
        )
    return Plan(
        images=count,
        classes=len(images.class_names) or None if images else None,
        steps=steps,
        steps_per_epoch=count // config.batch_size,
        turns=steps * config.batch_size / config.memory_slots,
        device=str(device or config.device),
        cores=cores(),
        threads=limited(config, processes=processes).threads,
        processes=processes,
        disk_bytes=needed,
        disk_free_bytes=free or 0,
        memory_free_bytes=memory_free,
        problems=tuple(problems),
        advice=_advice(config, count, steps) if count and steps else (),
    )


def _opened(config: TrainConfig, data: str, processes: int, problems: list[str]) -> Images:
    from memssl_core.data.datasets import open_images
    from memssl_core.training.loop import check_sizes
    from memssl_core.training.ranks import Ranks

    images = open_images(data)
    try:
        check_sizes(config, images, Ranks(size=processes))
    except MemsslError as reason:
        problems.append(str(reason))
    return images


def _steps(config: TrainConfig, images: int) -> int:
    try:
        return config.steps or (max(1, round(config.epochs * (images // config.batch_size))) if images else 0)
    except OverflowError:
        raise ConfigError(f"epochs is {config.epochs}; it must have an end.") from None


def _refuse_crowds(config: TrainConfig) -> None:
    for name, count in (("threads", config.threads or 0), ("workers", config.workers)):
        if count > MOST_HELPERS:
            raise ConfigError(f"{name} {count} is more than a machine bears; choose at most {MOST_HELPERS}.")


def _device(config: TrainConfig, processes: int) -> torch.device:
    import torch

    from memssl_core.device import choose_device

    device = choose_device(config.device)
    if device.type == "cuda" and processes > (there := torch.cuda.device_count()):
        raise ConfigError(f"There are {there} GPUs here, not {processes}; choose as many processes at most.")
    return device


def _shapes(config: TrainConfig) -> Pair:
    """Student and teacher without numbers in them."""
    import torch

    from memssl_core.model.pair import Pair

    if (config.depth or 0) > MOST_DEPTH:
        raise ConfigError(f"depth {config.depth} is more than can be built; choose at most {MOST_DEPTH}.")
    try:
        with torch.device("meta"):
            return Pair(config)
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as reason:
        raise ConfigError(f"{config.backbone} cannot be built with these sizes; choose smaller ones.") from reason


def _checkpoint_bytes(pair: Pair, config: TrainConfig) -> int:
    weights = sum(value.nbytes for value in pair.state_dict().values())
    trained = sum(value.nbytes for value in pair.student.parameters() if value.requires_grad)
    moments = trained * (2 if config.optimizer == "adamw" else 1)
    slot = 4 * config.projection_dim + 8 + 8 + 16  # vector, image, step, box
    return weights + moments + config.memory_slots * slot


def _batch_bytes(config: TrainConfig) -> int:
    """Of the views of a batch, a byte a channel."""
    pixels = 2 * config.global_size**2 + config.local_views * config.local_size**2
    return 3 * pixels * config.batch_size


def _disk_bytes(pair: Pair, config: TrainConfig, checkpoint: int, steps: int) -> int:
    from memssl_core.model.backbone import embedding_width
    from memssl_core.training.checkpoint import KEPT
    from memssl_core.training.loop import BEST
    from memssl_core.training.snapshots import MOST_KEPT, MOST_SLOTS, MOST_VECTOR_BYTES

    wide = 2 * config.projection_dim
    shown = min(config.memory_slots, MOST_SLOTS, max(1, MOST_VECTOR_BYTES // wide))
    snapshots = min(MOST_KEPT, _times(steps, config.snapshot_every)) * (shown * (wide + 24) + SNAPSHOT_PICTURES_BYTES)
    weights = sum(2 * value.numel() for value in pair.state_dict().values())
    row = wide + 2 * embedding_width(pair.teacher.backbone) + THUMBNAIL_BYTES + ROW_BYTES
    return checkpoint * (KEPT + len(BEST) + 1) + snapshots + weights + config.memory_slots * row


def _times(steps: int, every: int) -> int:
    """How often something happens that is due at the start, every so many steps, and at the end."""
    return 1 + -(-steps // every)


def _disk_free(runs: Path) -> int:
    """Bytes. Raises: RunError unless something can be written there."""
    there = next(folder for folder in (runs.absolute(), *runs.absolute().parents) if os.path.lexists(folder))
    try:
        with tempfile.TemporaryFile(dir=there):
            return shutil.disk_usage(there).free
    except OSError as reason:
        why = (reason.strerror or "the disk refuses").lower()
        raise RunError(f"The folder of runs, {runs.name}, cannot be written: {why}; choose another place.") from reason


def _memory_free(device: torch.device | None) -> int:
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    with suppress(OSError, ValueError, KeyError):  # what a container is allowed
        told = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        used = int((_CGROUP / "memory.current").read_text()) - int(told["inactive_file"]) - int(told["active_file"])
        free = min(free, max(0, int((_CGROUP / "memory.max").read_text()) - used))
    return free


def _advice(config: TrainConfig, images: int, steps: int) -> tuple[str, ...]:
    from memssl_core.training.alarms import Alarms

    alarms = Alarms(config, images, steps, images // config.batch_size, cores=cores())
    return tuple(alarms.hear("started", 0))


def measure(
    config: TrainConfig,
    data: str,
    *,
    steps: int = 5,
    processes: int = 1,
    emit: Emit = lambda event, *, step, **facts: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Measured:
    """Train a few steps after one to warm up, as the run would; nothing is kept of them or written.

    Of several processes the share of one is measured here, and the others are taken to be as fast. Batches that the
    workers had ready count as if they were made meanwhile.
    Raises: a MemsslError for what would not run, or if it was asked to stop.
    """
    import torch

    from memssl_core.data.datasets import open_images
    from memssl_core.data.views import view_loader
    from memssl_core.device import choose_device
    from memssl_core.training.film import Pinned
    from memssl_core.training.loop import check_sizes
    from memssl_core.training.pressure import explaining_memory, first_to_go
    from memssl_core.training.probe import Probe
    from memssl_core.training.ranks import Ranks
    from memssl_core.training.snapshots import packed, take
    from memssl_core.training.state import TrainState
    from memssl_core.training.step import train_step

    config, images = limited(config, processes=processes), open_images(data)
    check_sizes(config, images, Ranks(size=processes))
    share = replace(config, batch_size=config.batch_size // processes)
    whole = _steps(config, len(images))
    with first_to_go(), explaining_memory(config), _watching(device := choose_device(config.device)) as peak:
        state = TrainState(share, images, Ranks(device=device))
        state.steps = max(state.steps, steps + 1)
        making_s = _making_s(images, share)
        batches = iter(view_loader(images, share, start=0, stop=state.steps))
        batch, began = next(batches), 0.0
        for step in range(steps + 1):
            if should_stop():
                raise RunError("Stopped; nothing was measured.")
            emit("progress", step=step, total=steps + 1, words="training a few steps")
            train_step(state, batch, with_gauges=False)
            state.step += 1
            if step == 0:
                began = _now(device)
            if step < steps:
                batch = next(batches)
        step_s = max((_now(device) - began) / steps, making_s)
        del batches
        probe = Probe.of(images, config)
        some = replace(probe, ids=probe.ids[:PROBED])
        probe_s = _timed(lambda: some(state.pair.teacher.backbone, device), device) * len(probe.ids) / len(some.ids)
        pinned = Pinned.of(images, probe.ids, probe.transform, device)
        snapshot_s = _timed(lambda: packed(take(state, batch, pinned)), device)
        if device.type == "cuda":
            peak.append(torch.cuda.max_memory_allocated(device))
    seconds = whole * step_s
    seconds += _times(whole, config.probe_every) * probe_s + _times(whole, config.snapshot_every) * snapshot_s
    return Measured(config.batch_size / step_s, step_s, seconds, max(peak) * _counted(device, processes), steps)


def _counted(device: torch.device, processes: int) -> int:
    return 1 if device.type == "cuda" else processes


def _making_s(images: Images, config: TrainConfig) -> float:
    """Seconds between two batches that the workers can keep up; 0 where the training process cuts the views itself."""
    from memssl_core.data.views import ViewDataset, collate

    if not config.workers:
        return 0.0
    dataset, began = ViewDataset(images, config), time.monotonic()
    collate([dataset[(0, image_id)] for image_id in range(config.batch_size)])
    return (time.monotonic() - began) / config.workers


def _now(device: torch.device) -> float:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


def _timed(work: Callable[[], object], device: torch.device) -> float:
    began = _now(device)
    work()
    return _now(device) - began


@contextmanager
def _watching(device: torch.device, every_s: float = 0.05) -> Iterator[list[int]]:
    """Bytes of memory that were seen in use, of the CPU's unless it trains on a GPU."""
    import torch

    seen, done = [0], threading.Event()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield seen
        return

    def watch() -> None:
        while not done.wait(every_s):
            seen[0] = max(seen[0], _resident(psutil.Process()))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()
        seen[0] = max(seen[0], _resident(psutil.Process()))


def _resident(process: psutil.Process) -> int:
    """Of a process, and what its workers do not share with it."""
    total = process.memory_info().rss
    for child in process.children(recursive=True):
        with suppress(psutil.Error):
            told = child.memory_full_info()
            total += getattr(told, "uss", told.rss)
    return total


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def table(plan: Plan, measured: Measured | None) -> list[tuple[str, str]]:
    """Names and words, a row each, for people."""
    rows = [
        ("pictures", f"{plan.images}" + (f" in {plan.classes} classes" if plan.classes else "")),
        ("steps", f"{plan.steps}, {plan.steps_per_epoch} an epoch"),
        ("memory turns over", f"{plan.turns:.3g} times"),
        ("device", f"{plan.device}, {plan.processes} processes" if plan.processes > 1 else plan.device),
        ("cores", f"{plan.cores}" + (f", {plan.threads} threads train" if plan.threads else "")),
        ("disk", f"up to {_size(plan.disk_bytes)} of {_size(plan.disk_free_bytes)} free"),
        ("memory free", _size(plan.memory_free_bytes)),
    ]
    if measured:
        rows += [
            ("speed", f"{measured.images_per_s:.3g} pictures/s, {measured.step_s:.3g} s a step"),
            ("time", _duration(measured.seconds)),
            ("memory needed", _size(measured.memory_bytes)),
        ]
    return [*rows, *(("take care", sentence) for sentence in plan.advice), *(("cannot run", x) for x in plan.problems)]


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"


def as_json(plan: Plan, measured: Measured | None) -> str:
    return json.dumps({"plan": asdict(plan), "measured": asdict(measured) if measured else None}, allow_nan=False)


def planned(
    config: TrainConfig, data: str, work: Work, processes: int, *, quick: bool, folder: Path | None
) -> tuple[Plan, Measured | None]:
    """The work of the verb `plan`: measured unless it is to be `quick`, or could not run. A job's folder gets both as
    result.json."""
    counted, measured = plan(config, data, runs_dir(), processes=processes), None
    if not (quick or counted.problems):
        measured = measure(config, data, processes=processes, emit=work.emit, should_stop=work.should_stop)
    if folder:
        write_atomically(folder / RESULT, as_json(counted, measured).encode())
    work.finish(RESULT)
    return counted, measured
