"""Where the slots of a memory lie on its map, and their colours, as bytes for the browser."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import cachetools
import numpy as np

from ui import wire
from ui.store import key_of

if TYPE_CHECKING:
    from analysis import Workbench
    from memssl_core.bundle.table import MemoryTable

Space = Literal["memory", "embedding"]
SPREAD = 65_535  # coordinates travel as uint16
CATEGORIES = 254  # 0 stands for none, 255 for the many small ones


@dataclass(frozen=True, eq=False)
class Layout:
    """Where M slots lie."""

    key: str
    slots: np.ndarray
    """int64 [M], rising"""
    xy: np.ndarray
    """float32 [M, 2]"""
    cluster: np.ndarray | None
    """int32 [M], -1 none; None for the principal components"""
    parameters: dict[str, Any]
    """of the fit; empty for the principal components"""
    names: dict[int, str]
    """of the clusters"""

    def spread(self, xy: np.ndarray) -> np.ndarray:
        """uint16 [N, 2]: places on the map's square, both axes to one scale, y downwards."""
        low, high = self.xy.min(0), self.xy.max(0)
        size = max(float((high - low).max()), 1e-9)
        at = (xy - (low + high) / 2) / size + 0.5
        at[:, 1] = 1 - at[:, 1]
        return np.clip(np.rint(at * SPREAD), 0, SPREAD).astype(np.uint16)


@dataclass(frozen=True)
class Layouts:
    """The layouts that were asked for last; a fit that has ended since takes the place of the principal components."""

    _kept: cachetools.LRUCache = field(default_factory=lambda: cachetools.LRUCache(4))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, workbench: Workbench, handle: str, space: Space) -> Layout:
        """ModelError if the model has no memory, or not this space."""
        from analysis.map import map_clusters, pca_map, stored_map

        with self._lock:
            fitted = stored_map(workbench.model, space)
            key = key_of("map", handle, space, fitted and fitted.parameters)
            if key not in self._kept:
                if fitted:
                    names = {one.cluster: one.name for one in map_clusters(workbench.model, fitted)}
                    layout = Layout(key, fitted.slot, fitted.xy, fitted.cluster, fitted.parameters, names)
                else:
                    slots, rows = workbench.slots(space)
                    layout = Layout(key, slots, pca_map(rows), None, {}, {})
                self._kept[key] = layout
            return self._kept[key]


def packed(layout: Layout, slots: int) -> bytes:
    """`x`, `y` uint16 [M]; where not every slot has a point, `has` uint8 bits of the slots that do."""
    x, y = layout.spread(layout.xy).T
    arrays = {"x": x, "y": y}
    if len(layout.slots) < slots:
        has = np.zeros(slots, bool)
        has[layout.slots] = True
        arrays["has"] = np.packbits(has, bitorder="little")
    return wire.pack(arrays, {"slots": slots})


def colours(layout: Layout, memory: MemoryTable) -> list[tuple[str, str]]:
    """(name, words) of the colourings there are, the first shown first."""
    found = [("class", "Class")] if memory.class_name.null_count < memory.slots else []
    found += [("cluster", "Cluster")] if layout.cluster is not None and (layout.cluster >= 0).any() else []
    return [*found, ("age", "Age")]


def coloured(layout: Layout, memory: MemoryTable, by: str) -> bytes:
    """`values` uint8 [M] and what they mean: categories by size, or a scale."""
    if by == "age":
        step = memory.step[layout.slots]
        last, first = int(step.max()), int(step.min())
        facts = {"kind": "scale", "low": last - first, "high": 0, "words": "steps since it was written"}
        return wire.pack({"values": levels(step, first, last)}, facts)
    if by == "cluster":
        assert layout.cluster is not None
        named = {-1: None, **{number: f"{number}: {name}" for number, name in layout.names.items()}}
        words = [named.get(number) for number in layout.cluster.tolist()]
    else:
        words = memory.class_name.take(layout.slots).to_pylist()
    values, legend, counts = categories(words)
    return wire.pack({"values": values}, {"kind": "category", "names": legend, "counts": counts})


def categories(words: list[str | None]) -> tuple[np.ndarray, list[str], list[int]]:
    """uint8 [M]: 1 for the most frequent word, 2 for the next, …, 255 for those after CATEGORIES, 0 for None; the
    words in that order, and how many there are of each. Equal counts in the order of the words."""
    known, which, counts = np.unique([word or "" for word in words], return_inverse=True, return_counts=True)
    is_word = known != ""
    order = [i for i in np.lexsort((known, -counts)) if is_word[i]]
    rank = np.zeros(len(known), np.int64)
    rank[order] = np.arange(1, len(order) + 1)
    values = np.minimum(rank, CATEGORIES + 1)[which].astype(np.uint8)
    shown = order[:CATEGORIES]
    return values, known[shown].tolist(), counts[shown].tolist()


def levels(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8: 0 at low, 255 at high."""
    return np.clip(np.rint((values - low) / max(high - low, 1e-9) * 255), 0, 255).astype(np.uint8)
