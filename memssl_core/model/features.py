"""Tokens, facets, feature maps and attention rows of timm models. No switches: threads may share a model.

Shapes: B pictures, N tokens (prefix tokens first, then patches row by row), C width, R query tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from timm.layers import Attention, AttentionRope
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention
from timm.models.hiera import Hiera
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from memssl_core.errors import ModelError

TOKEN_FAMILIES = (VisionTransformer, Eva)
ATTENTION_KINDS = (Attention, AttentionRope, EvaAttention)
Facet = Literal["token", "key", "query", "value"]
FACETS: tuple[Facet, ...] = get_args(Facet)


@dataclass(frozen=True, eq=False)
class BlockTokens:
    """The tokens of one transformer block."""

    tokens: Tensor
    """[B, N, C] as they enter the attention, after the norm before it"""
    left: Tensor
    """[B, N, C] as they leave the block"""
    rope: Tensor | None = None
    """rotary embedding of the patches, as timm hands it over; None for models without"""

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes + self.left.nbytes


def why_no_attention(backbone: nn.Module) -> str | None:
    """A sentence that says why `attention_rows` cannot serve this backbone; None if it can."""
    kind = type(backbone).__name__
    if not isinstance(backbone, TOKEN_FAMILIES):
        return f"This model ({kind}) has a feature map and no attention over patches that could be shown."
    for vit_block in backbone.blocks:
        attn: Any = getattr(vit_block, "attn", None)
        if type(attn) not in ATTENTION_KINDS:
            names = f"{type(vit_block).__name__} with {type(attn).__name__}"
            return f"Attention maps are not available for this model: its transformer blocks are {names} (a variant)."
        if attn.gate is not None:
            return "Attention maps are not available for this model: its attention is gated, so rows alone mislead."
    return None


def n_prefix(backbone: nn.Module) -> int:
    """How many tokens precede the patches: class and register tokens."""
    return int(getattr(backbone, "num_prefix_tokens", 0))


def has_class_token(backbone: nn.Module) -> bool:
    return getattr(backbone, "cls_token", None) is not None


def patch_px(backbone: nn.Module) -> int:
    """Pixels of the model input that a patch, or a cell of the feature map, stands for on each side.

    ModelError if the model has neither.
    """
    if isinstance(backbone, TOKEN_FAMILIES):
        sides = set(backbone.patch_embed.feat_ratio(as_scalar=False))  # type: ignore[operator]
        if len(sides) == 1:
            return int(sides.pop())
    elif stages := getattr(backbone, "feature_info", None):
        return int(stages[-1]["reduction"])
    raise ModelError(f"{type(backbone).__name__} has no square patches and no feature map; choose another model.")


def walk(backbone: nn.Module, pixels: Tensor) -> tuple[list[BlockTokens], Tensor]:
    """[B, 3, H, W] normalised pixels -> (the tokens of each transformer block, [B, N, C] after the final norm).

    The sides must be multiples of the patch side. Raises: ModelError as `why_no_attention` says.
    """
    if reason := why_no_attention(backbone):
        raise ModelError(reason)
    vit: Any = backbone
    entered: list[tuple[Tensor, Tensor | None]] = []
    left: list[Tensor] = []
    caller = threading.get_ident()

    def keep(attn: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Any] | None = None) -> None:
        # Another thread may be running the same model; torch hands it no `named` if it meets a hook half taken away.
        if threading.get_ident() == caller:
            entered.append((arguments[0], (named or {}).get("rope")))

    def keep_output(vit_block: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        if threading.get_ident() == caller:
            left.append(output)

    with ExitStack() as hooks:
        for vit_block in vit.blocks:
            hooks.enter_context(vit_block.attn.register_forward_pre_hook(keep, with_kwargs=True))
            hooks.enter_context(vit_block.register_forward_hook(keep_output))
        final = vit.forward_features(pixels)
    pairs = zip(entered, left, strict=True)
    return [BlockTokens(tokens, output, rope) for (tokens, rope), output in pairs], final


def facet_of(attention: nn.Module, tokens: Tensor, facet: Facet) -> Tensor:
    """Keys, queries or values [B, N, heads * d] of the tokens [B, N, C] that enter a timm attention module.

    As the linear layer gives them, attention heads side by side: before their norms and before rotary positions.
    Source: the facets of Amir et al., arXiv 2112.05814.
    """
    return F.linear(tokens, *_projection(attention, facet))


def n_layers(backbone: nn.Module) -> int:
    """How many layers have features: transformer blocks, or the stages of a convolutional or hierarchical model."""
    if isinstance(backbone, TOKEN_FAMILIES):
        return len(backbone.blocks)  # type: ignore[arg-type]
    return len(backbone.feature_info) if hasattr(backbone, "forward_intermediates") else 1  # type: ignore[arg-type]


def feature_map(backbone: nn.Module, pixels: Tensor, layer: int | None = None) -> Tensor:
    """[B, 3, H, W] normalised pixels -> [B, C, rows, columns]: patch tokens after the final norm, or the last map.

    With `layer`, 0-based: the map that this transformer block or stage gives out, no norm after it.
    The sides must be multiples of `patch_px`; there are then H / patch_px rows, except in some convolutional models,
    which cut or pad the edges, and in earlier stages. ModelError for a model that gives no map, or not at this size.
    """
    try:
        cells = _cells(backbone, pixels) if layer is None else _cells_of_layer(backbone, pixels, layer)
    except (AssertionError, RuntimeError, ValueError) as reason:
        size = "×".join(str(side) for side in reversed(pixels.shape[2:]))
        raise ModelError(
            f"{type(backbone).__name__} cannot read a picture of {size} pixels; try its own size."
        ) from reason
    if cells is None:
        raise ModelError(f"{type(backbone).__name__} gives no feature map; choose another model.")
    return cells


def _cells(backbone: Any, pixels: Tensor) -> Tensor | None:
    features = backbone.forward_features(pixels)
    if isinstance(backbone, TOKEN_FAMILIES):
        side = patch_px(backbone)
        return features[:, n_prefix(backbone) :].mT.unflatten(-1, (pixels.shape[2] // side, pixels.shape[3] // side))
    if isinstance(features, Tensor) and features.ndim == 4:
        return features.permute(0, 3, 1, 2) if getattr(backbone, "output_fmt", "NCHW") == "NHWC" else features
    if not hasattr(backbone, "forward_intermediates"):
        return None
    has_norm = not isinstance(backbone, Hiera)  # which timm lets give its tokens in order only before the norm
    return backbone.forward_intermediates(pixels, indices=1, norm=has_norm, intermediates_only=True)[-1]


def _cells_of_layer(backbone: Any, pixels: Tensor, layer: int) -> Tensor | None:
    if not hasattr(backbone, "forward_intermediates"):
        return None
    return backbone.forward_intermediates(pixels, indices=[layer], norm=False, intermediates_only=True)[-1]


@torch.inference_mode()
def attention_rows(attention: nn.Module, entered: BlockTokens, rows: Tensor | list[int]) -> Tensor:
    """Attention rows of a timm attention module: only what is asked for, whichever attention kernel is active.

    The block's tokens, [R] token indices -> [B, attention heads, R, N]; each row sums to 1.
    """
    index = torch.as_tensor(rows, device=entered.tokens.device)
    return _rows(attention, entered, index, _keys(attention, entered))


@torch.inference_mode()
def attention_chunks(
    attention: nn.Module, entered: BlockTokens, rows: Tensor, most: int = 256
) -> Iterator[tuple[Tensor, Tensor]]:
    """`attention_rows` of many tokens, at most `most` of the [R] indices at a time: pairs (indices, their rows)."""
    keys = _keys(attention, entered)
    for index in rows.split(most):
        yield index, _rows(attention, entered, index, keys)


def _rows(attn: Any, entered: BlockTokens, index: Tensor, keys: Tensor) -> Tensor:
    """[R] token indices, keys [B, heads, N, d] -> [B, heads, R, N]."""
    queries = attn.q_norm(_split(attn, facet_of(attn, entered.tokens[:, index], "query")))
    if entered.rope is not None:
        queries = _rotated(attn, queries, entered.rope, index)
    return (queries * attn.scale @ keys.mT).softmax(-1)


def _keys(attn: Any, entered: BlockTokens) -> Tensor:
    """[B, heads, N, d] as the queries meet them: after their norm, with rotary positions."""
    keys = attn.k_norm(_split(attn, facet_of(attn, entered.tokens, "key")))
    if entered.rope is not None:
        keys = _rotated(attn, keys, entered.rope, None)
    return keys.repeat_interleave(attn.num_heads // keys.shape[1], 1)  # grouped queries share a key


def _split(attn: Any, facet: Tensor) -> Tensor:
    """[B, R, heads * d] -> [B, heads, R, d]."""
    return facet.unflatten(-1, (-1, attn.head_dim)).transpose(1, 2)


def _projection(attn: Any, facet: Facet) -> tuple[Tensor, Tensor | None]:
    """Weight [heads * d, C] and bias [heads * d] of a facet: a third of the fused layer, or a layer of its own."""
    if attn.qkv is None:
        layer = {"query": attn.q_proj, "key": attn.k_proj, "value": attn.v_proj}[facet]
        return layer.weight, layer.bias
    third = ("query", "key", "value").index(facet)
    width = len(attn.qkv.weight) // 3
    part = slice(third * width, (third + 1) * width)
    if getattr(attn, "q_bias", None) is not None:  # which then has no bias inside the fused layer
        return attn.qkv.weight[part], (attn.q_bias, attn.k_bias, attn.v_bias)[third]
    return attn.qkv.weight[part], None if attn.qkv.bias is None else attn.qkv.bias[part]


def _rotated(attn: Any, part: Tensor, rope: Tensor, index: Tensor | None) -> Tensor:
    """Queries or keys [B, heads, R, d] with the rotary embedding of their patches; prefix tokens stay as they are."""
    if index is None:
        index = torch.arange(part.shape[2], device=part.device)
    is_patch = index >= attn.num_prefix_tokens
    turns = rope[..., (index - attn.num_prefix_tokens).clamp(0), :]
    turned = apply_rot_embed_cat(part, turns, half=getattr(attn, "rotate_half", False)).type_as(part)
    return torch.where(is_patch[:, None], turned, part)
