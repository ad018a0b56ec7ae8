"""The projection head: embeddings in, unit projections out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memssl_core.model.batch_norm import BatchNorm


class Head(nn.Module):
    """Linear, GELU, Linear, GELU, Linear, then unit length (eps 1e-6); optionally BatchNorm before each GELU.

    [..., C] -> [..., D], float32 at least. Linear weights start normal with std 0.02 (truncated at +-2), biases at 0.
    Source: official head, with the published runs' `batch_norm=False`.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, *, batch_norm: bool = False) -> None:
        super().__init__()
        self.in_dim, self.hidden_dim, self.out_dim, self.batch_norm = in_dim, hidden_dim, out_dim, batch_norm
        layers: list[nn.Module] = []
        for width in (in_dim, hidden_dim):
            layers += [nn.Linear(width, hidden_dim), *([BatchNorm(hidden_dim)] if batch_norm else []), nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden_dim, out_dim))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, embeddings: Tensor) -> Tensor:
        rows = self.mlp(embeddings.reshape(-1, self.in_dim))
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        return F.normalize(rows, dim=1, eps=1e-6).reshape(*embeddings.shape[:-1], self.out_dim)
