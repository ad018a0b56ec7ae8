"""Attention rollout: attention followed back through the transformer blocks to the tokens of the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from memssl_core.data.images import Frame
from memssl_core.model.features import BlockTokens, attention_chunks


@dataclass(frozen=True, eq=False)
class Rolled:
    """One query's rollout, in every transformer block. Source: Abnar and Zuidema, arXiv 2005.00928, section 3."""

    rows: np.ndarray
    """float32 [L, N]: row t is the query's row of the product of 0.5 A + 0.5 I of the blocks t, t - 1, ..., start;
    A is the mean over attention heads. It sums to 1; rows before `start` are zero."""
    start: int
    grid: tuple[int, int]
    """(rows, columns) of patches"""
    n_prefix: int
    frame: Frame
    queries: tuple[int, ...]
    """the query's token; empty for the mean over all patches"""

    def maps(self) -> np.ndarray:
        """float32 [L, rows, columns]: the patches' part."""
        return self.rows[:, self.n_prefix :].reshape(-1, *self.grid)


@torch.inference_mode()
def rolled_rows(attentions: Sequence[nn.Module], blocks: Sequence[BlockTokens], query: Tensor, start: int) -> Tensor:
    """`Rolled.rows` [L, N] of L attention modules and the tokens of each block of one picture.

    `query` [N]: where the walk back begins, weights that sum to 1. From the last block down, each block's attention is
    computed once, some rows at a time, for all rows that pass through it: no product N x N is ever made.
    """
    rows = query.repeat(len(blocks), 1)
    for block in reversed(range(start, len(blocks))):
        passing = rows[block:]
        through = torch.zeros_like(passing)
        for index, attended in attention_chunks(attentions[block], blocks[block], passing.any(0).nonzero()[:, 0]):
            through += passing[:, index] @ attended[0].float().mean(0)
        rows[block:] = (passing + through) / 2
    rows[:start] = 0
    return rows
