"""The trainer: one loop that reads as the method does, in a run folder that outlives it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from memssl_core.config import TrainConfig
from memssl_core.data.datasets import Images, open_images
from memssl_core.data.views import Batch, normalised, view_loader
from memssl_core.device import choose_device, choose_precision
from memssl_core.errors import MemsslError, RunError
from memssl_core.jobs import HEARTBEAT_S, Emit, JobFolder, event_writer, read_events, write_atomically
from memssl_core.model.loss import block_loss_and_entropy
from memssl_core.model.memory import Memory, block_order
from memssl_core.model.pair import Pair
from memssl_core.paths import without_folders
from memssl_core.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from memssl_core.training.diagnostics import watch
from memssl_core.training.export import export_bundle
from memssl_core.training.optimizer import adamw, clip_each_tensor, set_rates
from memssl_core.training.probe import Probe
from memssl_core.training.schedules import rates_at

CONFIG = "config.json"


def train(
    config: TrainConfig,
    data: str,
    run_dir: Path | str,
    *,
    listen: Emit | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Train on a data source, or go on with what `run_dir` holds; the finished bundle's folder.

    Args: data, a source `open_images` knows; listen, also gets every event; should_stop, asked after every step: a
        true answer saves and ends cleanly (so does a file `control/stop` in the run folder).
    Raises: a MemsslError for settings, data or a run folder that cannot work.
    """
    folder = Path(run_dir)
    bundle = folder / "bundle"
    _refuse_strangers(folder, config, data)
    job = JobFolder(folder)
    if (job.status() or {}).get("state") == "finished" and bundle.exists():
        return bundle
    images = open_images(data)
    if len(images) < config.batch_size:
        raise RunError(f"{data} has {len(images)} pictures, fewer than batch_size {config.batch_size}; lower it.")
    state = TrainState(config, images)
    restored = state.restore(folder)
    job.create().clear_requests()
    write_atomically(folder / CONFIG, json.dumps(_settings(config, data), indent=2).encode())
    emit = event_writer(job.events, *([listen] if listen else []))
    job.write_status("running", step=state.step, steps=state.steps, data=data)
    emit("started", step=state.step, steps=state.steps, images=len(images), resumed=restored, device=str(state.device))
    for sentence in images.notes:
        emit("alarm", step=state.step, message=sentence)
    try:
        _run(state, job, emit, should_stop)
        if state.step < state.steps:
            emit("stopped", step=state.step)
            job.write_status("stopped", step=state.step, steps=state.steps, data=data)
            return bundle
        facts = _provenance(state, data, folder)
        export_bundle(state.pair, state.memory, images, config, bundle, provenance=facts, trained_s=state.trained_s)
    except BaseException as reason:
        message = str(reason) if isinstance(reason, MemsslError) else f"{type(reason).__name__}: {reason}"
        emit("failed", step=state.step, message=message)
        job.write_status("failed", step=state.step, steps=state.steps, data=data, message=message)
        raise
    emit("finished", step=state.step)
    job.write_status("finished", step=state.step, steps=state.steps, data=data)
    return bundle


class TrainState:
    """What a run is at a step: pair, optimizer, memory, step. Views and blocks follow from (seed, step) alone."""

    def __init__(self, config: TrainConfig, images: Images) -> None:
        self.config, self.images = config, images
        self.device = choose_device(config.device)
        self.precision = choose_precision(config.precision, self.device)
        if config.threads:
            torch.set_num_threads(config.threads)
        self.steps_per_epoch = len(images) // config.batch_size
        self.steps = config.steps or max(1, round(config.epochs * self.steps_per_epoch))
        self.step = 0
        self.trained_s = 0.0
        torch.manual_seed(config.seed)
        self.pair = Pair(config).to(self.device).train()
        generator = torch.Generator().manual_seed(config.seed)
        self.memory = Memory(config.memory_slots, config.projection_dim, generator=generator).to(self.device)
        self.optimizer = adamw(self.pair.student)

    def save(self, folder: Path) -> None:
        state = {
            "step": self.step,
            "steps": self.steps,
            "images": len(self.images),
            "trained_s": self.trained_s,
            "config": asdict(self.config),
            "pair": self.pair.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "memory": self.memory.state_dict(),
            "versions": {"torch": str(torch.__version__)},
        }
        save_checkpoint(folder / "checkpoints", self.step, state)

    def restore(self, folder: Path) -> bool:
        """Take up the newest checkpoint, if there is one."""
        found = checkpoints(folder / "checkpoints")
        if not found:
            return False
        state = load_checkpoint(found[-1])
        if state["images"] != len(self.images):
            raise RunError(
                f"This run began with {state['images']} pictures and the data source now has {len(self.images)}; "
                "restore the source, or start a new run folder."
            )
        self.pair.load_state_dict(state["pair"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.memory.load_state_dict(state["memory"])
        self.step, self.trained_s = state["step"], state["trained_s"]
        return True


def _run(state: TrainState, job: JobFolder, emit: Emit, should_stop: Callable[[], bool]) -> None:
    config, folder = state.config, job.path
    probe = Probe.of(state.images, config)
    if state.step == 0:
        emit("probe", step=0, **probe(state.pair.teacher.backbone, state.device))
    known_skips: set[str] = set()
    began = beat = asked = time.monotonic()
    trained_before, first, waited_s = state.trained_s, state.step, 0.0
    for batch in view_loader(state.images, config, start=state.step, stop=state.steps):
        waited_s += time.monotonic() - asked
        for sentence in set(batch.skipped) - known_skips:
            known_skips.add(sentence)
            emit("skipped_image", step=state.step, message=sentence, skipped=len(known_skips))
        is_logged = state.step % config.log_every == 0
        facts = train_step(state, batch, with_gauges=is_logged)
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
            job.write_status("running", step=state.step, steps=state.steps)
            beat = now
        is_last = state.step == state.steps
        if is_last or state.step % config.probe_every == 0:
            emit("probe", step=state.step, **probe(state.pair.teacher.backbone, state.device))
        is_stopping = should_stop() or job.stop_requested()
        if is_last or is_stopping or state.step % config.save_every == 0:
            state.save(folder)
            emit("saved", step=state.step)
        if is_stopping:
            return
        asked = time.monotonic()


def train_step(state: TrainState, batch: Batch, *, with_gauges: bool) -> dict[str, Any]:
    """One optimizer step, in the order of the method; the facts to log."""
    config, memory, pair = state.config, state.memory, state.pair
    now = rates_at(state.step, config, steps=state.steps, steps_per_epoch=state.steps_per_epoch)
    set_rates(state.optimizer, now)
    _seed_step(config.seed, state.step)
    views = [normalised(v.to(state.device, non_blocking=True)) for v in (batch.global_views, batch.local_views)]
    with torch.autocast(state.device.type, dtype=torch.bfloat16, enabled=state.precision == "bf16"):
        student, teacher = pair(*views)
    order = block_order(config.seed, state.step, config.memory_slots).to(state.device)
    loss, entropy = block_loss_and_entropy(
        student,
        teacher,
        memory.vectors,
        order,
        block_size=config.block_size,
        student_temperature=now.student_temperature,
        teacher_temperature=now.teacher_temperature,
    )
    _stop_unless_finite(loss.item(), state.step)
    gauges = (
        watch(student, teacher, memory.vectors[order[: config.block_size]], teacher_temperature=now.teacher_temperature)
        if with_gauges
        else {}
    )
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    grad_norm, clipped_share = clip_each_tensor(pair.student.parameters(), config.clip_norm)
    state.optimizer.step()
    pair.move_teacher(now.momentum)
    memory.push(teacher[1], batch.image_ids.to(state.device), batch.boxes.to(state.device), state.step)
    facts = {"loss": loss.item(), "kl": loss.item() - entropy.item(), **asdict(now), **gauges}
    return facts | {"grad_norm": grad_norm, "clipped_share": clipped_share}


def _seed_step(seed: int, step: int) -> None:
    """Stochastic depth and patch drop are functions of (seed, step), so a resumed run draws what it would have."""
    torch.manual_seed((seed * 1_000_003 + step) % (1 << 63))


def _stop_unless_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise RunError(
            f"The loss is not finite at step {step}; this step was not applied and the last checkpoint stands. "
            "Try a lower lr, a longer warm-up, or --precision fp32."
        )


def _settings(config: TrainConfig, data: str) -> dict[str, Any]:
    return json.loads(json.dumps({"data": data, **asdict(config)}))


def _refuse_strangers(folder: Path, config: TrainConfig, data: str) -> None:
    """RunError for a folder that holds something else, another run, or a run whose trainer is alive; writes nothing."""
    if (folder / CONFIG).exists():
        found, wanted = json.loads((folder / CONFIG).read_bytes()), _settings(config, data)
        for name in wanted:
            if found.get(name) != wanted[name]:
                raise RunError(
                    f"{folder.name} holds a run with {name} {found.get(name)}, not {wanted[name]}; "
                    "give the same settings to go on with it, or another --run-dir."
                )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder.name} is not an empty folder and holds no run; choose another --run-dir.")
    status = JobFolder(folder).status()
    if status and status["state"] == "running":
        raise RunError(f"{folder.name} is being trained already by process {status['pid']}; stop that one first.")


def _provenance(state: TrainState, data: str, folder: Path) -> dict[str, Any]:
    """What the bundle's card tells of its making; equal runs give equal facts."""
    probes = [event for event in read_events(JobFolder(folder).events)[0] if event["event"] == "probe"]
    figures = {f"{name}_untrained": value for name, value in _figures(probes[0]).items()} | _figures(probes[-1])
    return {
        "name": state.config.backbone.split("_patch")[0] + "-memory",
        "data": without_folders(data),
        "images": len(state.images),
        "steps": state.step,
        "images_seen": state.step * state.config.batch_size,
        **figures,
        "config": asdict(state.config),
        "torch": str(torch.__version__),
    }


def _figures(probe: dict[str, Any]) -> dict[str, float]:
    return {name: probe[name] for name in ("knn_top1", "rankme") if name in probe}
