"""What a backbone's embedding becomes when one attention head is silenced. Threads may share a model.

Shapes: N tokens, C width, H attention heads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from memssl_core.errors import ModelError
from memssl_core.model.backbone import embed
from memssl_core.model.features import why_no_attention

TOKENS_AT_ONCE = 4096
"""tokens of all copies of a picture that run together, which bounds the memory"""


@dataclass(frozen=True, eq=False)
class Passage:
    """One picture's way through a backbone, from which it can be run on."""

    inputs: list[Tensor]
    """[1, N, C] as they enter each transformer block"""
    named: list[dict[str, Any]]
    """the other arguments of each block, rotary positions among them"""
    embedding: Tensor
    """[1, C]"""

    @property
    def nbytes(self) -> int:
        return self.embedding.nbytes + sum(tokens.nbytes for tokens in self.inputs)


@torch.inference_mode()
def pass_through(backbone: nn.Module, pixels: Tensor) -> Passage:
    """[1, 3, H, W] normalised pixels -> what entered the transformer blocks. ModelError as `why_no_attention` says."""
    if reason := why_no_attention(backbone):
        raise ModelError(reason)
    inputs: list[Tensor] = []
    named: list[dict[str, Any]] = []
    caller = threading.get_ident()

    def keep(block: nn.Module, arguments: tuple[Tensor, ...], others: dict[str, Any] | None = None) -> None:
        if threading.get_ident() == caller:  # as in `features.walk`
            inputs.append(arguments[0])
            named.append(others or {})

    with ExitStack() as hooks:
        for vit_block in backbone.blocks:  # type: ignore[union-attr]
            hooks.enter_context(vit_block.register_forward_pre_hook(keep, with_kwargs=True))
        embedding = embed(backbone, pixels)
    return Passage(inputs, named, embedding)


@torch.inference_mode()
def silenced_outputs(
    backbone: nn.Module, passage: Passage, block: int, turn: Callable[[], AbstractContextManager] = nullcontext
) -> Tensor:
    """[H, C]: `embed` of the picture when the output of one attention head of a block (0-based) is zero.

    Each head in turn, set to zero where the heads lie side by side: before the norm, if the module has one there, and
    the projection that mix them. Only this block and those after it are run, as many heads together as
    TOKENS_AT_ONCE says, each time within a `turn` of its own.
    """
    vit: Any = backbone
    attn = vit.blocks[block].attn
    copies = max(1, TOKENS_AT_ONCE // passage.inputs[block].shape[1])
    outputs = []
    for heads in torch.arange(attn.num_heads, device=passage.embedding.device).split(copies):
        with turn():
            outputs.append(_silenced(vit, passage, block, heads))
    return torch.cat(outputs)


def _silenced(vit: Any, passage: Passage, block: int, heads: Tensor) -> Tensor:
    """[h] head indices -> [h, C]."""
    attn, caller = vit.blocks[block].attn, threading.get_ident()

    def silence(module: nn.Module, arguments: tuple[Tensor]) -> Tensor | None:
        if threading.get_ident() != caller:
            return None
        sounding = torch.arange(attn.num_heads, device=heads.device) != heads[:, None]  # [copies, H]
        return (arguments[0].unflatten(-1, (attn.num_heads, -1)) * sounding[:, None, :, None]).flatten(-2)

    tokens = passage.inputs[block].expand(len(heads), -1, -1)
    with attn.norm.register_forward_pre_hook(silence):
        tokens = vit.blocks[block](tokens, **passage.named[block])
    for vit_block, named in zip(vit.blocks[block + 1 :], passage.named[block + 1 :], strict=True):
        tokens = vit_block(tokens, **named)
    return vit.forward_head(vit.norm(tokens))
