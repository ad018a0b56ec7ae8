"""Signs of learning and of collapse that cost one block's softmax (docs/METHOD.md, "what to watch")."""

from __future__ import annotations

import math

import torch
from torch import Tensor


@torch.no_grad()
def watch(student: Tensor, teacher: Tensor, block: Tensor, *, teacher_temperature: float) -> dict[str, float]:
    """Gauges of one step on one block.

    Args: student [V, B, D] and teacher [G, B, D] unit rows, block [S, D] unit rows.
    Returns a dict of floats:
        conditional_entropy, marginal_entropy: of the teacher's distributions, in shares of ln S;
        collapse_gauge: mutual information of picture and slot over its largest value min(ln rows, ln S), 0..1;
            near 0 in every collapse;
        agreement: share of pictures whose strongest slot is the same for student view 0 and the last teacher view.
    """
    rows = teacher.flatten(0, 1).float()
    log_q = (rows @ block.T / teacher_temperature).log_softmax(-1)
    conditional = -(log_q.exp() * log_q).sum(-1).mean()
    mean = log_q.exp().mean(0)
    marginal = -torch.special.xlogy(mean, mean).sum()
    strongest = (student[0].float() @ block.T).argmax(-1) == (teacher[-1].float() @ block.T).argmax(-1)
    log_s, log_rows = math.log(len(block)), math.log(len(rows))
    return {
        "conditional_entropy": conditional.item() / log_s if log_s else 0.0,
        "marginal_entropy": marginal.item() / log_s if log_s else 0.0,
        "collapse_gauge": (marginal - conditional).item() / max(min(log_s, log_rows), 1e-12),
        "agreement": strongest.float().mean().item(),
    }
