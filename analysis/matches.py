"""Matches between two pictures: which patches a model holds to be the same, and what lies in the foreground."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from analysis.pca import foreground_by_pca
from memssl_core.data.images import Frame
from memssl_core.evaluation.correspondence import instance_accuracy
from memssl_core.model.features import Facet
from memssl_core.model.matching import Rule, match

Foreground = Literal["none", "attention", "pca"]
DEFAULT_FACET: Facet = "token"
DEFAULT_LAYER = -3
"""from the end; both chosen with benchmarks/quality.py, see docs/PROTOCOLS.md"""
ATTENTION_MASS = 0.6
"""share of the class token's attention that the foreground holds (DINO's and our protocol's threshold)"""


@dataclass(frozen=True, eq=False)
class Matches:
    """M pairs of patches, best first."""

    points_a: np.ndarray
    """float64 [M, 2], (x, y) px of picture A: the middle of its patch"""
    points_b: np.ndarray
    patches: np.ndarray
    """int64 [M, 2], (patch of A, patch of B)"""
    scores: np.ndarray
    """float32 [M] cosines"""
    frame_a: Frame
    frame_b: Frame
    rule: Rule
    facet: Facet
    layer: int
    """transformer block or stage, 0-based"""

    @property
    def rows(self) -> Iterator[list[int | float]]:
        """For tables, in the order of COLUMNS."""
        for (patch_a, patch_b), a, b, score in zip(
            self.patches.tolist(), self.points_a.tolist(), self.points_b.tolist(), self.scores.tolist(), strict=True
        ):
            places = [*divmod(patch_a, self.frame_a.columns), *divmod(patch_b, self.frame_b.columns)]
            yield [*places, *(round(value, 2) for value in (*a, *b)), score]

    def summary(self) -> dict[str, Any]:
        """Plain values for JSON."""
        frames = {"a": self.frame_a, "b": self.frame_b}
        return {
            "rule": self.rule,
            "facet": self.facet,
            "layer": self.layer,
            "grid": {name: [frame.rows, frame.columns] for name, frame in frames.items()},
            "picture_px": {name: [frame.width, frame.height] for name, frame in frames.items()},
            "points_a": self.points_a.tolist(),
            "points_b": self.points_b.tolist(),
            "patches": self.patches.tolist(),
            "scores": self.scores.tolist(),
        }


COLUMNS = ("row_a", "column_a", "row_b", "column_b", "x_a_px", "y_a_px", "x_b_px", "y_b_px", "cosine")


@dataclass(frozen=True, eq=False)
class Pair:
    """The patch features of two pictures."""

    a: np.ndarray
    """float32 [Na, C]"""
    b: np.ndarray
    """float32 [Nb, C]"""
    frame_a: Frame
    frame_b: Frame
    facet: Facet
    layer: int

    def match(self, rule: Rule = "mutual") -> Matches:
        """All pairs of the rule, see `memssl_core.model.matching.match`."""
        patches, scores = match(self.a, self.b, rule)
        points_a, points_b = _centres(self.frame_a, patches[:, 0]), _centres(self.frame_b, patches[:, 1])
        return Matches(points_a, points_b, patches, scores, self.frame_a, self.frame_b, rule, self.facet, self.layer)

    def foreground_by_pca(self) -> tuple[np.ndarray, np.ndarray]:
        """bool [Na], [Nb]: see `analysis.pca.foreground_by_pca`."""
        both = (self.a, self.frame_a), (self.b, self.frame_b)
        in_a, in_b = foreground_by_pca([rows.reshape(frame.rows, frame.columns, -1) for rows, frame in both])
        return in_a.ravel(), in_b.ravel()


def known_accuracy(matches: Matches, homography: np.ndarray) -> dict[str, float | None]:
    """'acc@0', 'acc@1', 'acc@2' in per cent, 'end_point_px' and 'coverage', see `instance_accuracy`; None where there
    is nothing to count. `homography` [3, 3] takes px of A to px of B."""
    frames = matches.frame_a, matches.frame_b
    metrics = instance_accuracy(matches.patches, *frames, homography).metrics
    return {name: value if np.isfinite(value) else None for name, value in metrics.items()}


def only(matches: Matches, kept: np.ndarray | slice) -> Matches:
    """The matches at `kept`: indices, a slice or bool [M]."""
    parts = {name: getattr(matches, name)[kept] for name in ("points_a", "points_b", "patches", "scores")}
    return replace(matches, **parts)


def holding(weights: np.ndarray, mass: float = ATTENTION_MASS) -> np.ndarray:
    """bool [N]: the fewest strongest of the weights [N] that together hold `mass` of their sum.

    Ascending, cumulated; on where the running share passes 1 - mass (DINO's visualisation).
    """
    order = np.argsort(weights, kind="stable")
    running = np.cumsum(weights[order].astype(np.float64))
    on = np.zeros(len(weights), bool)
    on[order] = running > (1 - mass) * running[-1]
    return on


def _centres(frame: Frame, patches: np.ndarray) -> np.ndarray:
    return np.array([frame.centre_of(patch) for patch in patches.tolist()], np.float64).reshape(-1, 2)
