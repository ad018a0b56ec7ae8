"""Backbones: timm models that give tokens and an embedding."""

from __future__ import annotations

import difflib
from typing import Any

import timm
from torch import Tensor, nn

from memssl_core.errors import ModelError


def create_backbone(name: str, **model_args: Any) -> nn.Module:
    """A randomly initialised timm vision transformer without classifier that takes any picture size.

    Raises: ModelError for a name timm does not know (with the nearest ones) or arguments the architecture refuses.
    """
    if not timm.is_model(name):
        near = ", ".join(difflib.get_close_matches(name, timm.list_models(), 3)) or "see timm.list_models()"
        raise ModelError(f"timm has no model named {name!r}; nearest names: {near}.")
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True, **model_args)
    except (TypeError, AssertionError, ValueError) as reason:
        raise ModelError(
            f"{name} cannot be built with {model_args or 'dynamic_img_size'}; "
            "choose a plain vision transformer such as vit_small_patch16_224."
        ) from reason


def embed(backbone: nn.Module, pixels: Tensor) -> Tensor:
    """[B, 3, H, W] normalised pixels -> [B, C] embeddings: the class token after the final norm (or timm's pooling)."""
    return backbone(pixels)
