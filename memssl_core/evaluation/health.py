"""How much of its space a representation uses."""

from __future__ import annotations

import torch


def rankme(rows) -> float:
    """Effective rank of [N, C] rows, neither centred nor squared: exp of the entropy of their singular values' shares.

    Between 1 and min(N, C). Source: Garrido et al., ICML 2023 (epsilon 1e-7 added to each share).
    """
    singular = torch.linalg.svdvals(torch.as_tensor(rows).double())
    shares = singular / singular.sum() + 1e-7
    return float(torch.exp(-(shares * shares.log()).sum()))
