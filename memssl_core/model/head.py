"""The projection head: embeddings in, unit projections out."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Head(nn.Module):
    """Linear, GELU, Linear, GELU, Linear, then unit length (eps 1e-6); optionally BatchNorm before each GELU.

    [..., C] -> [..., D]. Linear weights start normal with std 0.02 (truncated at +-2), biases at 0.
    Source: official head, with the published runs' `batch_norm=False`.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, *, batch_norm: bool = False) -> None:
        super().__init__()
        self.in_dim, self.hidden_dim, self.out_dim, self.batch_norm = in_dim, hidden_dim, out_dim, batch_norm
        layers: list[nn.Module] = []
        for width in (in_dim, hidden_dim):
            layers += [nn.Linear(width, hidden_dim), *([nn.BatchNorm1d(hidden_dim)] if batch_norm else []), nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden_dim, out_dim))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, embeddings: Tensor) -> Tensor:
        rows = self.mlp(embeddings.reshape(-1, self.in_dim))
        return F.normalize(rows.float(), dim=1, eps=1e-6).reshape(*embeddings.shape[:-1], self.out_dim)
