"""Nearest rows of a memory-mapped matrix: exactly, or through a faiss index whose recall was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from memssl_core.errors import DataError
from memssl_core.jobs import Emit, write_atomically

EXACT_UP_TO = 100_000
"""rows that are searched exactly unless told otherwise"""
CHUNK = 16_384  # rows in main memory at a time
TARGET_RECALL = 0.95
MEASURED_K, MEASURED_QUERIES = 10, 500
MAX_LISTS, POINTS_PER_LIST, ROUNDS = 16_384, 40, 8
RERANKED = 200
"""rows that the index finds, at least, before the exact scores of the matrix choose among them"""
GROWTH = 0.2
"""share of rows that may be added to an index without training it anew [assumption]"""
SEED = 0
INDEX, FACTS = "index.faiss", "index.json"

Stop = Callable[[], bool]


@dataclass(frozen=True)
class IndexFacts:
    """How an index was made and how good it is."""

    rows: int
    trained_rows: int
    """rows there were when the lists were chosen"""
    lists: int
    probes: int
    """lists looked into for a query: the fewest that reach TARGET_RECALL, by two standard errors"""
    recall: float
    """recall@10 against exact search, of `queries` rows as queries that did not help to choose the lists"""
    queries: int


@dataclass(frozen=True, eq=False)
class Ivf:
    """An opened index over the first `facts.rows` rows of a matrix; it finds, the matrix itself decides."""

    facts: IndexFacts
    index: Any

    def nearest(
        self, vectors: np.ndarray, queries: np.ndarray, k: int, keep: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `nearest`, but rows may be missed. [Q, C] -> rows int64, scores float32, both [Q, k]; of fewer found the
        rest is -1 and -inf. Where only some rows are kept, as many more lists are looked into."""
        import faiss

        asked: dict[str, Any] = {"nprobe": self.facts.probes}
        if keep is not None:
            share = max(float(keep.mean()), 1e-9)
            asked["nprobe"] = min(self.facts.lists, math.ceil(self.facts.probes / share))
            asked["sel"] = faiss.IDSelectorBitmap(np.packbits(keep, bitorder="little"))  # type: ignore[call-arg]
        settings = faiss.SearchParametersIVF(**asked)
        count = min(max(RERANKED, 4 * k), self.facts.rows)
        _, found = self.index.search(np.ascontiguousarray(queries, np.float32), count, params=settings)
        rows, scores = np.full((len(queries), k), -1), np.full((len(queries), k), -np.inf, np.float32)
        for i, query in enumerate(queries):
            candidates = np.sort(found[i][found[i] >= 0])
            exact = vectors[candidates].astype(np.float32) @ query
            best = np.argsort(-exact, kind="stable")[:k]
            rows[i, : len(best)], scores[i, : len(best)] = candidates[best], exact[best]
        return rows, scores


def nearest(
    vectors: np.ndarray, queries: np.ndarray, k: int, keep: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k rows with the largest products, exactly, a chunk of the matrix at a time; of equal ones the first rows.

    Args: vectors [N, C] of any float type; queries [Q, C] float32; keep, bool [N], the rows that may answer.
    Returns: rows int64 and scores float32, both [Q, k'], best first; k' is k or the number of rows kept.
    """
    k = min(k, len(vectors) if keep is None else int(keep.sum()))
    queries = np.ascontiguousarray(queries, np.float32)
    best = [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(queries)
    for start in range(0, len(vectors), CHUNK) if k else ():
        part = vectors[start : start + CHUNK]
        kept = np.arange(len(part)) if keep is None else np.flatnonzero(keep[start : start + CHUNK])
        if len(kept):
            values = (part if keep is None else part[kept]).astype(np.float32)
            scores = queries @ values.T
            best = [_merged(known, kept + start, row, k) for known, row in zip(best, scores, strict=True)]
    rows, scores = (np.stack(parts) for parts in zip(*best, strict=True))
    return rows, scores


def _merged(
    best: tuple[np.ndarray, np.ndarray], rows: np.ndarray, scores: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of those known and of later rows; earlier rows win a draw."""
    if len(best[0]) == k:
        better = np.flatnonzero(scores > best[1][-1])
        rows, scores = rows[better], scores[better]
    if len(scores) > 4 * k:
        top = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
        rows, scores = rows[top], scores[top]
    rows, scores = np.concatenate([best[0], rows]), np.concatenate([best[1], scores])
    order = np.argsort(-scores, kind="stable")[:k]
    return rows[order], scores[order]


def has_faiss() -> bool:
    return find_spec("faiss") is not None


def write_index(
    vectors: np.ndarray,
    folder: Path,
    *,
    old: Path | None = None,
    emit: Emit = lambda event, *, step, **facts: None,
    should_stop: Stop = lambda: False,
) -> IndexFacts | None:
    """Make an index over all rows, measure it and write it to `folder`; None if it was stopped.

    Args: vectors, unit rows [N, C]; old, a folder with an index of the first rows of the same matrix, which is extended
        where few were added since.
    """
    import faiss

    known, index = (read_facts(old) if old else None), None
    if old and known and known.rows <= len(vectors) <= known.trained_rows * (1 + GROWTH):
        with suppress(RuntimeError):  # a damaged file
            index = faiss.read_index(str(old / INDEX))
    trained = known.trained_rows if index and known else len(vectors)
    index: Any = index or _trained(vectors, emit, should_stop)
    if index is None:
        return None
    first = index.ntotal
    for start in range(first, len(vectors), CHUNK):
        if should_stop():
            return None
        part = vectors[start : start + CHUNK]
        index.add(part.astype(np.float32))
        emit("progress", step=start + len(part), total=len(vectors), words="filling the index")
    emit("progress", step=0, total=1, words="measuring the index")
    asked = _held_out(trained, index.nlist)[1]
    opened = Ivf(IndexFacts(len(vectors), trained, index.nlist, index.nlist, 0.0, len(asked)), index)
    facts = measured(opened, vectors, asked)
    try:
        faiss.write_index(index, str(folder / INDEX))
    except RuntimeError:
        raise DataError("The index cannot be written; make room on the disk and start the same again.") from None
    write_atomically(folder / FACTS, json.dumps(asdict(facts)).encode())
    return facts


def read_index(folder: Path) -> Ivf | None:
    """The index in a folder, mapped into memory; None if there is none that can be read, or no faiss."""
    facts = read_facts(folder)
    if facts is None:
        return None
    try:
        import faiss

        index = faiss.read_index(str(folder / INDEX), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        return Ivf(facts, index) if index.ntotal == facts.rows else None
    except (ImportError, RuntimeError):  # faiss tells a damaged file by the latter
        return None


def read_facts(folder: Path) -> IndexFacts | None:
    try:
        return IndexFacts(**json.loads((folder / FACTS).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def measured(opened: Ivf, vectors: np.ndarray, asked: np.ndarray) -> IndexFacts:
    """The facts with the fewest probes that reach the target, and the recall@10 they give on the rows `asked`."""
    queries = vectors[asked].astype(np.float32)
    truth = _others(nearest(vectors, queries, MEASURED_K + 1)[0], asked)

    def recall(probes: int) -> tuple[float, float]:
        """Mean over the queries, and its standard error."""
        tried = Ivf(replace(opened.facts, probes=probes), opened.index)
        found = _others(tried.nearest(vectors, queries, MEASURED_K + 1)[0], asked)
        hits = np.array([np.isin(right, mine).mean() for right, mine in zip(truth, found, strict=True)])
        return float(hits.mean()), float(hits.std() / math.sqrt(len(hits)))

    def suffices(probes: int) -> bool:
        mean, error = recall(probes)
        return mean - 2 * error >= TARGET_RECALL

    high = 1
    while high < opened.facts.lists and not suffices(high):
        high *= 2
    low = high // 2  # does not suffice
    while high - low > max(1, high // 8):
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return replace(opened.facts, probes=high, recall=round(recall(high)[0], 4), queries=len(asked))


def _others(found: np.ndarray, asked: np.ndarray) -> list[np.ndarray]:
    """Without the query itself, at most MEASURED_K."""
    return [row[(row != me) & (row >= 0)][:MEASURED_K] for row, me in zip(found, asked, strict=True)]


def _trained(vectors: np.ndarray, emit: Emit, should_stop: Stop) -> Any:
    """An index without rows, its lists the k-means clusters of a sample; None if it was stopped."""
    import faiss

    count, width = vectors.shape
    lists = 2 ** max(0, min(round(math.log2(4 * math.sqrt(count))), int(math.log2(max(1, count / 45)))))
    lists = min(lists, MAX_LISTS)
    sample = vectors[_held_out(count, lists)[0]].astype(np.float32)
    middles = None
    for done in range(ROUNDS):
        if should_stop():
            return None
        emit("progress", step=done, total=ROUNDS, words="training the index")
        rounds = faiss.Kmeans(width, lists, niter=1, spherical=True, seed=SEED, max_points_per_centroid=len(sample))
        rounds.train(sample, init_centroids=middles)
        middles = rounds.centroids
    coarse = faiss.IndexFlatIP(width)
    coarse.add(middles)  # type: ignore[call-arg]
    kind = faiss.ScalarQuantizer.QT_8bit
    index = faiss.IndexIVFScalarQuantizer(coarse, width, lists, kind, faiss.METRIC_INNER_PRODUCT, False)
    index.train(sample)  # type: ignore[call-arg]
    return index


def _held_out(count: int, lists: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and other ones to ask, increasing; the same for the same numbers."""
    training = min(POINTS_PER_LIST * lists, count * 9 // 10)
    drawn = np.random.default_rng(SEED).permutation(count)
    asked = drawn[training : training + MEASURED_QUERIES]
    return np.sort(drawn[:training]), np.sort(asked)
