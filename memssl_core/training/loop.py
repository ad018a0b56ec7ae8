"""The trainer: a run folder that outlives it, and the loop over steps. torchrun starts it in many processes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from memssl_core.config import TrainConfig
from memssl_core.data.datasets import Images, open_images
from memssl_core.data.views import Batch, view_loader
from memssl_core.errors import ConfigError, MemsslError, RunError
from memssl_core.jobs import HEARTBEAT_S, Emit, JobFolder, event_writer, read_events, write_atomically
from memssl_core.paths import without_folders
from memssl_core.training.alarms import Alarms
from memssl_core.training.checkpoint import checkpoints, clear_unfinished, explaining_writes, keep_as_best
from memssl_core.training.diagnostics import Earlier, probe_facts
from memssl_core.training.export import export_bundle
from memssl_core.training.film import Pinned
from memssl_core.training.pressure import explaining_memory, first_to_go
from memssl_core.training.probe import Probe
from memssl_core.training.ranks import Ranks, joined
from memssl_core.training.snapshots import FOLDER, forget_after, take, thin, write
from memssl_core.training.start import CONFIG, LOCK
from memssl_core.training.state import TrainState
from memssl_core.training.step import train_step

_OURS = (LOCK, "control", "checkpoints", "job.json", "log.txt", "status.json", "first.tmp", "events.jsonl")
"""what a run that ended before it wrote its config, or whoever started it, may have left"""
FREE = ("workers", "log_every", "save_every", "snapshot_every", "threads")
"""settings that change nothing of what is computed, or its last bits: a run may go on with others"""
BEST = ("knn_top1", "rankme")


def train(
    config: TrainConfig,
    data: str,
    run_dir: Path | str,
    *,
    listen: Emit | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Train on a data source, or go on with what `run_dir` holds; the finished bundle's folder.

    Under torchrun all processes call it together: each trains on its share of every batch, and rank 0 writes.

    Args: data, a source `open_images` knows; listen, also gets every event; should_stop, asked at every step: a
        true answer saves after it and ends cleanly. So does a file `control/stop` in the run folder, which also has
        the bundle written as the run then is; `control/save` saves and goes on.
    Raises: a MemsslError for settings, data or a run folder that cannot work.
    """
    folder = Path(run_dir)
    with first_to_go(), joined(config.device) as ranks:
        is_done = ranks.from_first(lambda: is_finished(folder, config, data))
        if is_done:
            return folder / "bundle"
        with explaining_writes("A file of the run"), explaining_memory(config), ExitStack() as held:
            ranks.from_first(lambda: _claim(folder, held))
            _train(config, data, folder, ranks, listen, should_stop)
    return folder / "bundle"


def _train(
    config: TrainConfig, data: str, folder: Path, ranks: Ranks, listen: Emit | None, should_stop: Callable[[], bool]
) -> None:
    images = open_images(data)
    check_sizes(config, images, ranks)
    config = replace(config, threads=config.threads or ranks.from_first(lambda: _threads_of(folder)))
    state, job = TrainState(config, images, ranks), JobFolder(folder)
    if state.listing != ranks.from_first(lambda: state.listing):
        raise RunError(f"{images.spec} lists other pictures here than on the first machine; give all the same data.")
    sentences = list(state.restore(folder))
    emit: Emit = lambda event, *, step, **facts: None
    tell = lambda standing, **facts: None
    if ranks.is_first:
        settings = {**_settings(replace(config, threads=None), data), "chosen": _chosen(state)}
        write_atomically(folder / CONFIG, json.dumps(settings, indent=2).encode())
        job.create().clear_requests()
        for kept in ("checkpoints", FOLDER):
            clear_unfinished(folder / kept)
        forget_after(folder, state.step)
        for figure in (name for name, (_, step) in state.best.items() if step == state.step):
            keep_as_best(checkpoints(folder / "checkpoints")[-1], figure)  # a kill may have come before it was
        emit = _with_alarms(state, folder, event_writer(job.events, *([listen] if listen else [])))
        tell = lambda standing, **facts: job.write_status(
            standing, step=state.step, steps=state.steps, data=data, **facts
        )
    try:
        tell("running")
        facts = {"steps": state.steps, "images": len(images), "device": str(state.device), "processes": ranks.size}
        restored = {"restored": sentences[-1]} if state.step else {}
        emit("started", step=state.step, resumed=bool(state.step), **facts, **restored)
        for sentence in (*images.notes, *sentences[: -1 if state.step else None]):
            emit("alarm", step=state.step, message=sentence)
        with explaining_writes("A file of the run"), explaining_memory(config):
            wants_bundle = _run(state, job, emit, tell, should_stop)
            if ranks.is_first and wants_bundle:  # the others need not wait
                tell("running", words="writing the bundle")
                _export(state, data, folder)
    except BaseException as reason:
        _tell_of_failure(reason, state, emit, tell)
        raise
    ending = "finished" if state.step == state.steps else "stopped"
    emit(ending, step=state.step)
    tell(ending)


def _with_alarms(state: TrainState, folder: Path, emit: Emit) -> Emit:
    """Every event, and after it an `alarm` for what it gives reason to; those of the run's past were told then."""
    alarms = Alarms(state.config, len(state.images), state.steps, state.steps_per_epoch)
    for event in read_events(JobFolder(folder).events)[0] if state.step else []:
        if event.get("step", 0) <= state.step:
            alarms.hear(**event)

    def emit_and_hear(event: str, *, step: int, **facts: Any) -> None:
        emit(event, step=step, **facts)
        for sentence in alarms.hear(event, step, **facts):
            emit("alarm", step=step, message=sentence)

    return emit_and_hear


def _run(
    state: TrainState, job: JobFolder, emit: Emit, tell: Callable[..., None], should_stop: Callable[[], bool]
) -> bool:
    """Train until the end, or until asked to stop; whether the bundle is to be written."""
    config, ranks = state.config, state.ranks
    probe = Probe.of(state.images, config) if ranks.is_first else None
    pinned = Pinned.of(state.images, probe.ids, probe.transform, state.device) if probe else None
    earlier = None
    if probe and pinned and state.step == 0:
        figures, earlier = _probed(state, probe, None)
        emit("probe", step=0, **figures)
        state.untrained = _figures(figures)
        _snapshot(state, job, None, pinned, emit)
    known_skips: set[str] = set()
    began = beat = asked = time.monotonic()
    trained_before, first, waited_s = state.trained_s, state.step, 0.0
    loader = view_loader(state.images, config, start=state.step, stop=state.steps, part=ranks.rank, parts=ranks.size)
    for batch in loader:
        waited_s += time.monotonic() - asked
        is_logged = ranks.is_first and state.step % config.log_every == 0
        by_signal, by_file = should_stop(), ranks.is_first and job.stop_requested()
        facts, is_stopping, skipped = train_step(
            state, batch, with_gauges=is_logged, folder=job.path, asked_to_stop=by_signal or by_file
        )
        for sentence in sorted(set(skipped) - known_skips):
            known_skips.add(sentence)
            emit("skipped_image", step=state.step, message=sentence, skipped=len(known_skips))
        state.step += 1
        now = time.monotonic()
        state.trained_s = trained_before + now - began
        if is_logged:
            rate = (state.step - first) / (now - began)
            emit(
                "step",
                step=state.step,
                **facts,
                images_per_s=rate * config.batch_size,
                wait_share=waited_s / (now - began),
                eta_s=(state.steps - state.step) / rate,
            )
        if now - beat > HEARTBEAT_S:
            tell("running")
            beat = now
        is_last = state.step == state.steps
        is_due = lambda every, over=is_last: over or state.step % every == 0
        best: list[str] = []
        if probe and is_due(config.probe_every):
            figures, earlier = _probed(state, probe, earlier)
            emit("probe", step=state.step, **figures)
            state.figures = _figures(figures)
            best = _better(state)
        if ranks.is_first and (is_stopping or best or is_due(config.save_every) or job.save_requested()):
            _save(state, job, best, emit)
        if pinned and (is_stopping or is_due(config.snapshot_every)):
            _snapshot(state, job, batch, pinned, emit)
        if is_stopping and not is_last:
            return by_file and not by_signal
        asked = time.monotonic()
    return True


def _save(state: TrainState, job: JobFolder, best: list[str], emit: Emit) -> None:
    saved = state.save(job.path)
    for figure in best:
        keep_as_best(saved, figure)
    job.clear_save()
    emit("saved", step=state.step)


def _snapshot(state: TrainState, job: JobFolder, batch: Batch | None, pinned: Pinned, emit: Emit) -> None:
    write(job.path, take(state, batch, pinned))
    thin(job.path)
    emit("snapshot", step=state.step)


def _probed(state: TrainState, probe: Probe, earlier: Earlier | None) -> tuple[dict[str, float], Earlier]:
    figures, embeddings = probe(state.pair.teacher.backbone, state.device)
    pair = state.pair
    facts, now = probe_facts(pair.student, pair.teacher, embeddings, step=state.step, earlier=earlier)
    return figures | facts, now


def _better(state: TrainState) -> list[str]:
    """The figures that are better than ever before; `state.best` is brought up to date."""
    now = state.figures
    better = [name for name, value in now.items() if name not in state.best or value > state.best[name][0]]
    state.best.update({name: [now[name], state.step] for name in better})
    return better


def _claim(folder: Path, held: ExitStack) -> None:
    """Be the only trainer of this folder until the end. Raises: RunError if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        held.enter_context(FileLock(folder / LOCK).acquire(timeout=0))
    except Timeout:
        raise RunError(f"{folder.name} is being trained by another process; stop that one first.") from None
    held.callback(_leave_no_empty_folder, folder)


def _leave_no_empty_folder(folder: Path) -> None:
    with suppress(OSError):
        if [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            folder.rmdir()


def _tell_of_failure(reason: BaseException, state: TrainState, emit: Emit, tell: Callable[..., None]) -> None:
    ours = "It ended by a mistake of ours; the last checkpoint stands. See its log, then go on with the run."
    message = str(reason) if isinstance(reason, MemsslError) else ours
    try:
        tell("failed", message=message)
        emit("failed", step=state.step, message=message)
    except OSError:  # the disk may be what has failed
        return


def check_sizes(config: TrainConfig, images: Images, ranks: Ranks) -> None:
    if len(images) < config.batch_size:
        raise RunError(
            f"{images.spec} has {len(images)} pictures, fewer than batch_size {config.batch_size}; lower it."
        )
    if config.batch_size % (ranks.size * config.accumulate):
        raise ConfigError(
            f"batch_size {config.batch_size} cannot be divided by {ranks.size} processes and accumulate "
            f"{config.accumulate}; choose a multiple of {ranks.size * config.accumulate}."
        )


def _threads_of(folder: Path) -> int:
    """What the run began with, else torch's own choice: sums depend on it in their last bits."""
    try:
        return int(json.loads((folder / CONFIG).read_bytes())["chosen"]["threads"])
    except (OSError, ValueError, KeyError, TypeError):
        return torch.get_num_threads()


def _chosen(state: TrainState) -> dict[str, Any]:
    return {"threads": torch.get_num_threads(), "precision": state.precision, "device": str(state.device)}


def _settings(config: TrainConfig, data: str) -> dict[str, Any]:
    return json.loads(json.dumps({"data": data, **asdict(config)}))


def is_finished(folder: Path, config: TrainConfig, data: str) -> bool:
    """Whether the folder holds this run, finished. Writes nothing.

    Raises: RunError for a folder that holds something else, another run, or a run whose trainer is alive.
    """
    if (folder / CONFIG).exists():
        try:
            found = json.loads((folder / CONFIG).read_bytes())
            found = {**_settings(TrainConfig(), ""), **found}  # settings that are younger than the run
        except (ValueError, TypeError) as reason:
            raise RunError(
                f"{CONFIG} of {folder.name} cannot be read; restore it, or choose another --run-dir."
            ) from reason
        wanted = _settings(config, data)
        for name in wanted:
            if name not in FREE and found.get(name) != wanted[name]:
                raise RunError(
                    f"{folder.name} holds a run with {name} {found.get(name)}, not {wanted[name]}; "
                    "give the same settings to go on with it, or another --run-dir."
                )
    elif folder.exists() and (not folder.is_dir() or any(path.name not in _OURS for path in folder.iterdir())):
        raise RunError(f"{folder.name} is not an empty folder and holds no run; choose another --run-dir.")
    status = JobFolder(folder).status() or {}
    if status.get("state") == "running":
        raise RunError(f"{folder.name} is being trained already by process {status['pid']}; stop that one first.")
    return status.get("state") == "finished" and (folder / "bundle").exists()


def _export(state: TrainState, data: str, folder: Path) -> None:
    facts = _provenance(state, data)
    bundle = folder / "bundle"
    export_bundle(
        state.pair, state.memory, state.images, state.config, bundle, provenance=facts, trained_s=state.trained_s
    )


def _provenance(state: TrainState, data: str) -> dict[str, Any]:
    """What the bundle's card tells of its making; equal runs give equal facts."""
    figures = {f"{name}_untrained": value for name, value in state.untrained.items()} | state.figures
    settings = {name: value for name, value in asdict(state.config).items() if name not in FREE}
    return {
        "name": state.config.backbone.split("_patch")[0] + "-memory",
        "data": without_folders(data),
        "images": len(state.images),
        "steps": state.step,
        "images_seen": state.step * state.config.batch_size,
        **figures,
        "config": settings,
        "torch": str(torch.__version__),
    }


def _figures(probe: dict[str, Any]) -> dict[str, float]:
    return {name: probe[name] for name in BEST if name in probe}
