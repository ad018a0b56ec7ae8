"""How much of its space a representation uses, and how truly a map shows who is near whom in it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

_CHUNK = 64  # points at a time: what they are compared with stays in the processor
Nearness = Callable[[slice], Tensor]
"""rows -> [rows, N], larger is nearer"""


def rankme(rows) -> float:
    """Effective rank of [N, C] rows, neither centred nor squared: exp of the entropy of their singular values' shares.

    Between 1 and min(N, C). Source: Garrido et al., ICML 2023 (epsilon 1e-7 added to each share).
    """
    singular = torch.linalg.svdvals(torch.as_tensor(rows).double())
    shares = singular / singular.sum() + 1e-7
    return float(torch.exp(-(shares * shares.log()).sum()))


def trustworthiness(rows, xy, k: int = 15) -> float:
    """Whether neighbours on the map are neighbours in the space: 1 if all k of every point are, near 0.5 for chance.

    Args: rows [N, C] of any length, compared by cosine; xy [N, 2], by distance; k below N / 2.
    Takes time and comparisons in N squared: hand in a sample of at most 10 000 rows.
    Source: Venna and Kaski, ICANN 2001; `sklearn.manifold.trustworthiness` on data without equal distances. Equal ones
        share the best rank.
    """
    return _kept(*_nearness(rows, xy), k)


def continuity(rows, xy, k: int = 15) -> float:
    """Whether neighbours in the space are neighbours on the map: `trustworthiness` with the spaces swapped."""
    space, plane = _nearness(rows, xy)
    return _kept(plane, space, k)


def _nearness(rows, xy) -> tuple[Nearness, Nearness]:
    units = F.normalize(torch.as_tensor(rows).float(), dim=1, eps=1e-12)
    points = torch.as_tensor(xy).float()
    if len(units) != len(points):
        raise ValueError(f"{len(units)} rows do not belong to {len(points)} points")
    return (
        lambda part: units[part] @ units.T,
        lambda part: -torch.cdist(points[part], points, compute_mode="donot_use_mm_for_euclid_dist"),
    )


def _kept(judge: Nearness, judged: Nearness, k: int) -> float:
    """1 minus the scaled sum, over the k nearest by `judged` of each point, of how far beyond k `judge` ranks them."""
    count = judged(slice(0, 1)).shape[1]
    if not 1 <= k < count / 2:
        raise ValueError(f"k is {k}; of {count} points it must be from 1 to below {count / 2}")
    beyond = 0
    for start in range(0, count, _CHUNK):
        part = slice(start, start + _CHUNK)
        truth, shown = judge(part), judged(part)
        self_index = torch.arange(start, start + len(truth))[:, None]
        truth.scatter_(1, self_index, -torch.inf)
        shown.scatter_(1, self_index, -torch.inf)
        for column in shown.topk(k, dim=1).indices.T:
            rank = 1 + (truth > truth.gather(1, column[:, None])).sum(1)
            beyond += int((rank - k).clamp(min=0).sum())
    return 1 - 2 * beyond / (count * k * (2 * count - 3 * k - 1))
