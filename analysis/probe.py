"""What models make of the same pictures: the pictures of a probe, and their embeddings and layers under a model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor, nn

from memssl_core.bundle.table import MemoryTable
from memssl_core.data.datasets import Images, open_images
from memssl_core.data.images import decode_image
from memssl_core.errors import ImageError, ModelError
from memssl_core.jobs import Emit
from memssl_core.model.backbone import embed
from memssl_core.model.features import TOKEN_FAMILIES, n_prefix

if TYPE_CHECKING:
    from analysis.workbench import Workbench

DRAWN_SEED = 7
PICTURES = 256
"""drawn ones, or thumbnails, if no count is said"""
MIN_PICTURES, MAX_PICTURES = 4, 10_000
"""fewer have no debiased alignment; comparisons go in the square of their number"""
BATCH = 16
"""pictures at a time: on a CPU more at once is no faster"""


@dataclass(frozen=True, eq=False)
class Probed:
    """n pictures under one model."""

    embedding: np.ndarray
    """float32 [n, C]"""
    layers: np.ndarray | None
    """float32 [n, L, C]: the mean over the patches as they leave each transformer block; None without such blocks"""

    def __len__(self) -> int:
        return len(self.embedding)


def probe_images(spec: str = "drawn", count: int | None = None, *, memory: MemoryTable | None = None) -> Images:
    """The pictures of a probe: at most `count`, spread evenly over what there is.

    spec:
        `drawn`: the drawn gallery, 256 pictures if no count is said.
        `memory`: the thumbnails of `memory`, one of each picture; at most 256 if no count is said.
        any other: a data source, see `open_images`; all of it, up to 10 000 pictures, if no count is said.
    Raises: ModelError for a memory without thumbnails, a count or a source of too few pictures; DataError.
    """
    if count is not None and not MIN_PICTURES <= count <= MAX_PICTURES:
        raise ModelError(f"{count} pictures cannot be compared; ask for {MIN_PICTURES} to {MAX_PICTURES}.")
    if spec == "memory":
        images = _thumbnails(memory, count or PICTURES)
    else:
        images = open_images(f"drawn:{DRAWN_SEED}:{count or PICTURES}" if spec == "drawn" else spec)
    if len(images) < MIN_PICTURES:
        raise ModelError(f"There are only {len(images)} pictures to compare on; {MIN_PICTURES} or more are needed.")
    return _some(images, count or MAX_PICTURES)


def memory_slots(memory: MemoryTable, most: int = PICTURES) -> np.ndarray:
    """int64 [M], rising: the first slot with a thumbnail of each picture of a memory; of more than `most` an even
    sample. Thumbnails that cannot be read, as those of very long pictures, are left out."""
    slots = np.flatnonzero((memory.image_id != -1) & memory.thumbnails.is_valid().to_numpy(zero_copy_only=False))
    first: dict[tuple, int] = {}
    for name, slot in zip(picture_names(memory, slots), slots.tolist(), strict=True):
        first.setdefault(name, slot)
    sample = np.array(list(first.values()), np.int64)[even_sample(len(first), most)]
    return sample[[_can_be_read(memory, slot) for slot in sample.tolist()]] if len(sample) else sample


def even_sample(count: int, most: int) -> np.ndarray:
    """int64 [min(count, most)], rising: of so many an even sample."""
    kept = min(count, most)
    return np.arange(kept) * count // max(kept, 1)


def picture_names(memory: MemoryTable, slots: np.ndarray, data: str | None = None) -> list[tuple]:
    """What tells the picture of each slot from others: its uri; without one its image_id within `data`, the source it
    was drawn from; without that the slot itself."""
    uris, image_ids = memory.uri.take(pa.array(slots)).to_pylist(), memory.image_id[slots].tolist()
    return [
        ("uri", uri) if uri is not None else ("image", data, image_id) if image_id >= 0 else ("slot", id(memory), slot)
        for uri, image_id, slot in zip(uris, image_ids, slots.tolist(), strict=True)
    ]


@torch.inference_mode()
def probe_features(workbench: Workbench, pictures: Sequence[Image.Image]) -> Probed:
    """The pictures under a model, in batches, each by the model's own transform (resize, centre crop)."""
    model = workbench.model
    rows: list[Tensor] = []
    layers: list[Tensor] = []
    for start in range(0, len(pictures), BATCH):
        batch = [model.transform(decode_image(picture)) for picture in pictures[start : start + BATCH]]
        embedding, means = _run(model.backbone, torch.stack(batch).to(workbench.device))
        rows.append(embedding.float().cpu())
        if means is not None:
            layers.append(means.float().cpu())
    if not rows:
        return Probed(np.empty((0, 0), np.float32), None)
    return Probed(torch.cat(rows).numpy(), torch.cat(layers).numpy() if layers else None)


def join(parts: Sequence[Probed]) -> Probed:
    """Pictures that were probed under one model in parts, one after the other."""
    layers = [part.layers for part in parts if part.layers is not None]
    together = np.concatenate(layers) if len(layers) == len(parts) else None
    return Probed(np.concatenate([part.embedding for part in parts]), together)


def probe(
    workbenches: Sequence[Workbench],
    images: Images,
    *,
    emit: Emit = lambda event, *, step, **facts: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[list[Probed], list[int]]:
    """Every picture that can be read under each model, and the positions of those pictures in `images`.

    Tells `progress` and `skipped_image`. Raises: ModelError when asked to stop, or when too few can be read.
    """
    parts: list[list[Probed]] = [[] for _ in workbenches]
    kept: list[int] = []
    for start in range(0, len(images), BATCH):
        if should_stop():
            raise ModelError("Stopped while embedding pictures; nothing was compared.")
        pictures = []
        for at in range(start, min(start + BATCH, len(images))):
            try:
                pictures.append(images.read(at))
                kept.append(at)
            except ImageError as reason:
                emit("skipped_image", step=at, message=str(reason))
        if pictures:
            for workbench, part in zip(workbenches, parts, strict=True):
                part.append(probe_features(workbench, pictures))
        emit("progress", step=min(start + BATCH, len(images)), total=len(images), words="embedding pictures")
    if len(kept) < MIN_PICTURES:
        raise ModelError(f"Only {len(kept)} of {len(images)} pictures can be read; {MIN_PICTURES} or more are needed.")
    return [join(part) for part in parts], kept


def _run(backbone: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    """[B, 3, H, W] -> embeddings [B, C], and [B, L, C] means over the patches that leave each transformer block."""
    if not isinstance(backbone, TOKEN_FAMILIES):
        return embed(backbone, pixels), None
    left: list[Tensor] = []
    caller, prefix = threading.get_ident(), n_prefix(backbone)

    def keep(vit_block: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        if threading.get_ident() == caller:  # another one may be running the same model
            left.append(output[:, prefix:].mean(1))

    with ExitStack() as hooks:
        for vit_block in backbone.blocks:  # type: ignore[union-attr]
            hooks.enter_context(vit_block.register_forward_hook(keep))
        embedding = embed(backbone, pixels)
    return embedding, torch.stack(left, 1)


def _some(images: Images, most: int) -> Images:
    if len(images) <= most:
        return images
    chosen = even_sample(len(images), most)
    labels = None if images.labels is None else images.labels[chosen]
    reader = partial(_read_chosen, images.reader, chosen)
    return replace(images, uris=tuple(images.uris[at] for at in chosen), labels=labels, reader=reader)


def _read_chosen(reader: Callable[[int], Image.Image], chosen: np.ndarray, at: int) -> Image.Image:
    return reader(int(chosen[at]))


def _thumbnails(memory: MemoryTable | None, most: int) -> Images:
    if memory is None:
        raise ModelError("This model has no memory, so it has no thumbnails to compare on; choose other pictures.")
    slots = memory_slots(memory, most).tolist()
    uris = tuple(memory.uri[slot].as_py() or f"slot {slot}" for slot in slots)
    return Images("memory", uris, None, (), partial(_read_thumbnail, memory, slots))


def _can_be_read(memory: MemoryTable, slot: int) -> bool:
    try:
        return bool(decode_image(memory.thumbnail(slot)))
    except ImageError:
        return False


def _read_thumbnail(memory: MemoryTable, slots: list[int], at: int) -> Image.Image:
    return decode_image(memory.thumbnail(slots[at]))
