"""Whether two models arrange the same pictures alike: alignment of their kernels, and who is near whom in both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_CHUNK = 256  # rows sorted at a time
_SAME = 1e-6
"""rows that differ by less of their length are equal: float32 holds no more"""
_ZERO = 1e-12


def cka(x, y, debiased: bool = True) -> float:
    """Linear centred kernel alignment of rows [n, C] and [n, D] of the same n pictures: 1 if alike up to rotation,
    shift and scale.

    Args: debiased, on average 0 for unrelated rows and maybe slightly negative (needs n >= 4); else from 0 to 1, and
        near 1 for any rows that are much wider than n.
    Returns: NaN if the rows of one side are all equal, or (debiased) all as far from each other. Memory goes in n
        squared: hand in a sample of at most 10 000 rows.
    Source: Kornblith et al., ICML 2019; debiased with HSIC_1 of Song et al., JMLR 2012.
    """
    return float(cka_table([x], [y], debiased)[0, 0])


def cka_table(xs: Sequence, ys: Sequence, debiased: bool = True) -> np.ndarray:
    """float64 [len(xs), len(ys)]: `cka` of each of several rows [n, C] with each of others, as of layers of models."""
    counts = sorted({len(rows) for rows in (*xs, *ys)})
    if len(counts) > 1:
        raise ValueError(f"{counts[0]} rows cannot be compared with {counts[1]}; they must be of the same pictures")
    a, b = (torch.stack([_kernel(rows, debiased).ravel() for rows in each]) for each in (xs, ys))
    return torch.where(a.any(1)[:, None] & b.any(1), (a @ b.T).clamp(-1, 1), torch.nan).numpy()


def nearest_rows(rows, k: int) -> np.ndarray:
    """int64 [n, k]: of each of [n, C] rows the k nearest others by cosine, best first, equal ones by their place."""
    units = F.normalize(_checked(rows), dim=1, eps=1e-12)
    if not 1 <= k < len(units):
        raise ValueError(f"k is {k}; of {len(units)} rows it must be from 1 to {len(units) - 1}")
    found = []
    for start in range(0, len(units), _CHUNK):
        scores = units[start : start + _CHUNK] @ units.T
        scores.diagonal(start).fill_(-torch.inf)
        found.append(scores.sort(dim=1, descending=True, stable=True).indices[:, :k])
    return torch.cat(found).numpy()


def neighbourhood_overlap(a, b, k: int = 10) -> np.ndarray:
    """float64 [n]: of each picture's k nearest others in rows [n, C] the share that is so in rows [n, D] too."""
    near_a, near_b = nearest_rows(a, k), nearest_rows(b, k)
    if len(near_a) != len(near_b):
        raise ValueError(f"{len(near_a)} rows cannot be compared with {len(near_b)}; they must be of the same pictures")
    return shared_of(near_a, near_b)


def shared_of(near_a: np.ndarray, near_b: np.ndarray) -> np.ndarray:
    """float64 [n]: the share of the k different entries of each row [n, k] that the same row of the other holds."""
    return (near_a[:, :, None] == near_b[:, None]).any(2).mean(1)


def mutual_knn(a, b, k: int = 10) -> float:
    """Mean of `neighbourhood_overlap`: 1 if all neighbours stay, k / (n - 1) for chance.

    Source: Huh et al., ICML 2024, without the clipping of its code, so that a rotation of either side changes nothing.
    """
    return float(neighbourhood_overlap(a, b, k).mean())


def _kernel(rows, debiased: bool) -> Tensor:
    """[n, n] linear kernel, centred such that the sum of products of two goes with HSIC, and of norm 1 (0 if constant).

    Debiased as Szekely and Rizzo, Annals of Statistics 2014, write HSIC_1: zero diagonal, sums of rows by n - 2.
    """
    x = _checked(rows)
    n, length = len(x), x.norm()
    if n < (4 if debiased else 2):
        raise ValueError(f"{n} rows are too few to compare; give {4 if debiased else 2} or more")
    x = x - x.mean(0)
    if x.norm() <= _SAME * length:
        return x.new_zeros(n, n)
    x = x / x.norm()
    kernel = x @ x.T
    if debiased:
        kernel.fill_diagonal_(0)
        means = kernel.sum(1) / (n - 2)
        kernel += means.sum() / (n - 1) - means[:, None] - means
        kernel.fill_diagonal_(0)
    size = kernel.norm()
    return kernel.div_(size) if size > _ZERO else kernel.zero_()


def _checked(rows) -> Tensor:
    x = torch.as_tensor(rows).double().cpu()
    if x.ndim != 2 or not x.isfinite().all():
        raise ValueError(f"rows must be [n, C] finite numbers, not {list(x.shape)}")
    return x
