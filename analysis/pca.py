"""Principal components of patch features as colours, over one picture or two at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memssl_core.data.images import Frame

SAME = 1e-6
"""features that differ by less of their length are equal: float32 holds no more"""
SHOWN = 0.01, 0.99
"""quantiles of a component between which its colour runs from dark to light [assumption]"""


@dataclass(frozen=True, eq=False)
class Pca:
    """The first three principal components of the patches of one picture, or of two together; b is None without."""

    a: np.ndarray
    """float32 [rows, columns, 3]; zeros in the background, and where there are fewer than three components"""
    b: np.ndarray | None
    front_a: np.ndarray
    """bool [rows, columns]: the patches whose components these are: the foreground, or all"""
    front_b: np.ndarray | None
    explained: np.ndarray
    """float32 [3]: shares of the variance of these patches"""
    colours_a: np.ndarray
    """uint8 [rows, columns, 3]: first component red, second green, third blue; the background black"""
    colours_b: np.ndarray | None
    frame_a: Frame | None = None
    frame_b: Frame | None = None


def pca_colours(cells_a: np.ndarray, cells_b: np.ndarray | None = None, *, foreground: bool = False) -> Pca:
    """Features [rows, columns, C] of one picture, or of two that share their components and their colours.

    `foreground`: the first component splits the patches, see `foreground_by_pca`; a second analysis then sees only the
    foreground. Source: the figures of patch features in DINOv2, arXiv 2304.07193; which side is the foreground is ours.
    """
    grids = [cells for cells in (cells_a, cells_b) if cells is not None]
    fronts = foreground_by_pca(grids) if foreground else [np.ones(cells.shape[:2], bool) for cells in grids]
    features = [cells[front] for cells, front in zip(grids, fronts, strict=True)]
    scores, explained = _components(np.concatenate(features))
    shown = _colours(scores)
    where = np.cumsum([len(rows) for rows in features])[:-1]
    values = [_placed(front, rows) for front, rows in zip(fronts, np.split(scores, where), strict=True)]
    colours = [_placed(front, rows) for front, rows in zip(fronts, np.split(shown, where), strict=True)]
    (a, b), (front_a, front_b), (colours_a, colours_b) = ([*pair, None][:2] for pair in (values, fronts, colours))
    return Pca(a, b, front_a, front_b, explained, colours_a, colours_b)


def foreground_by_pca(grids: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Features [rows, columns, C] of pictures -> bool [rows, columns] of each: the side of the first principal
    component, over all pictures, that is found less along the pictures' edges."""
    along = _components(np.concatenate([cells.reshape(-1, cells.shape[2]) for cells in grids]))[0][:, 0]
    edge = np.concatenate([_edge(*cells.shape[:2]).ravel() for cells in grids])
    if not edge.all() and along[edge].mean() > along[~edge].mean():
        along = -along
    where = np.cumsum([cells[..., 0].size for cells in grids])[:-1]
    return [part.reshape(cells.shape[:2]) > 0 for part, cells in zip(np.split(along, where), grids, strict=True)]


def _components(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[n, C] -> scores float32 [n, 3] and shares of variance float32 [3], zeros for components there are not.

    A component's largest weight is made positive, so the same pictures always have the same colours. Rows that are
    equal but for rounding have no component.
    """
    rows = features.astype(np.float64)
    length = np.linalg.norm(rows)
    rows -= rows.mean(0) if len(rows) else 0
    if np.linalg.norm(rows) <= SAME * length:
        rows[:] = 0
    few = len(rows) < rows.shape[1]  # the smaller of the two products has the same components
    lengths, vectors = np.linalg.eigh(rows @ rows.T if few else rows.T @ rows)
    lengths, vectors = lengths[::-1][:3].clip(0), vectors[:, ::-1][:, :3]
    total = max(float((rows**2).sum()), 1e-300)
    lengths[lengths < 1e-12 * total] = 0
    found = vectors * np.sqrt(lengths) if few else rows @ vectors * (lengths > 0)
    weights = rows.T @ found
    largest = np.take_along_axis(weights, np.abs(weights).argmax(0)[None], 0)
    missing = 3 - len(lengths)
    scores = np.pad(found * np.where(largest < 0, -1, 1), ((0, 0), (0, missing)))
    return scores.astype(np.float32), np.pad(lengths / total, (0, missing)).astype(np.float32)


def _colours(scores: np.ndarray) -> np.ndarray:
    """[n, 3] -> uint8 [n, 3], each column spread over 0..255 between the quantiles SHOWN."""
    if not len(scores):
        return scores.astype(np.uint8)
    low, high = np.quantile(scores, SHOWN, axis=0)
    return ((scores - low) / np.maximum(high - low, 1e-12) * 255).clip(0, 255).round().astype(np.uint8)


def _placed(front: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """[n, 3] rows to the n places of bool [rows, columns] that are True -> [rows, columns, 3], zeros elsewhere."""
    grid = np.zeros((*front.shape, 3), rows.dtype)
    grid[front] = rows
    return grid


def _edge(rows: int, columns: int) -> np.ndarray:
    """bool [rows, columns]: the outermost patches."""
    edge = np.ones((rows, columns), bool)
    edge[1:-1, 1:-1] = False
    return edge
