"""From a trained pair and its memory to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from memssl_core.bundle.card import card
from memssl_core.bundle.embed import embedded
from memssl_core.bundle.layout import Bundle, MemoryTable, bundle_config
from memssl_core.bundle.thumbnails import thumbnail
from memssl_core.config import TrainConfig
from memssl_core.data.datasets import Images
from memssl_core.data.streams import items_of
from memssl_core.model.backbone import embedding_width
from memssl_core.model.memory import Memory
from memssl_core.model.pair import Pair
from memssl_core.training.probe import embedding_transform

THUMBNAIL_PX = 64
THUMBNAIL_BYTES = 540


def export_bundle(
    pair: Pair,
    memory: Memory,
    images: Images,
    config: TrainConfig,
    folder: Path,
    *,
    provenance: dict[str, Any],
    trained_s: float,
) -> None:
    """Write teacher, student and memory with its pictures as a float16 bundle; embeddings are the final teacher's.

    `provenance` goes into the bundle's config and so into its hash; `trained_s`, a clock value, into its card only.
    """
    device = next(pair.parameters()).device
    transform = embedding_transform(config)
    backbone = pair.teacher.backbone
    ids = memory.image_id.tolist()
    pictured = sorted({i for i in ids if i >= 0})
    unread = torch.zeros(embedding_width(backbone)), b""
    read = {}
    for batch in embedded(backbone, transform, items_of(images, pictured), device=device, also=_thumbnail):
        for item, row, small in zip(batch.items, batch.embeddings.cpu(), batch.extras, strict=True):
            read[item.image_id] = row, small
    table = MemoryTable(
        vectors=memory.vectors.cpu().numpy(),
        cursor=int(memory.cursor),
        written=int(memory.written),
        embeddings=torch.stack([read.get(i, unread)[0] for i in ids]).numpy(),
        image_id=np.asarray(ids),
        uri=[images.uris[i] if i >= 0 else "" for i in ids],
        label=np.asarray([-1 if i < 0 or (label := images.label(i)) is None else label for i in ids]),
        class_name=[images.class_name(i) if i >= 0 else "" for i in ids],
        step=memory.step.cpu().numpy(),
        box=memory.box.cpu().numpy(),
        thumbnails=[read.get(i, unread)[1] for i in ids],
    )
    settings = config_of(pair, config, provenance)
    Bundle(
        config=settings,
        backbone=_halves(backbone.state_dict()),
        head=_halves(pair.teacher.head.state_dict()),
        student=_halves(pair.student.state_dict()),
        memory=table,
        readme=card(settings, hours=trained_s / 3600),
    ).save(folder)


def config_of(pair: Pair, config: TrainConfig, provenance: dict[str, Any]) -> dict[str, Any]:
    """config.json of a bundle of what a run has trained."""
    return bundle_config(
        config.backbone,
        pair.teacher.backbone,
        pair.model_args,
        transform=embedding_transform(config),
        head=pair.teacher.head,
        memory_slots=config.memory_slots,
        block_size=config.block_size,
        student_temperature=config.student_temperature,
        teacher_temperature=config.teacher_temperature,
        provenance=provenance,
    )


def _thumbnail(picture: Image.Image) -> bytes:
    return thumbnail(picture, side_px=THUMBNAIL_PX, max_bytes=THUMBNAIL_BYTES)


def _halves(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """float16 on the CPU; counters stay integers."""
    return {name: t.detach().cpu().half() if t.is_floating_point() else t.cpu() for name, t in tensors.items()}
