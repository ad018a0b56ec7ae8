"""What colours a map: for every colouring one byte a point, and what the bytes mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ui import wire

if TYPE_CHECKING:
    from analysis.graph import Graph
    from memssl_core.bundle.table import MemoryTable
    from ui.layouts import Layout

CATEGORIES = 254  # 0 stands for none, 255 for the many small ones
DUPLICATE_SHARE = 0.1
FIRST, STEPS_A_DECADE, STEPS = 1, 20, 80  # of the thresholds offered: cosines 1 - 10^-(1 … 5)
Colouring = tuple[np.ndarray, dict[str, Any]]
"""uint8 [M] and facts: `kind` category (1 the first of `names`, 0 none) or scale (from `low` to `high`)"""


def colours(layout: Layout, memory: MemoryTable, *, has_graph: bool) -> list[tuple[str, str]]:
    """(name, words) of the colourings there are, the first shown first."""
    has_classes = memory.class_name.null_count < memory.slots
    found = [("class", "Class")] if has_classes else []
    found += [("cluster", "Cluster")] if layout.cluster is not None and (layout.cluster >= 0).any() else []
    found += [("age", "Age")]
    if has_graph:
        found += [("purity", "Neighbours of its class")] if has_classes else []
        found += [("density", "Crowding"), ("duplicates", "Near-duplicates")]
    return found


def coloured(
    layout: Layout, memory: MemoryTable, by: str, graph: Callable[[], Graph], threshold: float | None = None
) -> bytes:
    """One of `colours` for the browser; `threshold`, the cosine of near-duplicates, None for a sensible one."""
    if by == "age":
        return _packed(by_age(memory.step[layout.slots]))
    if by == "cluster":
        assert layout.cluster is not None
        named = {-1: None, **{number: f"{number}: {name}" for number, name in layout.names.items()}}
        return _packed(categories([named.get(number) for number in layout.cluster.tolist()]))
    if by == "class":
        return _packed(categories(memory.class_name.take(layout.slots).to_pylist()))
    if by == "purity":
        return _packed(by_purity(graph(), memory.label[layout.slots]))
    return _packed(by_density(graph()) if by == "density" else by_duplicates(graph(), layout.slots, threshold))


def _packed(colouring: Colouring) -> bytes:
    return wire.pack({"values": colouring[0]}, colouring[1])


def by_age(step: np.ndarray) -> Colouring:
    last, first = int(step.max()), int(step.min())
    facts = {"kind": "scale", "low": last - first, "high": 0, "words": "steps since it was written"}
    return levels(step, first, last), facts


def by_purity(graph: Graph, labels: np.ndarray) -> Colouring:
    from analysis.graph import purity

    share = purity(graph, labels)
    known = np.isfinite(share)
    values = np.where(known, np.maximum(levels(np.nan_to_num(share), 0, 1), 1), 0).astype(np.uint8)
    words = f"share of the {graph.neighbours.shape[1]} nearest slots that are of its class"
    return values, {"kind": "scale", "low": 0, "high": 1, "words": words, "none": not known.all()}


def by_density(graph: Graph) -> Colouring:
    """Stretched over the middle 98 % of the slots."""
    from analysis.graph import density

    values = density(graph)
    low, high = np.quantile(values, (0.01, 0.99)).tolist()
    words = f"mean cosine to the {graph.neighbours.shape[1]} nearest slots"
    return levels(values, low, high), {"kind": "scale", "low": low, "high": high, "words": words}


def by_duplicates(graph: Graph, slots: np.ndarray, threshold: float | None = None) -> Colouring:
    """Groups that a chain of cosines from `threshold` on joins, the largest first, each named by its lowest slot."""
    from analysis.graph import duplicates

    threshold = sensible_threshold(graph) if threshold is None else threshold
    groups = duplicates(graph, threshold)
    values = np.zeros(len(slots), np.uint8)
    for number, group in enumerate(groups, 1):
        values[group] = min(number, CATEGORIES + 1)
    shown = groups[:CATEGORIES]
    names = [f"like slot {slots[group[0]]}" for group in shown]
    counts = [len(group) for group in shown]
    words = f"{len(groups)} groups, {sum(map(len, groups))} slots in all"
    facts = {"kind": "category", "names": names, "counts": counts, "groups": len(groups)}
    return values, facts | {"threshold": threshold, "words": words}


def sensible_threshold(graph: Graph) -> float:
    """The least of the offered thresholds from DUPLICATE on that leaves nine slots of ten without a duplicate."""
    from analysis.graph import DUPLICATE

    if not graph.scores.size:
        return DUPLICATE
    least = max(DUPLICATE, float(np.quantile(graph.scores[:, 0], 1 - DUPLICATE_SHARE)))
    step = np.ceil((-np.log10(max(1 - least, 1e-9)) - FIRST) * STEPS_A_DECADE - 1e-6)
    return float(1 - 10.0 ** -(FIRST + min(int(step), STEPS) / STEPS_A_DECADE))


def agreement(teacher: np.ndarray, student: np.ndarray, count: int) -> Colouring:
    """Which slots are among the `count` with the highest teacher's or student's scores [M]."""
    values = np.zeros(len(teacher), np.uint8)
    top = [np.argsort(-scores, kind="stable")[:count] for scores in (teacher, student)]
    values[top[1]] = 3
    values[top[0]] = np.where(np.isin(top[0], top[1]), 1, 2)
    names = ["woken in both", "in the teacher only", "in the student only"]
    counts = [int((values == number).sum()) for number in (1, 2, 3)]
    return values, {"kind": "category", "names": names, "counts": counts, "words": f"of the {count} nearest of each"}


def categories(words: list[str | None]) -> Colouring:
    """1 for the most frequent word, 2 for the next, …, 255 for those after CATEGORIES, 0 for None; `names` in that
    order and their `counts`. Equal counts in the order of the words."""
    counts = Counter(word for word in words if word)
    order = sorted(counts, key=lambda word: (-counts[word], word))
    number = {word: min(i, CATEGORIES + 1) for i, word in enumerate(order, 1)}
    values = np.fromiter((number.get(word or "", 0) for word in words), np.uint8, len(words))
    shown = order[:CATEGORIES]
    return values, {"kind": "category", "names": shown, "counts": [counts[word] for word in shown]}


def levels(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8: 0 at low, 255 at high."""
    return np.clip(np.rint((values - low) / max(high - low, 1e-9) * 255), 0, 255).astype(np.uint8)
