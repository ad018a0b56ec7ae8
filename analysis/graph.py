"""The neighbours of every memory: one exact graph for a bundle and space, which many questions are asked of."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np

from memssl_core.bundle.table import MemoryTable
from memssl_core.errors import ModelError
from memssl_core.jobs import Emit, write_atomically

if TYPE_CHECKING:
    from analysis.neighbours import Space

K = 15
DUPLICATE = 0.98
"""cosine from which two memories count as near-duplicates [assumption]"""
_CHUNK = 2048  # rows searched at a time


@dataclass(frozen=True, eq=False)
class Graph:
    """The k nearest other rows of each of M rows, best first; k is 15, or M - 1 if that is less."""

    neighbours: np.ndarray
    """int32 [M, k] rows, not slots"""
    scores: np.ndarray
    """float32 [M, k] cosine similarities"""


def written_slots(memory: MemoryTable, space: Space, *, has_head: bool = True) -> np.ndarray:
    """int64 [M], increasing: the slots that hold something in a space; neither noise nor zeros.

    `has_head`: False for the memory of a model without head, whose vectors are embeddings.
    Raises: ModelError if there is no such space, or nothing is written.
    """
    slots = np.flatnonzero((memory.image_id != -1) & vectors_of(memory, space, has_head=has_head).any(1))
    if not len(slots):
        raise ModelError("This model's memory is still empty: every slot is noise; train it further.")
    return slots


def slot_rows(memory: MemoryTable, space: Space, *, has_head: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """`written_slots` [M] and their vectors, float32 [M, D] or [M, C] of unit length."""
    slots = written_slots(memory, space, has_head=has_head)
    rows = vectors_of(memory, space, has_head=has_head)[slots]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return slots, rows


def vectors_of(memory: MemoryTable, space: Space, *, has_head: bool = True) -> np.ndarray:
    """float32 [K, D] or [K, C] of a memory in a space, noise and zeros too. ModelError if there is no such space."""
    vectors = memory.vectors if space == "memory" or not has_head else memory.embeddings
    if vectors is None:
        raise ModelError("This model's memory holds no embeddings, so only the memory space has neighbours and a map.")
    return vectors


def neighbour_graph(
    rows: np.ndarray,
    k: int = K,
    *,
    emit: Emit = lambda event, *, step, **facts: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Graph:
    """The exact graph of [M, C] unit rows. Raises: ModelError if faiss is not installed, or when asked to stop."""
    try:
        import faiss
    except ImportError as reason:
        raise ModelError("Finding neighbours needs faiss; install it with `pip install faiss-cpu`.") from reason
    count, k = len(rows), min(k, len(rows) - 1)
    graph = Graph(np.empty((count, k), np.int32), np.empty((count, k), np.float32))
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)  # type: ignore[call-arg]
    for start in range(0, count, _CHUNK):
        if should_stop():
            raise ModelError("Stopped while finding neighbours; nothing was written.")
        scores, found = index.search(rows[start : start + _CHUNK], k + 1)  # type: ignore[call-arg]
        others = found != np.arange(start, start + len(found))[:, None]
        others[others.all(1), -1] = False  # a row that k + 1 equal ones came before
        part = slice(start, start + len(found))
        graph.neighbours[part] = found[others].reshape(len(found), k)
        graph.scores[part] = scores[others].reshape(len(found), k)
        emit("progress", step=start + len(found), total=count, words="finding neighbours")
    return graph


def save_graph(path: Path, graph: Graph) -> None:
    sink = io.BytesIO()
    np.savez(sink, neighbours=graph.neighbours, scores=graph.scores)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, sink.getvalue())


def load_graph(path: Path, count: int, k: int = K) -> Graph | None:
    """The graph of `count` rows that `save_graph` wrote; None if there is none that can be read."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            graph = Graph(file["neighbours"], file["scores"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
    shape = (count, min(k, count - 1))
    return graph if graph.neighbours.shape == graph.scores.shape == shape else None


def purity(graph: Graph, labels: np.ndarray) -> np.ndarray:
    """float32 [M]: the share of a row's neighbours that bear its label, of those that bear one; labels [M], -1 unknown.

    NaN where a row has no label, or no neighbour with one.
    """
    labels = np.asarray(labels)
    near = labels[graph.neighbours]
    same, known = ((near == labels[:, None]).sum(1), (near >= 0).sum(1))
    asked = (labels >= 0) & (known > 0)
    return np.where(asked, same / np.maximum(known, 1), np.nan).astype(np.float32)


def density(graph: Graph) -> np.ndarray:
    """float32 [M]: mean cosine to the neighbours, higher where memories crowd; 0 for a single row."""
    return graph.scores.mean(1) if graph.scores.shape[1] else np.zeros(len(graph.scores), np.float32)


def duplicates(graph: Graph, threshold: float = DUPLICATE) -> list[np.ndarray]:
    """Groups of at least two rows that a chain of neighbours with this cosine or more joins: int64 rows, increasing.

    Larger groups first, of equal ones that with the lower row.
    """
    from scipy.sparse.csgraph import connected_components

    labels = connected_components(adjacency(graph, graph.scores >= threshold), directed=False)[1]
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return sorted((group for group in groups if len(group) > 1), key=lambda group: (-len(group), group[0]))


def adjacency(graph: Graph, kept: np.ndarray | None = None):
    """scipy sparse [M, M] of ones from rows to their neighbours; `kept`, bool [M, k], chooses edges."""
    from scipy.sparse import csr_matrix

    kept = np.ones(graph.neighbours.shape, bool) if kept is None else kept
    ends = np.concatenate([[0], kept.sum(1).cumsum()])
    return csr_matrix((np.ones(ends[-1], np.int8), graph.neighbours[kept], ends), shape=(len(kept), len(kept)))
