"""Where the slots of a memory lie on its map, as bytes for the browser."""

from __future__ import annotations

import threading
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import cachetools
import numpy as np

from memssl_core.errors import MemsslError
from ui import wire
from ui.store import key_of

if TYPE_CHECKING:
    from analysis import Workbench
    from analysis.graph import Graph
    from memssl_core.bundle.table import MemoryTable
    from memssl_core.sources import Model

Space = Literal["memory", "embedding"]
SPREAD = 65_535  # coordinates travel as uint16
FOUND_AT_ONCE = 16_384  # slots whose neighbours are found in some seconds


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
    _graphs: cachetools.LRUCache = field(default_factory=lambda: cachetools.LRUCache(2))
    _figures: cachetools.LRUCache = field(default_factory=lambda: cachetools.LRUCache(32))
    _laying: threading.Lock = field(default_factory=threading.Lock)
    _finding: threading.Lock = field(default_factory=threading.Lock)

    def of(self, workbench: Workbench, space: Space) -> Layout:
        """ModelError if the model has no memory, or not this space."""
        from analysis.map import map_state

        model = workbench.model
        which, state = (model.source, model.card["bundle_hash"], space), map_state(model, space)
        with self._laying:
            before, layout = self._kept.get(which, (None, None))
            if layout is None or before != state:
                layout = _layout(workbench, space)
                self._kept[which] = state, layout
        return layout

    def figures(self, model: Model) -> dict[str, Any]:
        """What the stored map of a memory was fitted with and how true it is; {} if there is none."""
        from analysis.map import map_state, stored_map

        with suppress(MemsslError):
            which = model.source, model.card["bundle_hash"], map_state(model, "memory")
            if which not in self._figures:
                stored = stored_map(model)
                self._figures[which] = stored.parameters if stored else {}
            return self._figures[which]
        return {}

    def has_graph(self, workbench: Workbench, layout: Layout, space: Space) -> bool:
        """Whether the neighbours of every slot are known, or found in a moment."""
        from analysis.map import graph_file

        can_find = len(layout.slots) <= FOUND_AT_ONCE and find_spec("faiss") is not None
        return len(layout.slots) > 1 and (can_find or graph_file(workbench.model, space).is_file())

    def graph(self, workbench: Workbench, space: Space) -> Graph:
        """ModelError if there is none and finding it would take long."""
        from analysis.map import graph_of

        which = workbench.model.card["bundle_hash"], space
        with self._finding:
            if which not in self._graphs:
                self._graphs[which] = graph_of(workbench.model, space, at_most=FOUND_AT_ONCE)
            return self._graphs[which]


def _layout(workbench: Workbench, space: Space) -> Layout:
    from analysis.map import map_clusters, pca_map, stored_map

    fitted = stored_map(workbench.model, space)
    content = fitted and (fitted.parameters, zlib.crc32(fitted.xy.tobytes()))
    key = key_of("map", wire.VERSION, workbench.model.card["bundle_hash"], space, content)
    if fitted is None:
        slots, rows = workbench.slots(space)
        return Layout(key, slots, pca_map(rows), None, {}, {})
    names = {one.cluster: one.name for one in map_clusters(workbench.model, fitted)}
    return Layout(key, fitted.slot, fitted.xy, fitted.cluster, fitted.parameters, names)


def packed(layout: Layout, memory: MemoryTable) -> bytes:
    """`x`, `y` uint16 [M]; `pictured` uint8 bits of the M that there is a picture of; where not every slot has a point,
    `has` uint8 bits of the slots that do."""
    x, y = layout.spread(layout.xy).T
    arrays = {"x": x, "y": y, "pictured": _bits(memory.pictured[layout.slots])}
    if len(layout.slots) < memory.slots:
        has = np.zeros(memory.slots, bool)
        has[layout.slots] = True
        arrays["has"] = _bits(has)
    return wire.pack(arrays, {"slots": memory.slots})


def _bits(flags: np.ndarray) -> np.ndarray:
    return np.packbits(flags, bitorder="little")
