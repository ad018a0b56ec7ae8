"""Give a model a memory: what it makes of the pictures of a data source, with thumbnails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from memssl_core.bundle.embed import embedded
from memssl_core.bundle.table import MemoryTable
from memssl_core.bundle.thumbnails import thumbnail
from memssl_core.data.images import Transform
from memssl_core.data.streams import Item, Stream
from memssl_core.errors import DataError
from memssl_core.jobs import Emit
from memssl_core.model.head import Head

SLOTS = 131_072
THUMBNAIL_PX, THUMBNAIL_BYTES = 96, 1_200


@torch.inference_mode()
def remember(
    backbone: nn.Module,
    head: Head | None,
    transform: Transform,
    stream: Stream,
    *,
    slots: int = SLOTS,
    seed: int = 0,
    device: torch.device | str = "cpu",
    emit: Emit = lambda event, *, step, **facts: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> MemoryTable | None:
    """A memory with a slot for each picture that can be read; None if it was stopped before the end.

    Vectors are the head's projections and `embeddings` the backbone's output; a model without head remembers
    embeddings of unit length, and `embeddings` is None. Of more pictures than slots a seeded sample is taken, or the
    first ones where nobody knows how many there are. Step is 0 everywhere, the box the part that the model saw.

    Raises: DataError when no picture could be read.
    """
    if slots < 1:
        raise DataError(f"A memory of {slots} slots cannot hold anything; ask for at least 1.")
    total = None if stream.count is None else min(slots, stream.count)
    vectors, embeddings, items, extras, skipped = [], [], [], [], 0

    def also(picture: Image.Image) -> tuple[bytes, tuple[float, ...]]:
        small = thumbnail(picture, side_px=THUMBNAIL_PX, max_bytes=THUMBNAIL_BYTES)
        return small, transform.crop_box(picture.width, picture.height)

    for batch in embedded(backbone, transform, _chosen(stream, slots, seed), device=device, also=also):
        if batch.items:
            rows = F.normalize(batch.embeddings, dim=1) if head is None else head(batch.embeddings)
            vectors.append(rows.cpu().numpy())
            embeddings.append(batch.embeddings.cpu().numpy())
        items += batch.items
        extras += batch.extras
        for sentence in batch.skipped:
            skipped += 1
            emit("skipped_image", step=len(items), message=sentence, skipped=skipped)
        emit("progress", step=len(items) + skipped, total=total, words="remembering pictures")
        if should_stop():
            return None
    if not items:
        raise DataError(f"{stream.spec}: none of its pictures could be read; give another data source.")
    return MemoryTable(
        vectors=np.concatenate(vectors),
        cursor=0,
        written=len(items),
        embeddings=None if head is None else np.concatenate(embeddings),
        image_id=np.array([item.image_id for item in items]),
        uri=[item.uri for item in items],
        label=np.array([-1 if item.label is None else item.label for item in items]),
        class_name=[item.class_name for item in items],
        step=np.zeros(len(items)),
        box=np.array([box for _, box in extras]),
        thumbnails=[small for small, _ in extras],
    )


def _chosen(stream: Stream, slots: int, seed: int) -> Iterator[Item]:
    if stream.count is None or stream.count <= slots:
        return islice(stream.items(), slots)
    random = np.random.Generator(np.random.Philox(key=seed))
    ranks = {*random.choice(stream.count, slots, replace=False, shuffle=False).tolist()}
    return (item for rank, item in enumerate(stream.items()) if rank in ranks)
