"""A memory turning: the slots of every snapshot of a run on the same two axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from memssl_core.training.snapshots import Snapshot

SPREAD = 65_535
"""coordinates are uint16"""
MARGIN = 1.1
"""the side of the square, in sides of what it was made for"""
ENOUGH = 3
"""keys that have principal components"""


@dataclass(frozen=True, eq=False)
class Axes:
    """Two directions in the space of projections, and the square on them that is looked at."""

    directions: np.ndarray
    """float32 [D, 2]"""
    centre: np.ndarray
    """float32 [2]"""
    side: float

    def places(self, vectors: np.ndarray) -> np.ndarray:
        """uint16 [M, 2] of [M, D] vectors: 0 to SPREAD over the square, y downwards; what lies outside is at a rim."""
        at = (vectors.astype(np.float32) @ self.directions - self.centre) / self.side + 0.5
        at[:, 1] = 1 - at[:, 1]
        return np.clip(np.rint(at * SPREAD), 0, SPREAD).astype(np.uint16)


def axes_of(snapshot: Snapshot) -> Axes:
    """The first two principal components of the keys of a snapshot, or of its noise while there are hardly any.

    Each points to its largest weight, as in `pca_map`.
    """
    written = snapshot.written_at >= 0
    rows = snapshot.vectors[written if written.sum() >= ENOUGH else slice(None)].astype(np.float64)
    centred = rows - rows.mean(0)
    directions = np.linalg.eigh(centred.T @ centred)[1][:, :-3:-1]  # [D, 2]
    directions = np.pad(directions, ((0, 0), (0, 2 - directions.shape[1])))
    directions *= np.sign(np.take_along_axis(directions, np.abs(directions).argmax(0)[None], 0))
    places = rows @ directions
    low, high = places.min(0), places.max(0)
    side = MARGIN * max(float((high - low).max()), 1e-6)
    return Axes(directions.astype(np.float32), ((low + high) / 2).astype(np.float32), side)


def ages(written_at: np.ndarray) -> np.ndarray:
    """uint8 [M] of the steps [M] at which slots were written: 0 noise (-1), 1 the oldest key, 255 the newest."""
    written = written_at >= 0
    if not written.any():
        return np.zeros(len(written_at), np.uint8)
    newest, oldest = written_at.max(), written_at[written].min()
    share = (written_at - oldest) / max(1, newest - oldest) if newest > oldest else np.ones(len(written_at))
    return np.where(written, np.rint(1 + 254 * share), 0).astype(np.uint8)


def written_since(written_at: np.ndarray, step: int) -> np.ndarray:
    """bool [M]: the slots written after the snapshot of `step`, which holds what the steps 0 … step - 1 wrote."""
    return written_at >= max(0, step)
