"""Tokens of a vision transformer, and the attention rows asked for. No hooks, no switches: threads may share a model.

Shapes: B pictures, N tokens (prefix tokens first, then patches row by row), C width, R query tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from memssl_core.errors import ModelError


def why_no_attention(backbone: nn.Module) -> str | None:
    """A sentence that says why `attention_rows` cannot serve this backbone; None if it can."""
    kind = type(backbone).__name__
    if not isinstance(backbone, VisionTransformer):
        return f"Attention maps need a plain vision transformer, and this model is a {kind}."
    for vit_block in backbone.blocks:
        attn: Any = getattr(vit_block, "attn", None)
        if type(vit_block) is not Block or type(attn) is not Attention:
            names = f"{type(vit_block).__name__} with {type(attn).__name__}"
            return f"Attention maps are not available for this model: its transformer blocks are {names} (a variant)."
        if attn.gate is not None:
            return "Attention maps are not available for this model: its attention is gated, so rows alone mislead."
    return None


def n_prefix(backbone: nn.Module) -> int:
    """How many tokens precede the patches: class and register tokens."""
    return int(getattr(backbone, "num_prefix_tokens", 0))


def patch_px(backbone: nn.Module) -> int:
    """Side of a patch in pixels of the model input. ModelError if the model has no square patches."""
    sides = getattr(getattr(backbone, "patch_embed", None), "patch_size", None)
    if not isinstance(sides, (tuple, list)) or len(set(sides)) != 1:
        raise ModelError(f"{type(backbone).__name__} does not cut pictures into square patches; choose another model.")
    return int(sides[0])


def walk(backbone: nn.Module, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
    """[B, 3, H, W] normalised pixels -> ([B, N, C] entering each transformer block, [B, N, C] after the final norm).

    The sides must be multiples of the patch side. Raises: ModelError as `why_no_attention` says.
    """
    if reason := why_no_attention(backbone):
        raise ModelError(reason)
    vit: Any = backbone
    tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(pixels))))
    inputs = []
    for vit_block in vit.blocks:
        inputs.append(tokens)
        tokens = vit_block(tokens)
    return inputs, vit.norm(tokens)


def block_inputs(backbone: nn.Module, pixels: Tensor) -> list[Tensor]:
    """The first half of `walk`: the tokens [B, N, C] entering each transformer block."""
    return walk(backbone, pixels)[0]


@torch.inference_mode()
def attention_rows(vit_block: nn.Module, tokens: Tensor, rows: Tensor | list[int]) -> Tensor:
    """Attention rows of a timm transformer block: only what is asked for, whichever attention kernel is active.

    [B, N, C] tokens entering the block, [R] token indices -> [B, attention heads, R, N]; each row sums to 1.
    """
    block: Any = vit_block
    attn, x = block.attn, block.norm1(tokens)
    width = attn.attn_dim
    weight, bias = attn.qkv.weight, attn.qkv.bias
    query_bias, key_bias = (None, None) if bias is None else (bias[:width], bias[width : 2 * width])
    split = lambda y: y.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
    q = attn.q_norm(split(F.linear(x[:, rows], weight[:width], query_bias)))
    k = attn.k_norm(split(F.linear(x, weight[width : 2 * width], key_bias)))
    return (q * attn.scale @ k.mT).softmax(-1)
