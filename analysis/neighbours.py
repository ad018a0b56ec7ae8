"""The memories nearest to a picture, by exact search."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from analysis.graph import slot_rows
from memssl_core.bundle.table import MemoryTable
from memssl_core.errors import ModelError

Space = Literal["memory", "embedding"]


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The k nearest slots, best first."""

    ids: np.ndarray
    """int64 [k] slots"""
    scores: np.ndarray
    """float32 [k] cosine similarities"""
    space: Space
    """`memory`: projections are compared, what the loss saw; `embedding`: the final teacher's embeddings"""
    exact: bool
    rows: list[dict[str, Any]]
    """provenance of each: slot, image_id, uri, label, class_name, step, box, has_thumbnail"""

    def without(self, slot: int, k: int) -> Neighbours:
        """The first k of the others."""
        others = np.flatnonzero(self.ids != slot)[:k]
        return replace(self, ids=self.ids[others], scores=self.scores[others], rows=[self.rows[i] for i in others])

    def records(self) -> list[dict[str, Any]]:
        """Plain values for JSON: id, score, image_id, uri, class_name, step, box."""
        told = ("image_id", "uri", "class_name", "step", "box")
        found = zip(self.ids, self.scores, self.rows, strict=True)
        return [{"id": int(i), "score": float(s), **{name: row[name] for name in told}} for i, s, row in found]


class SlotSearch:
    """Exact search over the written slots of a memory in one space; noise, and rows of zeros, never answer."""

    def __init__(self, memory: MemoryTable, space: Space, *, has_head: bool = True) -> None:
        """`has_head`: False for the memory of a model without head, whose vectors are embeddings.

        Raises: ModelError if the bundle has no embeddings, nothing is written yet, or faiss is not installed."""
        try:
            import faiss
        except ImportError as reason:
            raise ModelError("Searching the memory needs faiss; install it with `pip install faiss-cpu`.") from reason
        self.memory: MemoryTable = memory
        self.space: Space = space
        self.slots, self.rows = slot_rows(memory, space, has_head=has_head)
        self._index: Any = faiss.IndexFlatIP(self.rows.shape[1])
        self._index.add(self.rows)

    def nearest(self, query: np.ndarray, k: int) -> Neighbours:
        """[D] or [C] of the space, any length -> its k nearest slots; k is cut to the written slots."""
        if k < 1:
            raise ModelError(f"k is {k}; ask for at least 1 neighbour.")
        scores, found = self._index.search(_unit(query[None]), min(k, len(self.slots)))
        ids = self.slots[found[0]]
        return Neighbours(ids, scores[0], self.space, True, self.memory.rows(ids))


def _unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.ascontiguousarray(rows / np.maximum(lengths, 1e-12), np.float32)
