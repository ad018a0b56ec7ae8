"""Galleries and memories that were searched last, kept open."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import cachetools
import numpy as np

from memssl_core.errors import ModelError
from ui.store import key_of

if TYPE_CHECKING:
    from analysis import Gallery, Workbench
    from analysis.search import MemoryRows

Space = Literal["memory", "embedding"]
SAMPLED = 128
UPDATED = "Gallery {} was updated since; search again."
NEARER, MOST_ALIKE = 3, 0.99999  # with the embedded model this folds 2 to 5 of 60 results, 0.98 all of them


def revision(facts: dict[str, Any]) -> str:
    """What tells one state of a gallery from every other one, also of another gallery that had its name."""
    told = (facts.get(name) for name in ("created_s", "updated_s", "generation", "state"))
    return key_of("gallery", *told)[:12]


def nearest_scores(searched: Gallery | MemoryRows) -> np.ndarray:
    """float32 [n]: the cosine of some rows to the nearest other one."""
    from analysis.index import nearest

    vectors, keep = searched.vectors, searched.keep()
    rows = np.arange(len(vectors)) if keep is None else np.flatnonzero(keep)
    if len(rows) < 2:
        return np.empty(0, np.float32)
    drawn = np.sort(np.random.default_rng(0).choice(rows, min(SAMPLED, len(rows)), replace=False))
    queries = vectors[drawn].astype(np.float32)
    if searched.index is None:
        scores = nearest(vectors, queries, 2, keep)[1]
    else:
        scores = searched.index.nearest(vectors, queries, 2, keep)[1]
    return scores[:, 1][np.isfinite(scores[:, 1])]


@dataclass(frozen=True)
class Shelves:
    """A gallery that was brought up to date takes the place of the old one, to which results may still point."""

    _galleries: cachetools.LRUCache = field(default_factory=lambda: cachetools.LRUCache(4))
    _memories: cachetools.LRUCache = field(default_factory=lambda: cachetools.LRUCache(2))
    _thresholds: WeakKeyDictionary = field(default_factory=WeakKeyDictionary)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _opening: threading.Lock = field(default_factory=threading.Lock)

    def gallery(self, name: str, rev: str = "") -> Gallery:
        """The newest state, or that of `rev` as long as it is kept. ModelError if there is none."""
        from analysis.gallery import gallery_folder, open_gallery, read_gallery

        folder = gallery_folder(name)
        facts = read_gallery(folder) or {}
        if kept := self._kept(name, rev or revision(facts), facts):
            return kept
        if rev and facts and rev != revision(facts):
            raise ModelError(UPDATED.format(name))
        with self._opening:  # of two who ask for the same the second finds it
            if kept := self._kept(name, rev or revision(facts), facts):
                return kept
            found = open_gallery(folder)
            opened = revision(found.facts)
            with self._lock:
                self._galleries[name, opened] = found
        if rev and rev != opened:  # it was updated just now
            raise ModelError(UPDATED.format(name))
        return found

    def _kept(self, name: str, rev: str, facts: dict[str, Any]) -> Gallery | None:
        """Unless the gallery was deleted, or deleted and made anew."""
        with self._lock:
            kept = self._galleries.get((name, rev))
        return kept if kept and kept.facts.get("created_s") == facts.get("created_s") else None

    def memory(self, workbench: Workbench, space: Space) -> MemoryRows:
        """The written slots of a model's memory. ModelError if it has no memory, or not this space."""
        from analysis.search import memory_rows

        key = workbench.model.model_hash, workbench.model.card["bundle_hash"], space
        with self._lock:
            kept = self._memories.get(key)
            if kept is None or kept.workbench is not workbench:
                kept = self._memories[key] = memory_rows(workbench, space)
            return kept

    def duplicate(self, searched: Gallery | MemoryRows) -> float:
        """The cosine from which rows count as near-duplicates: DUPLICATE, or of a model that finds everything alike
        higher, so that two are NEARER times as near as half of all rows are to their nearest one.

        Measured on SAMPLED rows, once for what is open.
        """
        from analysis.search import DUPLICATE

        with self._lock:
            known = self._thresholds.get(searched)
        if known is None:
            scores = nearest_scores(searched)
            least = 1 - (1 - float(np.median(scores))) / NEARER if len(scores) else DUPLICATE
            known = min(max(DUPLICATE, least), MOST_ALIKE)
            with self._lock:
                self._thresholds[searched] = known
        return known

    def forget(self, name: str) -> None:
        """A gallery that was deleted."""
        with self._lock:
            for key in [key for key in self._galleries if key[0] == name]:
                del self._galleries[key]
