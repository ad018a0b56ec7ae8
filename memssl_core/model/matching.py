"""Which patches of one picture a model finds in another: nearest features, one way or both ways.

Shapes: Na, Nb patches of pictures A and B, row by row of a grid (rows, columns); C feature width; M matches.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Rule = Literal["mutual", "argmax"]
RULES: tuple[Rule, ...] = get_args(Rule)
ARTEFACT_NORM = 4.0
"""times the median norm: outliers stand at some ten times (Darcet et al., arXiv 2309.16588), others within two"""
_CHUNK = 1024


def match(a, b, rule: Rule = "mutual") -> tuple[np.ndarray, np.ndarray]:
    """Patches of A and the patches of B they go with, best first.

    Args:
        a, b: [Na, C], [Nb, C] features of any length.
        rule: `mutual` keeps the pairs of which each is the other's nearest by cosine, artefacts left out (Amir et al.,
            arXiv 2112.05814); `argmax` gives each patch of A the largest raw product in B (iBOT, arXiv 2111.07832).
    Returns: int64 [M, 2] (patch of A, patch of B) and float32 [M] cosines; of equal products the lower patch of B
        counts, of equal cosines the lower patch of A comes first.
    Raises: ValueError for features of different width or without rows.
    """
    a, b = _rows(a), _rows(b)
    if not len(a) or not len(b) or a.shape[1] != b.shape[1]:
        raise ValueError(f"features [N, C] of one width are matched, not {tuple(a.shape)} and {tuple(b.shape)}")
    unit_a, unit_b = _unit(a), _unit(b)
    if rule == "argmax":
        left, right = torch.arange(len(a)), _nearest(a, b)
    else:
        kept_a, kept_b = (torch.from_numpy(np.flatnonzero(~is_artefact(rows))) for rows in (a, b))
        there, back = _nearest(unit_a[kept_a], unit_b[kept_b]), _nearest(unit_b[kept_b], unit_a[kept_a])
        mutual = back[there] == torch.arange(len(kept_a))
        left, right = kept_a[mutual], kept_b[there[mutual]]
    scores = (unit_a[left] * unit_b[right]).sum(1)
    order = scores.sort(descending=True, stable=True).indices
    return torch.stack([left, right], 1)[order].numpy(), scores[order].numpy()


def is_artefact(rows) -> np.ndarray:
    """bool [N]: patches whose features [N, C] are far longer than the picture's other ones.

    Models without register tokens park global information in a few of them; by raw products these win every match.
    """
    norms = _rows(rows).norm(dim=1)
    return (norms > ARTEFACT_NORM * norms.median()).numpy()


def without_position(a, grid_a: tuple[int, int], b, grid_b: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Features [Na, C] and [Nb, C] from which no linear fit reads a patch's place (x, y) any more; float32.

    The two directions along which features covary with x and with y, over both pictures, are projected out: what is
    left has covariance zero with both. What truly goes with place, such as sky above, goes too.
    Source: the aim of RASA (Franca, arXiv 2507.14137); one fit in closed form in place of its trained, repeated ones.
    """
    a, b = _rows(a), _rows(b)
    rows = torch.cat([a, b]).double()
    places = torch.cat([_places(grid_a), _places(grid_b)])
    covariance = (rows - rows.mean(0)).mT @ (places - places.mean(0))
    directions, sizes, _ = torch.linalg.svd(covariance, full_matrices=False)
    directions = directions[:, sizes > 1e-9 * sizes.max().clamp(min=1e-30)]
    left = (rows - rows @ directions @ directions.mT).float()
    return left[: len(a)].numpy(), left[len(a) :].numpy()


def _places(grid: tuple[int, int]) -> Tensor:
    """float64 [N, 2]: (x, y) of patch centres, -1..1 across the picture."""
    y, x = (2 * (torch.arange(side, dtype=torch.float64) + 0.5) / side - 1 for side in grid)
    return torch.stack([x.repeat(len(y)), y.repeat_interleave(len(x))], 1)


def _rows(features) -> Tensor:
    return torch.as_tensor(features).detach().cpu().float()


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows, dim=1, eps=1e-12)


def _nearest(a: Tensor, b: Tensor) -> Tensor:
    """int64 [Na]: for each row of a the row of b with the largest product, the first of equal ones."""
    return torch.cat([(rows @ b.mT).argmax(1) for rows in a.split(_CHUNK)])
