"""Self-supervised learning with a memory: the method, its data, its bundles. Names load when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memssl_core.bundle.layout import Bundle, open_bundle
    from memssl_core.config import PRESETS, TrainConfig
    from memssl_core.data.images import decode_image
    from memssl_core.model.loss import block_loss, block_loss_reference
    from memssl_core.model.memory import Memory, block_order
    from memssl_core.sources import Model, open_model
    from memssl_core.training.loop import train

__version__ = "0.1.0"

_HOMES = {
    "Bundle": "bundle.layout",
    "open_bundle": "bundle.layout",
    "PRESETS": "config",
    "TrainConfig": "config",
    "decode_image": "data.images",
    "block_loss": "model.loss",
    "block_loss_reference": "model.loss",
    "Memory": "model.memory",
    "block_order": "model.memory",
    "Model": "sources",
    "open_model": "sources",
    "train": "training.loop",
}
__all__ = [
    "PRESETS",
    "Bundle",
    "Memory",
    "Model",
    "TrainConfig",
    "block_loss",
    "block_loss_reference",
    "block_order",
    "decode_image",
    "open_bundle",
    "open_model",
    "train",
]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
