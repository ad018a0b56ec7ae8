"""The one door for models: a source string in, an opened model out."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from memssl_core import paths
from memssl_core.bundle.layout import Bundle, model_hash, open_bundle
from memssl_core.bundle.table import MemoryTable
from memssl_core.data.images import Transform
from memssl_core.errors import ModelError
from memssl_core.model.backbone import create_backbone
from memssl_core.model.features import n_prefix, patch_px, why_no_attention
from memssl_core.model.head import Head
from memssl_core.model.pair import Network

MAX_RANDOM_PARAMETERS = 100_000_000
FORMS = "embedded, bundle:FOLDER, the path of a bundle folder, random:TIMM_NAME[@SEED]"


@dataclass(frozen=True, eq=False)
class Model:
    """An opened model: float32, eval mode, on the CPU."""

    name: str
    source: str
    backbone: nn.Module
    """the timm module itself, always with dynamic_img_size"""
    head: Head | None
    memory: MemoryTable | None
    student: Network | None
    card: dict[str, Any] = field(repr=False)
    """plain JSON values for the page: see `_card`"""
    model_hash: str
    transform: Transform
    """the way in for embeddings and projections"""

    @property
    def nbytes(self) -> int:
        """Bytes of main memory held, about."""
        modules = [module for module in (self.backbone, self.head, self.student) if module is not None]
        weights = sum(t.nbytes for module in modules for t in (*module.parameters(), *module.buffers()))
        return weights + (self.memory.nbytes if self.memory else 0)


def open_model(source: str) -> Model:
    """Open `embedded`, `bundle:FOLDER`, a plain folder (a bundle), or `random:NAME[@SEED]`.

    `random:` is a timm vision transformer with random weights, the same ones for the same seed (default 0).

    Raises: ModelError for a source of another form or a name timm does not know; BundleError as `open_bundle` does.
    """
    if source.startswith("random:"):
        return _random(source)
    folder = _folder(source)
    bundle = open_bundle(folder)
    student = bundle.make_student()
    told = bundle.config["memssl"].get("provenance") or {}
    backbone, head, transform = bundle.make_backbone(), bundle.make_head(), bundle.make_transform()
    name, digest = str(told.get("name") or folder.resolve().name), bundle.model_hash
    return Model(
        name=name,
        source=source,
        backbone=backbone,
        head=head,
        memory=bundle.memory,
        student=Network(*student).eval() if student else None,
        card=_card(name, bundle.config["architecture"], backbone, transform, digest, bundle),
        model_hash=digest,
        transform=transform,
    )


def source_state(source: str) -> Hashable:
    """Changes when what the source names was replaced on disk: what a cache of opened models compares."""
    if source.startswith("random:"):
        return None
    try:
        stat = _folder(source).stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _folder(source: str) -> Path:
    if source == "embedded":
        if not (folder := paths.embedded_bundle()).is_dir():
            raise ModelError("This copy of the program lacks its embedded model; give another source with --model.")
        return folder
    prefix, colon, rest = source.partition(":")
    if prefix == "bundle" and rest:
        return Path(rest).expanduser()
    if source and Path(source).expanduser().is_dir():
        return Path(source).expanduser()
    kind = "is no kind of model source" if colon or not source else "is no folder"
    raise ModelError(f"{source.rpartition('/')[2]!r} {kind}; give one of: {FORMS}.")


def _random(source: str) -> Model:
    name, _, seed = source.removeprefix("random:").partition("@")
    if not (seed or "0").isdecimal() or len(seed) > 18:
        raise ModelError(f"{seed!r} is no seed; write a whole number, for example random:{name}@3.")
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in create_backbone(name).parameters())
    if size > MAX_RANDOM_PARAMETERS:
        raise ModelError(
            f"{name} has {size / 1e6:.0f} million parameters; random models are for trying out small ones."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed or 0))
        backbone = create_backbone(name).requires_grad_(False).eval()
    if reason := why_no_attention(backbone):
        raise ModelError(f"{name} cannot be explored yet. {reason} Try random:vit_tiny_patch16_224.")
    looks: Any = backbone.pretrained_cfg
    crop_px = int(looks["input_size"][-1])
    resize_px = max(crop_px, int(crop_px / looks["crop_pct"]))  # timm's own rule
    transform = Transform(resize_px, crop_px, looks["interpolation"], tuple(looks["mean"]), tuple(looks["std"]))
    digest = model_hash(backbone.state_dict())
    title = f"{name}, random weights (seed {int(seed or 0)})"
    card = _card(title, name, backbone, transform, digest, None)
    return Model(title, source, backbone, None, None, None, card, digest, transform)


def _card(
    name: str, architecture: str, backbone: Any, transform: Transform, digest: str, bundle: Bundle | None
) -> dict[str, Any]:
    memory = bundle.memory if bundle else None
    told = (bundle.config["memssl"].get("provenance") or {}) if bundle else {}
    blocks = getattr(backbone, "blocks", [])
    return {
        "name": name,
        "architecture": architecture,
        "parameters": sum(p.numel() for p in backbone.parameters()),
        "embedding_width": backbone.num_features,
        "input_px": transform.crop_px,
        "resize_px": transform.resize_px,
        "patch_px": patch_px(backbone),
        "blocks": len(blocks),
        "attention_heads": blocks[0].attn.num_heads if len(blocks) else 0,
        "class_token": getattr(backbone, "cls_token", None) is not None,
        "prefix_tokens": n_prefix(backbone),
        "why_no_attention": why_no_attention(backbone),
        "projection_width": memory.vectors.shape[1] if memory else None,
        "memory_slots": memory.slots if memory else 0,
        "memory_filled": int((memory.image_id != -1).sum()) if memory else 0,
        "memory_images": len({*memory.image_id[memory.image_id >= 0].tolist()}) if memory else 0,
        "has_embeddings": memory is not None and memory.embeddings is not None,
        "has_student": bundle is not None and bundle.student is not None,
        "temperatures": bundle.config["memssl"].get("temperatures") if bundle else None,
        "block_size": (bundle.config["memssl"].get("memory") or {}).get("block_size") if bundle else None,
        "data": told.get("data"),
        "license": told.get("license"),
        "figures": {key: value for key, value in told.items() if isinstance(value, (int, float))},
        "provenance": told,
        "readme": bundle.readme if bundle else "",
        "model_hash": digest,
        "bundle_hash": bundle.bundle_hash if bundle else None,
    }
