"""Backbones: timm models that give tokens or a feature map, and an embedding."""

from __future__ import annotations

import difflib
from typing import Any

import timm
from torch import Tensor, nn

from memssl_core.errors import ModelError
from memssl_core.model.positions import Positions, use_original_positions

# What lets a family take pictures of any size. Each is tried in turn: timm's builders name what they do not know.
_ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


def create_backbone(name: str, *, positions: Positions = "timm", **model_args: Any) -> nn.Module:
    """A timm model without classifier that takes any picture size its family can; random weights unless told.

    Args:
        positions: how learned position embeddings are fitted to other sizes (model/positions.py).
        model_args: for timm.create_model, for example depth=6, or pretrained=True.
    Raises: ModelError for a name timm does not know (with the nearest ones) or arguments the architecture refuses.
    """
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        near = ", ".join(difflib.get_close_matches(architecture, timm.list_models(), 3)) or "see timm.list_models()"
        raise ModelError(f"timm has no model named {name!r}; nearest names: {near}.")
    backbone = _create(name, model_args)
    if positions == "original":
        use_original_positions(backbone)
    return backbone


def _create(name: str, model_args: dict[str, Any]) -> nn.Module:
    for any_size in _ANY_SIZE:
        try:
            return timm.create_model(name, **{"pretrained": False, "num_classes": 0, **any_size, **model_args})
        except (TypeError, AssertionError, ValueError) as reason:
            if any(f"'{key}'" in str(reason) for key in any_size):
                continue  # this family has no such argument
            told = f" with {model_args}" if model_args else ""
            raise ModelError(f"{name} cannot be built{told}; choose other sizes or another model.") from reason
    raise ModelError(f"{name} cannot be built; choose another model.")


def embed(backbone: nn.Module, pixels: Tensor) -> Tensor:
    """[B, 3, H, W] normalised pixels -> [B, C] embeddings: the class token after the final norm (or timm's pooling).

    ModelError for the few encoders of language models that give tokens and do not pool them.
    """
    rows = backbone(pixels)
    if not isinstance(rows, Tensor) or rows.ndim != 2:
        raise ModelError(f"{type(backbone).__name__} gives no embedding of a whole picture; choose another model.")
    return rows


def any_size_args(backbone: nn.Module) -> dict[str, bool]:
    """The argument with which `create_backbone` made this backbone take any picture size; {} if its family has none."""
    if getattr(backbone, "dynamic_img_size", False):
        return {"dynamic_img_size": True}
    is_loose = not getattr(getattr(backbone, "patch_embed", None), "strict_img_size", True)
    return {"strict_img_size": False} if is_loose else {}


def embedding_width(backbone: nn.Module) -> int:
    """C: the width of `embed`, which for some convolutional models is not that of their last feature map."""
    return int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)  # type: ignore[arg-type]
