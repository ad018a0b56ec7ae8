"""Backbones: timm models that give tokens or a feature map, and an embedding."""

from __future__ import annotations

import difflib
import re
from typing import Any

import timm
from torch import Tensor, nn

from memssl_core.errors import ModelError
from memssl_core.model.positions import Positions, use_original_positions

# What lets a family take pictures of any size. Each is tried in turn.
_ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


def create_backbone(name: str, *, positions: Positions = "timm", **model_args: Any) -> nn.Module:
    """A timm model without classifier that takes any picture size its family can; random weights unless told.

    Args:
        positions: how learned position embeddings are fitted to other sizes (model/positions.py).
        model_args: for timm.create_model, for example depth=6, or pretrained=True.
    Raises: ModelError for a name timm does not know (with the nearest ones) or arguments the architecture refuses.
    """
    backbone, _ = _create(name, model_args)
    if positions == "original":
        use_original_positions(backbone)
    return backbone


def fit_backbone(name: str, wanted: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """`create_backbone` with those of the wanted arguments that the model's family has, and these.

    A ResNet has no `img_size`, for example; other refusals raise ModelError.
    """
    return _create(name, wanted, leave_out=True)


def _create(name: str, model_args: dict[str, Any], *, leave_out: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    """Refused arguments cost nothing: builders complain before they build, and name what they do not know."""
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        near = ", ".join(difflib.get_close_matches(architecture, timm.list_models(), 3)) or "see timm.list_models()"
        raise ModelError(f"timm has no model named {name!r}; nearest names: {near}.")
    args, any_sizes = dict(model_args), list(_ANY_SIZE)
    while True:
        try:
            given = {"pretrained": False, "num_classes": 0, **any_sizes[0], **args}
            return timm.create_model(name, **given), args
        except (TypeError, AssertionError, ValueError) as reason:
            named = set(re.findall(r"'(\w+)'", str(reason)))
            if named & any_sizes[0].keys():
                any_sizes.pop(0)
            elif leave_out and named & args.keys() and "unexpected keyword argument" in str(reason):
                args = {key: value for key, value in args.items() if key not in named}
            else:
                told = f" with {args}" if args else ""
                raise ModelError(f"{name} cannot be built{told}; choose other sizes or another model.") from reason


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
