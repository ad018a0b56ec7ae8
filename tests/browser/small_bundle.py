"""A small bundle with random weights and a memory of drawn pictures, made within a second or two."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from memssl_core.bundle.layout import Bundle, bundle_config
from memssl_core.bundle.table import MemoryTable
from memssl_core.data.drawn import draw
from memssl_core.data.images import Transform
from memssl_core.model.backbone import create_backbone
from memssl_core.model.head import Head

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
TRANSFORM = Transform(32, 32)
NAME = "small"


def write_small_bundle(folder: Path, *, slots: int = 64, pictures: int = 16, seed: int = 0, registers: int = 0) -> Path:
    """Each picture fills several slots with different crop boxes; the last two slots are still noise."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = SIZES | ({"reg_tokens": registers} if registers else {})
    backbone = create_backbone("vit_tiny_patch16_224", **sizes).eval()
    for block in backbone.get_submodule("blocks").children():  # untrained attention has no peaks
        block.get_parameter("attn.qkv.weight").data *= 12
    head = Head(48, 32, 16).eval()
    drawn = [draw(0, index, 48) for index in range(pictures)]
    with torch.inference_mode():
        embeddings = backbone(torch.stack([TRANSFORM(Image.fromarray(one.image)) for one in drawn]))
        vectors = head(embeddings)
    rng = np.random.default_rng(0)
    of_slot = np.arange(slots) % pictures
    noise = np.arange(slots) >= slots - 2
    rows = vectors.numpy()[of_slot] + 0.05 * rng.standard_normal((slots, 16))
    corner, side = rng.uniform(0, 0.4, (slots, 2)), rng.uniform(0.3, 0.6, (slots, 1))
    known = [None if noise[slot] else drawn[of_slot[slot]] for slot in range(slots)]
    memory = MemoryTable(
        vectors=rows / np.linalg.norm(rows, axis=1, keepdims=True),
        cursor=slots - 2,
        written=slots - 2,
        embeddings=embeddings.numpy()[of_slot],
        image_id=np.where(noise, -1, of_slot),
        uri=[one and f"drawn:0:{pictures}#{of_slot[slot]}" for slot, one in enumerate(known)],
        label=np.array([-1 if one is None else one.label for one in known]),
        class_name=[one and one.class_name for one in known],
        step=np.where(noise, -1, np.arange(slots) * 10),
        box=np.where(noise[:, None], 0, np.concatenate([corner, corner + side], 1)),
        thumbnails=[one and jpeg(one.image) for one in known],
    )
    config = bundle_config(
        "vit_tiny_patch16_224",
        backbone,
        sizes,
        transform=TRANSFORM,
        head=head,
        memory_slots=slots,
        block_size=16,
        provenance={"name": NAME, "data": f"drawn:0:{pictures}", "steps": 10 * slots, "license": "Apache-2.0"},
    )
    state = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    near = lambda tensor: tensor * (1 + 0.3 * torch.randn(tensor.shape))
    student = {f"backbone.{name}": near(tensor) for name, tensor in state.items()}
    student |= {f"head.{name}": tensor.clone() for name, tensor in head.state_dict().items()}
    parts = {"backbone": state, "head": head.state_dict(), "student": student}
    Bundle(config=config, **parts, memory=memory, readme="# small\n").save(folder)
    return folder


def jpeg(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=80)
    return file.getvalue()
