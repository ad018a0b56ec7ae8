"""Optimizers as published: two parameter groups, rates set at every step, each gradient tensor clipped on its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from timm.optim import Lars
from torch import nn

from memssl_core.config import TrainConfig
from memssl_core.training.schedules import Rates

_TRUST = 0.001  # LARS: length of a tensor's update at rate 1, as a share of the tensor's own (official code)


def make_optimizer(student: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW, LARS or SGD with momentum; `set_rates` gives it its rates.

    Group 0 is decayed; biases and other 1-d tensors are not, nor does LARS adapt them. Class token and positions are
    (3-d), as published.
    """
    decayed, plain = [], []
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim == 1 or name.endswith(".bias") else decayed).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=0.0)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=config.sgd_momentum)
    groups[0]["always_adapt"] = True  # else timm adapts what is decayed, so nothing where weight_decay is 0
    return Lars(groups, lr=0.0, momentum=config.sgd_momentum, trust_coeff=_TRUST)  # type: ignore[arg-type]


def set_rates(optimizer: torch.optim.Optimizer, rates: Rates) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rates.lr
    optimizer.param_groups[0]["weight_decay"] = rates.weight_decay


@torch.no_grad()
def clip_each_tensor(parameters: Iterable[nn.Parameter], clip_norm: float) -> tuple[float, float, float]:
    """Scale each gradient g by min(1, clip_norm / (|g| + 1e-6)), by its own norm (official clip_gradients).

    Returns: the norm of the whole gradient before, the share of tensors that were scaled, the largest norm of one.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients)).float()
    factors = (clip_norm / (norms + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(gradients, list(factors.unbind()))
    total, clipped, largest = torch.stack([norms.norm(), (factors < 1).float().mean(), norms.max()]).tolist()
    return total, clipped, largest
