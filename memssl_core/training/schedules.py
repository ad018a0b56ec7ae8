"""Everything scheduled, each a function of the step: learning rate, weight decay, momentum, teacher temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass

from memssl_core.config import TrainConfig


@dataclass(frozen=True)
class Rates:
    """The rates of one step: what is used and what is logged."""

    lr: float
    weight_decay: float
    momentum: float
    student_temperature: float
    teacher_temperature: float


def scheduled(step: int, steps: int, base: float, end: float, warmup_steps: int = 0, start: float = 0.0) -> float:
    """Linear from `start` to `base`, both included, then half a cosine towards `end`, which the last step approaches.

    Source: the official schedule tables, value by value (`linspace` for the warm-up, cosine over the rest).
    """
    if step < warmup_steps:
        return start + (base - start) * step / (warmup_steps - 1) if warmup_steps > 1 else start
    return end + 0.5 * (base - end) * (1 + math.cos(math.pi * (step - warmup_steps) / (steps - warmup_steps)))


def rates_at(step: int, config: TrainConfig, *, steps: int, steps_per_epoch: int) -> Rates:
    """The rates of `step` (0-based) in a run of `steps`."""

    def in_steps(epochs: float) -> int:
        return min(steps - 1, round(epochs * steps_per_epoch))

    lr = config.lr * config.batch_size / 256
    return Rates(
        lr=scheduled(step, steps, lr, config.min_lr, in_steps(config.warmup_epochs)),
        weight_decay=scheduled(step, steps, config.weight_decay, config.weight_decay_end),
        momentum=scheduled(step, steps, config.momentum, config.momentum_end),
        student_temperature=config.student_temperature,
        teacher_temperature=scheduled(
            step,
            steps,
            config.teacher_temperature,
            config.teacher_temperature,
            in_steps(config.teacher_temperature_warmup_epochs),
            config.teacher_temperature_start,
        ),
    )
