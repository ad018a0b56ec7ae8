"""What the folder of a training run holds, as a bundle: also of a run that is not finished."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memssl_core import paths
from memssl_core.bundle.layout import Bundle, check_bundle
from memssl_core.bundle.table import MemoryTable
from memssl_core.bundle.thumbnails import thumbnails_of
from memssl_core.config import TrainConfig
from memssl_core.data.datasets import Images, open_images
from memssl_core.errors import MemsslError, RunError
from memssl_core.jobs import LIVE, JobFolder
from memssl_core.model.memory import NOISE
from memssl_core.model.pair import Pair
from memssl_core.training.checkpoint import checkpoints, load_checkpoint
from memssl_core.training.export import THUMBNAIL_BYTES, THUMBNAIL_PX, config_of
from memssl_core.training.loop import BEST
from memssl_core.training.start import CONFIG

_UNFIT = (ArithmeticError, AttributeError, LookupError, MemsslError, RuntimeError, TypeError, ValueError)


def run_weights(run: str) -> Path:
    """The bundle folder of a finished or stopped run, or a checkpoint file.

    Args: run, `NAME` below `paths.runs_dir()` or the path of a run folder, with `@STEP` a checkpoint of that step,
        with `@knn_top1` or `@rankme` the best one by the probe, without the bundle, or the newest checkpoint if there
        is no bundle or the run has gone on since it was written.
    Raises: RunError if there is none.
    """
    folder, name, wanted = _folder_and_step(run)
    if name in (".", "..") or not (folder / CONFIG).is_file():
        raise RunError(f"There is no training run named {name.rpartition('/')[2]!r} here; check the name.")
    steps = {path: path.stem.removeprefix("step-") for path in checkpoints(folder / "checkpoints")}
    found = {step.lstrip("0"): path for path, step in steps.items() if step.isdecimal()}
    bundle = folder / "bundle"
    if wanted is None and bundle.is_dir() and _trained_steps(bundle) >= max(map(int, found), default=0):
        return bundle
    if not found:
        raise RunError(f"{folder.name} has saved no checkpoint yet; wait for its first one.")
    newest = list(found)[-1]
    best = {figure: folder / "checkpoints" / f"best-{figure}.pt" for figure in BEST}
    found |= {figure: path for figure, path in best.items() if path.is_file()}
    if wanted is not None and wanted not in found:
        raise RunError(f"{folder.name} has no checkpoint {wanted}; it has {', '.join(found)}.")
    return found[newest if wanted is None else wanted]


def _trained_steps(bundle: Path) -> float:
    """Steps of a run that its bundle has seen; endless where the bundle does not tell."""
    try:
        return int(json.loads((bundle / CONFIG).read_bytes())["memssl"]["provenance"]["steps"])
    except (OSError, ValueError, LookupError, TypeError):
        return math.inf


@dataclass(frozen=True)
class Since:
    """What has become of a run since a snapshot of its memory."""

    steps: int
    keys: int
    """slots that have been written to, from the snapshot's cursor on"""
    overwritten: int
    """those of them that held a key"""
    is_running: bool


def since_snapshot(run: str, memory: MemoryTable) -> Since:
    """How far a run (see `run_weights`) has gone on since this memory of it was saved."""
    status = JobFolder(_folder_and_step(run)[0]).status() or {}
    saved = int(memory.step.max()) + 1
    steps = max(0, int(status.get("step") or 0) - saved)
    keys = min(round(memory.written / max(saved, 1) * steps), memory.slots)  # as many a step as before
    written = (memory.cursor + np.arange(keys)) % memory.slots
    overwritten = int((memory.image_id[written] != NOISE).sum())
    return Since(steps, keys, overwritten, status.get("state") in LIVE)


def _folder_and_step(run: str) -> tuple[Path, str, str | None]:
    name, at, step = run.rpartition("@")
    is_step = bool(at) and (step.isdecimal() or step in BEST)
    name, wanted = (name, step.lstrip("0")) if is_step else (run, None)
    return Path(name).expanduser() if "/" in name else paths.runs_dir() / name, name, wanted


def checkpoint_bundle(checkpoint: Path) -> Bundle:
    """Teacher, student and memory of a checkpoint in its run folder, without embeddings.

    Names, labels and thumbnails of the remembered pictures come from the run's data source if it still opens to as many
    pictures, the thumbnails when they are asked for.
    Raises: RunError.
    """
    state, folder = load_checkpoint(checkpoint), checkpoint.parents[1]
    try:
        bundle = _bundle(state, folder)
        check_bundle(bundle)
    except _UNFIT as reason:
        raise RunError(f"checkpoints/{checkpoint.name} is not one of this program; choose another.") from reason
    return bundle


def _bundle(state: dict[str, Any], folder: Path) -> Bundle:
    config, step = TrainConfig(**state["config"]), int(state["step"])
    with torch.random.fork_rng(devices=[]):
        pair = Pair(config)
    pair.load_state_dict(state["pair"])
    data = str(json.loads((folder / CONFIG).read_bytes())["data"])
    memory = _memory(state["memory"], _images(data, state["images"]))
    facts = {"name": f"{folder.name}, step {step}", "data": paths.without_folders(data), "steps": step}
    return Bundle(
        config=config_of(pair, config, facts),
        backbone=pair.teacher.backbone.state_dict(),
        head=pair.teacher.head.state_dict(),
        student=pair.student.state_dict(),
        memory=memory,
    )


def _images(data: str, count: int) -> Images | None:
    try:
        images = open_images(data)
    except MemsslError:
        return None
    return images if len(images) == count else None


def _memory(kept: dict[str, torch.Tensor], images: Images | None) -> MemoryTable:
    ids = kept["image_id"].tolist()
    known = [i if images and 0 <= i < len(images) else None for i in ids]
    labels = [images.label(i) if images and i is not None else None for i in known]
    small = thumbnails_of(images, side_px=THUMBNAIL_PX, max_bytes=THUMBNAIL_BYTES) if images else None
    return MemoryTable(
        vectors=kept["vectors"].numpy(),
        cursor=int(kept["cursor"]),
        written=int(kept["written"]),
        image_id=kept["image_id"].numpy(),
        uri=[images.uris[i] if images and i is not None else None for i in known],
        label=np.array([-1 if label is None else label for label in labels]),
        class_name=[images.class_names[label] if images and label is not None else None for label in labels],
        step=kept["step"].numpy(),
        box=kept["box"].numpy(),
        thumbnails=[None] * len(ids),
        small_picture=small,
    )
