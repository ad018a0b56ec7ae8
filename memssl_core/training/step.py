"""One optimizer step, in the order of the method."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from memssl_core.config import TrainConfig
from memssl_core.data.views import Batch, normalised
from memssl_core.errors import DataError, RunError
from memssl_core.model.loss import block_loss_and_entropy
from memssl_core.model.memory import block_order
from memssl_core.training.capsule import write_capsule
from memssl_core.training.diagnostics import memory_facts, watch
from memssl_core.training.optimizer import clip_each_tensor, set_rates
from memssl_core.training.schedules import Rates, rates_at
from memssl_core.training.state import TrainState


class Stepped(NamedTuple):
    facts: dict[str, Any]
    """to log"""
    is_stopping: bool
    """any process was asked to stop"""
    skipped: tuple[str, ...]
    """what was wrong with the pictures that could not be read, of all processes"""


@dataclass(frozen=True)
class Done:
    """What a forward and backward pass over a batch gives; the gradients are in the student's parameters."""

    loss: Tensor
    """nats, mean over the pictures of this process, as is the next"""
    entropy: Tensor
    """the teacher's"""
    keys: Tensor
    """[B, D] the teacher's projections of the second global view, of this process"""
    student: Tensor
    """[V, b, D] projections of the last micro-batch, as is the next"""
    teacher: Tensor
    """[2, b, D]"""


def train_step(
    state: TrainState, batch: Batch, *, with_gauges: bool, folder: Path | None = None, asked_to_stop: bool = False
) -> Stepped:
    """One optimizer step.

    Raises: DataError if no picture of the whole batch could be read; RunError before anything is changed if loss or
    gradient is not finite. What the step was made of is then in `folder`, if one is given.
    """
    config, memory, ranks = state.config, state.memory, state.ranks
    now = rates_at(state.step, config, steps=state.steps, steps_per_epoch=state.steps_per_epoch)
    set_rates(state.optimizer, now)
    order = block_order(config.seed, state.step, config.memory_slots).to(state.device)
    done = forward_and_backward(state, batch, now, order)
    grad_norm, clipped_share, largest_gradient = clip_each_tensor(state.pair.student.parameters(), config.clip_norm)
    own, images = (done.loss.item(), done.entropy.item()), len(batch.image_ids)
    told = ranks.sums(*(value * images if images else 0.0 for value in own), images, asked_to_stop, len(batch.skipped))
    *sums, all_images, stops, skips = told
    loss, entropy = (value / all_images for value in sums)
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        is_ours = ranks.is_first if math.isfinite(loss) else not math.isfinite(own[0])
        kept = _kept(folder, state, batch, now, order) if folder is not None and is_ours else ""
        raise RunError(_not_finite("loss" if not math.isfinite(loss) else "gradient", state.step) + kept)
    gauges = {}
    if with_gauges:
        block = memory.vectors[order[: config.block_size]]
        gauges = watch(done.student, done.teacher, block, teacher_temperature=now.teacher_temperature)
        gauges |= memory_facts(memory, done.keys, batch.image_ids)
    state.optimizer.step()
    state.pair.move_teacher(now.momentum)
    keys, image_ids, boxes = ranks.gather(done.keys, batch.image_ids.to(state.device), batch.boxes.to(state.device))
    memory.push(keys, image_ids, boxes, state.step)
    facts = {"loss": loss, "kl": loss - entropy, **asdict(now), **gauges}
    norms = {"grad_norm": grad_norm, "clipped_share": clipped_share, "largest_gradient": largest_gradient}
    return Stepped(facts | norms, bool(stops), ranks.gather_words(batch.skipped) if skips else ())


def forward_and_backward(state: TrainState, batch: Batch, now: Rates, order: Tensor) -> Done:
    """Loss and gradients over `accumulate` micro-batches, all compared with the same blocks of the memory."""
    config, ranks, pair = state.config, state.ranks, state.pair
    _seed_step(config.seed, state.step, ranks.rank)
    state.optimizer.zero_grad(set_to_none=True)
    counts = ranks.each(len(batch.image_ids))
    if not any(counts):
        raise DataError(f"No picture of a batch could be read; one of them: {batch.skipped[0]}")
    own, all_images = max(1, len(batch.image_ids)), sum(counts)
    loss, entropy, keys = torch.zeros((), device=state.device), torch.zeros((), device=state.device), []
    # as many on every process, which meet in each; one without pictures goes along with a grey one that counts nothing
    chunks = batch.chunks(max(1, min(config.accumulate, *map(int, counts)))) or [_stand_in(config)]
    for chunk in chunks:
        views = [_pixels(state, views) for views in (chunk.global_views, chunk.local_views)]
        wrapper = state.student if isinstance(state.student, DistributedDataParallel) else None
        with wrapper.no_sync() if wrapper and chunk is not chunks[-1] else nullcontext(), ranks.speaking():
            with torch.autocast(state.device.type, dtype=torch.bfloat16, enabled=state.precision == "bf16"):
                student, teacher = pair(*views, state.student)
            part, part_entropy = block_loss_and_entropy(
                student,
                teacher,
                state.memory.vectors,
                order,
                block_size=config.block_size,
                student_temperature=now.student_temperature,
                teacher_temperature=now.teacher_temperature,
            )
            images = len(chunk.image_ids)
            (part * (images * ranks.size / all_images)).backward()  # gradients are then averaged over the processes
        loss = loss + part.detach() * (images / own)
        entropy = entropy + part_entropy * (images / own)
        keys.append(teacher[1][:images])
    return Done(loss, entropy, torch.cat(keys), student.detach(), teacher)


def _stand_in(config: TrainConfig) -> Batch:
    grey = lambda views, side: torch.full((views, 1, 3, side, side), 124, dtype=torch.uint8)
    nobody = torch.empty(0, dtype=torch.int64)
    return Batch(
        grey(2, config.global_size), grey(config.local_views, config.local_size), torch.empty(0, 4), nobody, ()
    )


def _pixels(state: TrainState, views: Tensor) -> Tensor:
    dtype = next(state.pair.parameters()).dtype
    return normalised(views.to(state.device, non_blocking=True)).to(dtype)


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Stochastic depth and patch drop follow from (seed, step, rank): a resumed run draws what it would have drawn."""
    torch.manual_seed((seed * 1_000_003 + step + rank * 7_368_787) % (1 << 63))


def _not_finite(what: str, step: int) -> str:
    return (
        f"The {what} is not finite at step {step}; this step was not applied and the last checkpoint stands. "
        "Try a lower lr, a longer warm-up, or --precision fp32."
    )


def _kept(folder: Path, state: TrainState, batch: Batch, now: Rates, order: Tensor) -> str:
    try:
        path = write_capsule(folder, state, batch, now, order)
    except RunError as reason:
        return f" {reason}"
    return f" What it was made of is kept: python -m memssl_core replay {folder.name}/bad-steps/{path.name}"
