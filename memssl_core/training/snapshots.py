"""Snapshots of a run: the memory, thinned, and what the teacher makes of a few pinned pictures, one file a step.

For people to watch the memory turn; nothing is trained by them or restored from them.
Shapes: M slots kept of K, D projection, P pinned pictures, R slots recalled for each.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from memssl_core.data.views import Batch
from memssl_core.errors import RunError
from memssl_core.jobs import replacing
from memssl_core.model.backbone import embed
from memssl_core.model.features import (
    BlockTokens,
    attention_rows,
    has_class_token,
    n_prefix,
    patch_px,
    walk,
    why_no_attention,
)
from memssl_core.model.memory import Memory
from memssl_core.model.pair import Network
from memssl_core.training.checkpoint import explaining_writes
from memssl_core.training.diagnostics import project
from memssl_core.training.film import Pinned, views_sheet
from memssl_core.training.state import TrainState

FOLDER = "snapshots"
FORMAT = 1
MOST_SLOTS = 8192
MOST_VECTOR_BYTES = 8192 * 256 * 2  # of a file of at most 5 MB
MOST_KEPT = 60
RECALLED = 5
MAX_FILE_BYTES = 32_000_000
_QUERIES = 64  # query rows at a time when averaging over all patches


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What a run was like after a step."""

    step: int
    total: int
    """K"""
    cursor: int
    """the slot written next"""
    written: int
    """keys written in all"""
    slots: np.ndarray
    """int64 [M], rising and evenly spaced, the same at every snapshot of a run"""
    vectors: np.ndarray
    """float16 [M, D]"""
    written_at: np.ndarray
    """int64 [M] step; -1 noise"""
    image_id: np.ndarray
    """int64 [M]; -1 noise"""
    picture_ids: np.ndarray
    """int64 [P] of the pinned pictures, the same at every snapshot unless one could not be read any more"""
    pictures: tuple[bytes, ...]
    """[P] WebP of what the model is shown of them"""
    picture_names: tuple[str, ...]
    """[P] classes, "" where unknown"""
    attention: np.ndarray | None
    """float16 [P, rows, columns]: the part on the patches of the class token's attention in the teacher's last
    transformer block, mean over attention heads; without a class token of the mean over all patches; None for models
    without attention that could be shown"""
    recalled_slots: np.ndarray
    """int64 [P, R], R <= 5: the slots of the whole memory that each picture is nearest to, best first"""
    recalled_scores: np.ndarray
    """float32 [P, R] cosines of the teacher's projection with them"""
    recalled_ids: np.ndarray
    """int64 [P, R] the pictures whose keys they hold; -1 noise"""
    recalled_at: np.ndarray
    """int64 [P, R] step; -1 noise"""
    recalled_pictures: tuple[tuple[bytes, ...], ...]
    """[P][R] WebP; b"" for noise and for what cannot be read any more"""
    recalled_names: tuple[tuple[str, ...], ...]
    """[P][R] classes, "" where unknown"""
    crops: bytes
    """WebP of the views of a few pictures of the step's batch, a picture a row; b"" before the first step"""
    crops_views: int
    """its columns: the global views, then local ones"""


@torch.inference_mode()
def take(state: TrainState, batch: Batch | None, pinned: Pinned) -> Snapshot:
    """Look at the teacher and the memory as they are now. Nothing of the run changes, no random number is drawn.

    Args: batch, what the step was made of; None before the first one.
    """
    memory, images = state.memory, state.images
    slots = slots_kept(memory.slots, memory.vectors.shape[1])
    at = torch.from_numpy(slots).to(memory.vectors.device)
    nothing = None, torch.empty(0, memory.vectors.shape[1])
    attention, projections = look(state.pair.teacher, pinned.pixels) if pinned.ids else nothing
    scores, recalled = recall(memory, projections)
    ids, steps = memory.image_id[recalled].cpu().numpy(), memory.step[recalled].cpu().numpy()
    crops, columns = views_sheet(batch) if batch is not None else (b"", 0)
    return Snapshot(
        step=state.step,
        total=memory.slots,
        cursor=int(memory.cursor),
        written=int(memory.written),
        slots=slots,
        vectors=memory.vectors[at].half().cpu().numpy(),
        written_at=memory.step[at].cpu().numpy(),
        image_id=memory.image_id[at].cpu().numpy(),
        picture_ids=np.array(pinned.ids, np.int64),
        pictures=pinned.pictures,
        picture_names=pinned.names,
        attention=None if attention is None else attention.half().cpu().numpy(),
        recalled_slots=recalled.cpu().numpy(),
        recalled_scores=scores.cpu().numpy(),
        recalled_ids=ids,
        recalled_at=steps,
        recalled_pictures=tuple(tuple(pinned.thumbnail(i) if i >= 0 else b"" for i in row) for row in ids.tolist()),
        recalled_names=tuple(tuple(images.class_name(i) or "" if i >= 0 else "" for i in r) for r in ids.tolist()),
        crops=crops,
        crops_views=columns,
    )


def slots_kept(total: int, dim: int) -> np.ndarray:
    """int64 [M] of K slots, evenly spaced: all that a file has room for."""
    count = max(1, min(total, MOST_SLOTS, MOST_VECTOR_BYTES // (2 * dim)))
    return np.arange(count, dtype=np.int64) * total // count


@torch.inference_mode()
def look(network: Network, pixels: Tensor) -> tuple[Tensor | None, Tensor]:
    """[P, 3, H, W] normalised pixels -> attention [P, rows, columns] as in `Snapshot`, projections [P, D] on the CPU.

    In eval mode; the network is left in the mode it was in.
    """
    backbone, was_training = network.backbone, network.backbone.training
    attention = None
    backbone.eval()
    try:
        if why_no_attention(backbone):
            embeddings = embed(backbone, pixels)
        else:
            blocks, final = walk(backbone, pixels)
            embeddings = backbone.forward_head(final)
            side = patch_px(backbone)
            grid = pixels.shape[2] // side, pixels.shape[3] // side
            attention = _on_patches(backbone, blocks[-1]).unflatten(-1, grid)
    finally:
        backbone.train(was_training)
    return attention, project(network, embeddings)


def _on_patches(backbone: Any, entered: BlockTokens) -> Tensor:
    """[P, patches] of the last transformer block, mean over attention heads and queries."""
    attn, first, tokens = backbone.blocks[-1].attn, n_prefix(backbone), entered.tokens.shape[1]
    if has_class_token(backbone):
        return attention_rows(attn, entered, [0])[:, :, 0, first:].float().mean(1)
    parts = torch.arange(first, tokens).split(_QUERIES)
    total = sum(attention_rows(attn, entered, part)[..., first:].float().mean(1).sum(1) for part in parts)
    return total / (tokens - first)  # type: ignore[return-value]


def recall(memory: Memory, projections: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines [P, R] float32 and slots [P, R] of the R <= RECALLED nearest of all slots, best first."""
    scores = projections.to(memory.vectors) @ memory.vectors.T
    best = scores.topk(min(RECALLED, memory.slots), -1)
    return best.values, best.indices


def write(run_folder: Path, snapshot: Snapshot) -> Path:
    """Write `snapshots/step-########.safetensors`. Raises: RunError if it cannot be written."""
    path = run_folder / FOLDER / f"step-{snapshot.step:08d}.safetensors"
    with explaining_writes(f"The snapshot of step {snapshot.step}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        content = packed(snapshot)
        with replacing(path) as file:
            file.write(content)
    return path


def thin(run_folder: Path) -> None:
    """Leave MOST_KEPT snapshots of a run."""
    found = {step_of(path): path for path in snapshot_files(run_folder)}
    for step in thinned(list(found)):
        found[step].unlink(missing_ok=True)


def thinned(steps: Sequence[int], most: int = MOST_KEPT) -> set[int]:
    """The steps to do without, so that `most` (at least 2) are left: again and again the one whose neighbours are
    nearest to each other, the earliest of equals, never the first or the last."""
    kept = sorted(steps)
    while len(kept) > max(2, most):
        gaps = [after - before for before, after in zip(kept, islice(kept, 2, None), strict=False)]
        del kept[1 + gaps.index(min(gaps))]
    return set(steps) - set(kept)


def forget_after(run_folder: Path, step: int) -> None:
    """Delete the snapshots of later steps: a run that goes on from an earlier checkpoint has not taken them yet."""
    for path in snapshot_files(run_folder):
        if step_of(path) > step:
            path.unlink(missing_ok=True)


def snapshot_files(run_folder: Path) -> list[Path]:
    """The snapshots of a run, oldest first."""
    found = (run_folder / FOLDER).glob("step-????????.safetensors")
    return sorted(path for path in found if path.stem.removeprefix("step-").isdecimal())


def step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


# Files

_ARRAYS: dict[str, tuple[str, tuple[str, ...]]] = {
    "slots": ("int64", ("M",)),
    "vectors": ("float16", ("M", "D")),
    "written_at": ("int64", ("M",)),
    "image_id": ("int64", ("M",)),
    "picture_ids": ("int64", ("P",)),
    "attention": ("float16", ("P", "rows", "columns")),
    "recalled_slots": ("int64", ("P", "R")),
    "recalled_scores": ("float32", ("P", "R")),
    "recalled_ids": ("int64", ("P", "R")),
    "recalled_at": ("int64", ("P", "R")),
    "encoded": ("uint8", ("bytes",)),  # all encoded pictures, one after the other
}
_NUMBERS = ("step", "total", "cursor", "written", "crops_views")


def packed(snapshot: Snapshot) -> bytes:
    """A safetensors file; numbers, names and the sizes of the pictures are JSON in its metadata."""
    encoded = [*snapshot.pictures, *(one for row in snapshot.recalled_pictures for one in row), snapshot.crops]
    arrays = {name: getattr(snapshot, name, None) for name in _ARRAYS}
    arrays["encoded"] = np.frombuffer(b"".join(encoded), np.uint8)
    told = {name: getattr(snapshot, name) for name in (*_NUMBERS, "picture_names", "recalled_names")}
    told |= {"format": FORMAT, "sizes": [len(one) for one in encoded]}
    tensors = {name: np.ascontiguousarray(value) for name, value in arrays.items() if value is not None}
    return safetensors.numpy.save(tensors, {"snapshot": json.dumps(told)})


def read(path: Path) -> Snapshot:
    """Read a snapshot. Raises: RunError if it is not there any more, or damaged."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError("it is too large")
        with safe_open(path, framework="np") as file:
            told = json.loads((file.metadata() or {})["snapshot"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _unpacked(told, arrays)
    except FileNotFoundError:
        raise RunError(f"{path.name} is not there any more: of many snapshots only some are kept.") from None
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, RecursionError, OverflowError) as reason:
        raise RunError(
            f"{FOLDER}/{path.name} is damaged, or of another version; delete it, the run does not need it."
        ) from reason


def _unpacked(told: dict[str, Any], arrays: dict[str, np.ndarray]) -> Snapshot:
    """ValueError, or another mistake of reading, unless every part is there and fits the others."""
    sizes: dict[str, int] = {}
    _require(told["format"] == FORMAT and arrays.keys() | {"attention"} == _ARRAYS.keys())
    for name, value in arrays.items():
        kind, axes = _ARRAYS[name]
        _require(value.dtype == kind and value.ndim == len(axes))
        _require(all(sizes.setdefault(axis, n) == n for axis, n in zip(axes, value.shape, strict=True)))
    numbers = {name: told[name] for name in _NUMBERS}
    _require(all(type(value) is int and value >= 0 for value in numbers.values()))
    slots, recalled, total = arrays["slots"], arrays["recalled_slots"], numbers["total"]
    _require(len(slots) > 0 and slots[0] >= 0 and slots[-1] < total and bool((np.diff(slots) > 0).all()))
    _require(numbers["cursor"] < total and bool(((recalled >= 0) & (recalled < total)).all()))
    floats = (value for value in arrays.values() if value.dtype.kind == "f")
    _require(all(bool(np.isfinite(value).all()) for value in floats))
    pictures, columns = sizes["P"], sizes["R"]
    encoded = _cut(arrays.pop("encoded"), told["sizes"])
    _require(len(encoded) == pictures * (1 + columns) + 1)
    recalled_pictures = [tuple(encoded[pictures + columns * i :][:columns]) for i in range(pictures)]
    names, recalled_names = _names(told["picture_names"]), tuple(_names(row) for row in told["recalled_names"])
    _require(len(names) == len(recalled_names) == pictures and all(len(row) == columns for row in recalled_names))
    return Snapshot(
        **numbers,
        **{"attention": None, **arrays},  # type: ignore[arg-type]
        pictures=tuple(encoded[:pictures]),
        picture_names=names,
        recalled_pictures=tuple(recalled_pictures),
        recalled_names=recalled_names,
        crops=encoded[-1],
    )


def _cut(encoded: np.ndarray, sizes: list[int]) -> list[bytes]:
    _require(all(type(size) is int and size >= 0 for size in sizes) and sum(sizes) == len(encoded))
    ends = np.cumsum(sizes).tolist()
    return [encoded[end - size : end].tobytes() for end, size in zip(ends, sizes, strict=True)]


def _names(told: list[str]) -> tuple[str, ...]:
    _require(isinstance(told, list) and all(isinstance(name, str) for name in told))
    return tuple(told)


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError("the parts do not fit")
