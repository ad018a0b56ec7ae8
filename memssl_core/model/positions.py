"""Position embeddings on another grid: timm's way, and the one that DINO, iBOT and MaSSL were run with."""

from __future__ import annotations

from types import MethodType
from typing import Any, Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from memssl_core.errors import ModelError

Positions = Literal["timm", "original"]


def original_positions(table: Tensor, rows: int, columns: int) -> Tensor:
    """[1, 1 + g*g, C] -> [1, 1 + rows*columns, C]: bicubic without antialiasing, by the factor (rows + 0.1) / g.

    Source: official interpolate_pos_encoding (DINO 7c446df, kept in MaSSL). The 0.1 guarded against rounding there and
    belongs to the result: the sampled points lie a little closer together than the grid asks for.
    """
    side = round((table.shape[1] - 1) ** 0.5)
    if (rows, columns) == (side, side):
        return table
    grid = table[:, 1:].mT.unflatten(-1, (side, side))
    factors = ((rows + 0.1) / side, (columns + 0.1) / side)
    fitted = F.interpolate(grid, scale_factor=factors, mode="bicubic")
    return torch.cat([table[:, :1], fitted.flatten(2).mT], 1)


def use_original_positions(backbone: nn.Module) -> None:
    """Make a plain timm vision transformer fit its positions as the original code does; equal at its own size.

    ModelError for a model that is not built as those were: one class token, learned positions on a square grid.
    """
    vit: Any = backbone
    is_plain = isinstance(backbone, VisionTransformer) and n_tokens(vit) == vit.pos_embed.shape[1]
    if not is_plain or vit.num_prefix_tokens != 1 or vit.no_embed_class:
        raise ModelError("Only a plain vision transformer with one class token has positions of the original kind.")

    def pos_embed(self: Any, patches: Tensor) -> Tensor:
        """[B, rows, columns, C] -> [B, 1 + rows*columns, C]"""
        images, rows, columns, _ = patches.shape
        tokens = torch.cat([self.cls_token.expand(images, -1, -1), patches.flatten(1, 2)], 1)
        return self.pos_drop(tokens + original_positions(self.pos_embed, rows, columns))

    vit._pos_embed = MethodType(pos_embed, vit)


def n_tokens(vit: Any) -> int:
    """Tokens at the model's own size, 0 for a grid that is not square or positions that are not learned."""
    rows, columns = vit.patch_embed.grid_size
    return 1 + rows * columns if rows == columns and vit.pos_embed is not None and vit.dynamic_img_size else 0
