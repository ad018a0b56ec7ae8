"""Checkpoints: everything needed to go on, one file a step, written whole or not at all; the last two stay."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from memssl_core.errors import RunError
from memssl_core.jobs import write_atomically

KEPT = 2


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `step-########.pt` and drop all but the newest two. `state`: tensors, numbers, strings, dicts, lists."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())
    for old in checkpoints(folder)[:-KEPT]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(folder.glob("step-????????.pt"))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Weights-only: nothing in the file runs. RunError if it cannot be read."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as reason:
        raise RunError(
            f"checkpoints/{path.name} cannot be read; delete it and start the same command again, "
            "which goes on from the checkpoint before it."
        ) from reason
