"""Searching a gallery or a memory by a vector, and what is asked of the results."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from analysis.index import EXACT_UP_TO, MEASURED_K, Ivf, nearest
from memssl_core.data.images import ImageSource
from memssl_core.errors import ModelError
from memssl_core.jobs import Emit

if TYPE_CHECKING:
    from analysis.neighbours import Space
    from analysis.workbench import Workbench

DUPLICATE = 0.98
"""cosine from which two results count as near-duplicates [assumption]"""
MAX_K, MAX_STEPS = 5_000, 100
JUDGED_AT_MOST, JUDGED_AT_ONCE = 20_000, 1_024
"""rows whose neighbours are found to tell odd ones; of more a sample is taken"""
ROUNDING = 2e-3
"""of cosines of float16 rows [assumption]"""
OPPOSITE = 1e-3
"""length of a sum of unit vectors below which it points nowhere"""


class Searched(Protocol):
    """Rows that can be searched: a `Gallery`, or a `MemoryRows`."""

    @property
    def vectors(self) -> np.ndarray: ...

    @property
    def index(self) -> Ivf | None: ...

    def keep(self, class_name: str | None = None, path: str | None = None) -> np.ndarray | None: ...

    def describe(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """Of each row its `id`, `uri`, `class_name` and more."""
        ...

    def thumbnail(self, id: int, /) -> bytes: ...


@dataclass(frozen=True, eq=False)
class Found:
    """The rows nearest to a query, best first."""

    rows: np.ndarray
    """int64 [k]"""
    scores: np.ndarray
    """float32 [k] cosines, exact whatever found the rows"""
    exact: bool
    """False: an index found them and may have missed some"""
    recall: float | None
    """the index's measured recall@10 over all rows; None if the search was exact"""
    time_s: float

    def records(self, searched: Searched) -> list[dict[str, Any]]:
        """Plain values for JSON: rank from 1, score, and what `searched` tells of the row."""
        told = zip(self.scores.clip(-1, 1).tolist(), searched.describe(self.rows), strict=True)
        return [{"rank": rank, "score": round(score, 6), **row} for rank, (score, row) in enumerate(told, 1)]


@dataclass(frozen=True, eq=False)
class Walk:
    """Points from one picture to another along the great circle, and what lies nearest to each."""

    angles: np.ndarray
    """float32 [n] radians from the first picture, increasing to the angle between the two"""
    rows: np.ndarray
    """int64 [n], no two alike"""
    scores: np.ndarray
    """float32 [n] cosines of a row and its point"""


@dataclass(frozen=True, eq=False)
class Oddities:
    """Rows that are unlike all others, oddest first."""

    rows: np.ndarray
    """int64 [n]"""
    scores: np.ndarray
    """float32 [n] mean cosine to the k nearest other rows, increasing"""
    judged: int
    """how many rows were looked at: all, or a random sample"""


def search(
    searched: Searched,
    query: np.ndarray,
    k: int,
    *,
    exact: bool = False,
    class_name: str | None = None,
    path: str | None = None,
    itself: int | None = None,
) -> Found:
    """The k rows nearest to a vector [C] of any length.

    Args:
        exact: compare every row, also where there is an index; up to EXACT_UP_TO rows are compared anyhow.
        class_name, path: only rows of this class, whose path holds these words.
        itself: the row of the very picture that is asked about; it stands first whatever rounding says.
    Raises: ModelError for an impossible k, a query of another width, or when nothing passes the filters.
    """
    began = time.perf_counter()
    _check_k(k)
    keep = searched.keep(class_name, path)
    rows, scores, recall = _nearest(searched, unit(query)[None], k, keep, exact=exact)
    rows, scores = rows[0], scores[0]
    if itself is not None and itself not in rows and (keep is None or keep[itself]):
        score = searched.vectors[itself].astype(np.float32) @ unit(query)
        if score >= scores[-1] - ROUNDING:  # k others are equal to it
            rows[-1], scores[-1] = itself, score
    if itself is not None and itself in rows[1:]:
        order = np.argsort(rows != itself, kind="stable")
        rows, scores = rows[order], scores[order]
    return Found(rows, scores, recall is None, recall, time.perf_counter() - began)


def unit(vector: np.ndarray) -> np.ndarray:
    """float32 [C] of unit length. ModelError for one without direction."""
    vector = np.asarray(vector, np.float32)
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length) or length < 1e-12:
        raise ModelError("The model gives no embedding of this picture, so nothing is like it; choose another one.")
    return vector / length


def mean_of(queries: Sequence[np.ndarray]) -> np.ndarray:
    """Between several vectors [C], each counting alike whatever its length: float32 [C], unit length.

    Raises: ModelError if they cancel out.
    """
    return _direction(np.mean([unit(query) for query in queries], axis=0))


def less_like(query: np.ndarray, others: Sequence[np.ndarray], weight: float = 0.5) -> np.ndarray:
    """`query` [C] away from others: its direction less `weight` times the mean direction of theirs (Rocchio's feedback
    without its positive part), float32 [C], unit length.

    Raises: ModelError for a negative weight, or if nothing is left.
    """
    if not 0 <= weight <= 10:
        raise ModelError(f"weight is {weight}; choose 0 to 10.")
    if not others:
        return unit(query)
    return _direction(unit(query) - weight * np.mean([unit(other) for other in others], axis=0))


def great_circle(a: np.ndarray, b: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """n >= 2 points at equal angles on the shortest way between two directions [C], both ends among them.

    Returns: float32 [n] angles from `a` in radians, and float32 [n, C] unit points.
    Raises: ModelError for opposite directions, between which there is no shortest way, or too few or many points.
    """
    if not 2 <= n <= MAX_STEPS:
        raise ModelError(f"A walk of {n} steps was asked for; choose 2 to {MAX_STEPS}.")
    a, b = unit(a).astype(np.float64), unit(b).astype(np.float64)
    cosine, across = float(np.clip(a @ b, -1, 1)), b - (a @ b) * a
    sine = float(np.linalg.norm(across))
    if cosine < 0 and sine < OPPOSITE:
        raise ModelError("These two are exact opposites, so no way between them is the shortest; choose another one.")
    angles = np.linspace(0, np.arctan2(sine, cosine), n)
    side = across / max(sine, 1e-12)
    points = np.cos(angles)[:, None] * a + np.sin(angles)[:, None] * side
    return angles.astype(np.float32), points.astype(np.float32)


def walk(
    searched: Searched,
    a: np.ndarray,
    b: np.ndarray,
    n: int,
    *,
    class_name: str | None = None,
    path: str | None = None,
) -> Walk:
    """The row nearest to each of n points from `a` to `b`, the best pairs being made first, no row twice.

    Raises: ModelError as `great_circle` and `search`, or if there are fewer than n rows.
    """
    angles, points = great_circle(a, b, n)
    candidates, all_scores, _ = _nearest(searched, points, n, searched.keep(class_name, path))
    if candidates.shape[1] < n:
        raise ModelError(f"There are only {candidates.shape[1]} pictures to walk over; ask for fewer steps.")
    rows, scores = np.full(n, -1), np.zeros(n, np.float32)
    taken: set[int] = set()
    for place in np.argsort(-all_scores, axis=None, kind="stable").tolist():
        point, rank = divmod(place, n)
        row = int(candidates[point, rank])
        if rows[point] < 0 and row not in taken:
            rows[point], scores[point] = row, all_scores[point, rank]
            taken.add(row)
    return Walk(angles, rows, scores)


def groups(vectors: np.ndarray, threshold: float = DUPLICATE) -> list[np.ndarray]:
    """Results [k, C], unit rows, best first, that a chain of cosines of at least `threshold` joins.

    Returns: positions int64, increasing within a group; the groups in the order of their first. Each position is in
        one group, alone if nothing is so near.
    """
    from scipy.sparse.csgraph import connected_components

    if not 0 < threshold <= 1:
        raise ModelError(f"The threshold is {threshold}; choose a cosine above 0, up to 1.")
    rows = vectors.astype(np.float32)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    count, labels = connected_components(rows @ rows.T >= threshold - 1e-6, directed=False)
    found = [np.flatnonzero(labels == label) for label in range(count)]
    return sorted(found, key=lambda group: group[0])


def oddities(
    searched: Searched,
    n: int = 60,
    k: int = MEASURED_K,
    *,
    emit: Emit = lambda event, *, step, **facts: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Oddities:
    """The n rows with the lowest mean cosine to their k nearest others, found exactly, some at a time.

    Raises: ModelError if there are fewer than two rows, or when it was asked to stop.
    """
    _check_k(n)
    _check_k(k)
    vectors, keep = searched.vectors, searched.keep()
    judged = np.arange(len(vectors)) if keep is None else np.flatnonzero(keep)
    if len(judged) < 2:
        raise ModelError("A single picture cannot be odd; there is nothing to compare it with.")
    if len(judged) > JUDGED_AT_MOST:
        judged = np.sort(np.random.default_rng(0).choice(judged, JUDGED_AT_MOST, replace=False))
    means = np.empty(len(judged), np.float32)
    for start in range(0, len(judged), JUDGED_AT_ONCE):
        if should_stop():
            raise ModelError("Stopped while looking for odd pictures.")
        asked = judged[start : start + JUDGED_AT_ONCE]
        rows, scores = nearest(vectors, vectors[asked].astype(np.float32), k + 1, keep)
        others = rows != asked[:, None]
        others[others.all(1), -1] = False  # a row that k + 1 equal ones came before
        means[start : start + len(asked)] = scores[others].reshape(len(asked), -1).mean(1)
        emit("progress", step=start + len(asked), total=len(judged), words="looking for odd pictures")
    order = np.argsort(means, kind="stable")[:n]
    return Oddities(judged[order], means[order], len(judged))


def explain(workbench: Workbench, query: np.ndarray, result: ImageSource, size: int | None = None) -> np.ndarray:
    """What of a result is like the query: float32 [rows, columns], the cosine of each patch of the result, after the
    backbone's last layer, with the query's embedding [C], or a mean of several.

    Raises: ModelError if the model's embedding and patches are of different widths, and cannot be compared.
    """
    cells, _ = workbench.features(result, size)
    embedding = unit(query)
    if cells.shape[2:] != embedding.shape:
        raise ModelError("This model's patches and embeddings have different widths, so they cannot be compared.")
    return (cells / np.maximum(np.linalg.norm(cells, axis=2, keepdims=True), 1e-12)) @ embedding


@dataclass(frozen=True, eq=False)
class MemoryRows:
    """The written slots of a model's memory in one space, as rows that can be searched."""

    workbench: Workbench
    slots: np.ndarray
    """int64 [M], increasing"""
    vectors: np.ndarray
    """float32 [M, D] or [M, C] unit rows"""
    index = None

    def keep(self, class_name: str | None = None, path: str | None = None) -> np.ndarray | None:
        """As `Gallery.keep`, of the slots' class names and uris."""
        import pyarrow.compute

        compute: Any = pyarrow.compute
        memory = self._memory()
        hits: np.ndarray | None = None
        if class_name:
            hits = compute.fill_null(compute.equal(memory.class_name, class_name), False).to_numpy(zero_copy_only=False)
        if path:
            found = compute.match_substring(memory.uri, path, ignore_case=True)
            found = compute.fill_null(found, False).to_numpy(zero_copy_only=False)
            hits = found if hits is None else hits & found
        return None if hits is None else hits[self.slots]

    def describe(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """Plain values: id (the slot), uri, class_name, image_id, step, box."""
        told = ("image_id", "uri", "class_name", "step", "box")
        found = self._memory().rows(self.slots[rows])
        return [{"id": row["slot"], **{name: row[name] for name in told}} for row in found]

    def has_thumbnail(self, slot: int) -> bool:
        return bool(self._memory().pictured[slot])

    def thumbnail(self, slot: int) -> bytes:
        return self._memory().thumbnail(slot)

    def _memory(self):
        memory = self.workbench.model.memory
        assert memory is not None  # it has slots
        return memory


def memory_rows(workbench: Workbench, space: Space = "memory") -> MemoryRows:
    """A model's memory to be searched; its vectors are copied. ModelError if it has no memory or not this space."""
    return MemoryRows(workbench, *workbench.slots(space))


def _nearest(
    searched: Searched, queries: np.ndarray, k: int, keep: np.ndarray | None, *, exact: bool = False
) -> tuple[np.ndarray, np.ndarray, float | None]:
    """Rows and scores [Q, k'], and the measured recall if an index found them.

    Raises: ModelError for queries of another width, or when no row is kept.
    """
    vectors = searched.vectors
    if queries.shape[1] != vectors.shape[1]:
        widths = f"{queries.shape[1]} numbers and the rows {vectors.shape[1]}"
        raise ModelError(f"The query has {widths}: they come from different models. Open the gallery's model.")
    count = len(vectors) if keep is None else int(keep.sum())
    if not count:
        raise ModelError("No picture has this class and these words in its path; change the filters.")
    k = min(k, count)
    if searched.index is not None and not exact and count > EXACT_UP_TO:
        rows, scores = searched.index.nearest(vectors, queries, k, keep)
        if (rows >= 0).all():  # else there are too few in the lists that were looked into
            return rows, scores, searched.index.facts.recall
    return *nearest(vectors, queries, k, keep), None


def _check_k(k: int) -> None:
    if not 1 <= k <= MAX_K:
        raise ModelError(f"{k} pictures were asked for; ask for 1 to {MAX_K:,}.")


def _direction(vector: np.ndarray) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    if length < OPPOSITE:
        raise ModelError("These pictures cancel each other out, so they point nowhere; leave one of them out.")
    return (vector / length).astype(np.float32)
