"""A small bundle with a memory of drawn-like squares, for tests of whatever opens bundles."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image

from memssl_core.bundle.layout import Bundle, MemoryTable, bundle_config
from memssl_core.data.images import Transform
from memssl_core.model.backbone import create_backbone
from memssl_core.model.head import Head

ARCHITECTURE = "vit_tiny_patch16_224"
MODEL_ARGS: dict[str, Any] = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 64}
SLOTS, NOISE_SLOTS = 50, 7


def thumbnail(level: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (16, 16), (level, 255 - level, 128)).save(sink, "WEBP")
    return sink.getvalue()


def small_memory(dim: int = 16, width: int = 32, seed: int = 0) -> MemoryTable:
    """50 slots, the last 7 still noise."""
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(SLOTS, dim))
    written = np.arange(SLOTS) < SLOTS - NOISE_SLOTS
    x0, y0 = generator.uniform(0, 0.5, (2, SLOTS))
    return MemoryTable(
        vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        cursor=SLOTS - NOISE_SLOTS,
        written=SLOTS - NOISE_SLOTS,
        embeddings=generator.normal(size=(SLOTS, width)),
        image_id=np.where(written, np.arange(SLOTS) % 20, -1),
        uri=[f"drawn:7:20/{slot % 20}" if written[slot] else None for slot in range(SLOTS)],
        label=np.where(written, np.arange(SLOTS) % 4, -1),
        class_name=[("owl", "bus", "fern", "barn")[slot % 4] if written[slot] else None for slot in range(SLOTS)],
        step=np.where(written, np.arange(SLOTS) // 10, -1),
        box=np.stack([x0, y0, x0 + 0.5, y0 + 0.5], 1),
        thumbnails=[thumbnail(slot * 5) if written[slot] else b"" for slot in range(SLOTS)],
    )


def small_bundle(
    *, batch_norm: bool = False, dtype: torch.dtype = torch.float32, with_memory: bool = True, seed: int = 0, **variant
) -> Any:
    """A random teacher and student (3 transformer blocks, 2 attention heads, patch 8, width 32) with `small_memory`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        args = MODEL_ARGS | variant
        backbones = [create_backbone(ARCHITECTURE, **args) for _ in range(2)]
        heads = [Head(32, 48, 16, batch_norm=batch_norm) for _ in range(2)]
        for module in (*backbones, *heads):
            for tensor in (*module.parameters(), *module.buffers()):
                if tensor.is_floating_point():
                    tensor.data += 0.2 * torch.rand_like(tensor)
    states = [{key: value.to(dtype) if value.is_floating_point() else value for key, value in m.state_dict().items()}
              for m in (*backbones, *heads)]  # fmt: skip
    student = {f"backbone.{key}": value for key, value in states[1].items()}
    student |= {f"head.{key}": value for key, value in states[3].items()}
    config = bundle_config(
        ARCHITECTURE,
        backbones[0],
        args,
        transform=Transform(72, 64),
        head=heads[0],
        memory_slots=SLOTS if with_memory else None,
        block_size=10 if with_memory else None,
        student_temperature=0.1,
        teacher_temperature=0.07,
        provenance={"name": "small", "data": "drawn:7:20", "steps": 5, "images_seen": 43, "knn_top1": 61.5},
    )
    memory = small_memory() if with_memory else None
    return Bundle(config=config, backbone=states[0], head=states[2], student=student, memory=memory, readme="# small\n")
