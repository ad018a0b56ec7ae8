"""Embeddings of many pictures: read ahead by threads, run in batches, kept in parts that a killed run goes on from."""

from __future__ import annotations

import io
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn

from memssl_core.data.images import Transform
from memssl_core.data.streams import Item, Stream, share
from memssl_core.errors import DataError, ImageError
from memssl_core.jobs import Emit, write_atomically
from memssl_core.model.backbone import embed

BATCH, CPU_BATCH = 128, 16  # on a CPU more at once is no faster, and the first would be long in coming
READERS = min(16, max(4, os.cpu_count() or 1))
AHEAD = 2  # batches read before the model asks for them
PART = 1_024  # pictures a part
META = "meta.json"

Extra = TypeVar("Extra")


@dataclass(frozen=True, eq=False)
class Embedded(Generic[Extra]):
    """A batch that went through the backbone."""

    items: list[Item]
    embeddings: Tensor
    """[B, C] float32 on `device`"""
    extras: list[Extra]
    """what `also` made of each picture"""
    skipped: list[str]
    """sentences about the pictures before it that could not be read"""


@torch.inference_mode()
def embedded(
    backbone: nn.Module,
    transform: Transform,
    items: Iterable[Item],
    *,
    device: torch.device | str = "cpu",
    also: Callable[[Image.Image], Extra] = lambda picture: None,
) -> Iterator[Embedded[Extra]]:
    """Batches in the order of `items`; each picture is read once, `also` sees it decoded, in a thread.

    The backbone runs in eval mode and is left in the mode it was in.
    """

    def prepare(item: Item) -> tuple[Tensor, Extra] | str:
        try:
            picture = item.read()
        except ImageError as reason:
            return str(reason)
        return transform(picture), also(picture)

    device = torch.device(device)
    size, was_training = CPU_BATCH if device.type == "cpu" else BATCH, backbone.training
    good: list[tuple[Item, Tensor, Extra]] = []
    skipped: list[str] = []

    def run() -> Embedded[Extra]:
        pixels = torch.stack([pixels for _, pixels, _ in good]).to(device) if good else None
        backbone.eval()
        rows = embed(backbone, pixels).float() if pixels is not None else torch.empty(0, 0)
        backbone.train(was_training)
        batch = Embedded([item for item, _, _ in good], rows, [extra for *_, extra in good], list(skipped))
        good.clear()
        skipped.clear()
        return batch

    with ThreadPoolExecutor(READERS) as pool:
        for item, prepared in _read_ahead(pool, prepare, items, AHEAD * size):
            if isinstance(prepared, str):
                skipped.append(prepared)
            else:
                good.append((item, *prepared))
            if len(good) == size:
                yield run()
        if good or skipped:
            yield run()


def _read_ahead(
    pool: ThreadPoolExecutor, prepare: Callable[[Item], Any], items: Iterable[Item], ahead: int
) -> Iterator[Any]:
    waiting: deque[tuple[Item, Future]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(prepare, item)))
            if len(waiting) > ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        for _, future in waiting:
            future.cancel()


def embed_collection(
    backbone: nn.Module,
    transform: Transform,
    stream: Stream,
    out: Path,
    *,
    model_hash: str,
    kind: Literal["parquet", "npy"] = "parquet",
    device: torch.device | str = "cpu",
    emit: Emit = lambda event, *, step, **facts: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Path | None:
    """Write the embeddings of a collection into `out`, or go on with what is there; the folder, None if stopped.

    A part covers PART pictures of one rank (RANK and WORLD_SIZE, as torchrun sets them), is written whole, and names
    image_id, uri, label (-1 unknown) and class_name of every picture that could be read. `parquet` keeps the
    embeddings as a column beside them, `npy` as float32 [rows, C] in a file of the same name.

    Raises: DataError if `out` holds embeddings by another model or of another collection.
    """
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    out.mkdir(parents=True, exist_ok=True)
    told = {"model_hash": model_hash, "transform": asdict(transform), "data": stream.spec, "pictures": stream.count}
    _claim(out, {**told, "kind": kind, "processes": ranks, "pictures_a_part": PART})
    for torn in out.glob(f"part-{rank:04d}-*.tmp"):  # what a killed process was writing
        torn.unlink()
    items, part, skipped = stream.items(rank, ranks), 0, 0
    total = None if stream.count is None else len(share(stream.count, rank, ranks))
    while True:
        path = out / f"part-{rank:04d}-{part:06d}.parquet"
        mine = list(islice(items, PART))
        if not mine:
            return out
        if not path.exists():
            batches, done = [], part * PART
            for batch in embedded(backbone, transform, mine, device=device):
                batches.append(batch)
                done += len(batch.items) + len(batch.skipped)
                for sentence in batch.skipped:
                    skipped += 1
                    emit("skipped_image", step=done, message=sentence, skipped=skipped)
                emit("progress", step=done, total=total, words="embedding pictures")
                if should_stop():
                    return None
            _write_part(path, batches, kind)
        part += 1


def _claim(out: Path, told: dict[str, Any]) -> None:
    """Make `out` the place for these embeddings; several processes may do so at once."""
    meta, told = out / META, json.loads(json.dumps(told))
    others = [path for path in out.iterdir() if not path.name.startswith(META)]  # listed before META is looked for
    if not meta.exists():
        if others:
            raise DataError(f"{out.name} is not empty and holds no embeddings; choose another folder.")
        write_atomically(meta, json.dumps(told, indent=2).encode())
    try:
        found = dict(json.loads(meta.read_bytes()))
    except (ValueError, TypeError):
        raise DataError(f"{META} in {out.name} cannot be read; choose another folder.") from None
    for name, value in told.items():
        if found.get(name) != value:
            raise DataError(
                f"{out.name} holds embeddings with {name.replace('_', ' ')} {found.get(name)}, not {value}; "
                "choose another folder."
            )


def _write_part(path: Path, batches: list[Embedded], kind: str) -> None:
    items = [item for batch in batches for item in batch.items]
    rows = [batch.embeddings.cpu().numpy() for batch in batches if batch.items]
    embeddings = np.concatenate(rows) if rows else np.empty((0, 0), np.float32)
    columns: dict[str, Any] = {
        "image_id": pa.array([item.image_id for item in items], pa.int64()),
        "uri": pa.array([item.uri for item in items], pa.string()),
        "label": pa.array([-1 if item.label is None else item.label for item in items], pa.int64()),
        "class_name": pa.array([item.class_name for item in items], pa.string()),
    }
    if kind == "parquet":
        columns["embedding"] = pa.array(list(embeddings), pa.list_(pa.float32()))
    else:
        buffer = io.BytesIO()
        np.save(buffer, embeddings)
        write_atomically(path.with_suffix(".npy"), buffer.getvalue())
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    write_atomically(path, sink.getvalue())
