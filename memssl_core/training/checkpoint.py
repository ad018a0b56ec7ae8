"""Checkpoints: everything needed to go on, one file a step, written whole or not at all.

The last two stay, and the best ones by a figure of the probe.
"""

from __future__ import annotations

import errno
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from memssl_core.errors import RunError
from memssl_core.jobs import replacing

FORMAT = 2
"""of the files; older ones are refused"""
KEPT = 2
_TORCH_WRITES = ("PytorchStreamWriter", "inline_container", "unexpected pos")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OF_DISKS = (*_FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR, errno.ENOENT)


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `step-########.pt` and drop all but the newest two. `state`: tensors, numbers, strings, dicts, lists.

    Raises: RunError if it cannot be written; what was there stands.
    """
    path = folder / f"step-{step:08d}.pt"
    with explaining_writes(f"The checkpoint of step {step}"):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            torch.save({"format": FORMAT, **state}, file)
        for old in checkpoints(folder)[:-KEPT]:
            old.unlink()
    return path


def keep_as_best(checkpoint: Path, figure: str) -> None:
    """Let `best-FIGURE.pt` name this checkpoint too, so that it stays when the others go."""
    best, link = checkpoint.with_name(f"best-{figure}.pt"), checkpoint.with_name(f"best-{figure}.tmp")
    link.unlink(missing_ok=True)
    try:
        os.link(checkpoint, link)
        os.replace(link, best)
    except OSError:  # a file system without links
        with explaining_writes(f"The best checkpoint by {figure}"), replacing(best) as file:
            file.write(checkpoint.read_bytes())


def checkpoints(folder: Path) -> list[Path]:
    """Of a step each, oldest first."""
    return sorted(folder.glob("step-????????.pt"))


def clear_unfinished(folder: Path) -> None:
    """Delete what a killed process has left half written."""
    for path in folder.glob("*.tmp"):
        with suppress(OSError):
            path.unlink()


def load_newest(folder: Path) -> tuple[dict[str, Any], str] | None:
    """The newest checkpoint that can be read, and a sentence about newer ones that cannot ("" if there are none).

    Those are renamed to `….damaged`, so that they count no more.
    Raises: RunError if there are some and none can be read, or for a readable one of another format.
    """
    found, broken = checkpoints(folder), []
    for path in reversed(found):
        try:
            state = load_checkpoint(path)
        except UnreadableError:
            broken.append(path.name)
            continue
        for name in broken:
            (folder / name).rename(folder / f"{name}.damaged")
        warning = f"{' and '.join(broken)} cannot be read; the run goes on from {path.name}." if broken else ""
        return state, warning
    if broken:
        raise RunError(
            f"None of the checkpoints can be read ({', '.join(broken)}); restore one, or start a new run folder."
        )
    return None


class UnreadableError(RunError):
    """A checkpoint that is damaged."""


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Weights-only: nothing in the file runs, and its checksums are compared.

    Raises: UnreadableError for a damaged file, RunError for one of another format.
    """
    try:
        with zipfile.ZipFile(path) as file:
            if damaged := file.testzip():
                raise ValueError(f"{damaged} is damaged")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as reason:
        raise UnreadableError(
            f"checkpoints/{path.name} cannot be read; delete it and start the same command again, "
            "which goes on from the checkpoint before it."
        ) from reason
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise RunError(
            f"checkpoints/{path.name} is not one that this version writes; "
            "go on with the version that wrote it, or start a new run folder."
        )
    return state


@contextmanager
def explaining_writes(what: str) -> Iterator[None]:
    """RunError, one sentence, where `what` cannot be written."""
    try:
        yield
    except OSError as reason:
        if reason.errno not in _OF_DISKS:
            raise
        why = "the disk is full" if reason.errno in _FULL else (reason.strerror or "the disk refuses").lower()
        raise RunError(
            f"{what} was not written: {why}. What was saved before it stands; mend that, then go on with the run."
        ) from reason
    except RuntimeError as reason:  # torch's writer hides why
        if not any(words in str(reason) for words in _TORCH_WRITES):
            raise
        raise RunError(
            f"{what} was not written, most likely because the disk is full. What was saved before it stands; "
            "make room, then go on with the run."
        ) from reason
