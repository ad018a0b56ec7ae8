"""Where tensors live and in which precision products are taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memssl_core.errors import ConfigError

if TYPE_CHECKING:
    import torch


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA, else Apple's MPS, else the CPU. ConfigError if the named device is not there."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as reason:
        raise ConfigError(f"device {name!r} cannot be used here; try --device cpu.") from reason
    return torch.device(name)


def choose_precision(precision: str, device: torch.device) -> str:
    """`auto` is bf16 where a CUDA device has it, else fp32."""
    import torch

    if precision == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return precision
