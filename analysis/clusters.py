"""Groups of memories, found in the space itself and never on the map, with an exemplar and a name each."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from memssl_core.bundle.table import MemoryTable

SPREAD_DIM = 5
"""dimensions of the layout that clusters are found in; on the two of a map they would be an artefact of drawing"""
MIN_SAMPLES = 15
"""as many as the map's neighbours"""
SMALLEST, SMALLEST_SHARE = 40, 1 / 200
"""members of a cluster at least, and their share of all rows [assumption: few enough clusters to name]"""
MOST_MEANS, ROUNDS = 32, 50


@dataclass(frozen=True)
class Cluster:
    """One cluster of a memory."""

    cluster: int
    """its number in the map"""
    size: int
    exemplar: int
    """the slot with the highest sum of cosines to the others, their medoid"""
    name: str
    """the majority's class word, 'mixed: a/b' if that is less than half, the exemplar's uri where no classes are known;
    not to be trusted, as all text of a bundle"""
    purity: float | None
    """the share of the members that bear the most frequent class; None where no classes are known"""


def can_spread() -> bool:
    """Whether fast-hdbscan is installed, so that a spread layout is of use."""
    return find_spec("fast_hdbscan") is not None


def find_clusters(rows: np.ndarray, spread: np.ndarray | None) -> tuple[np.ndarray, str]:
    """int32 [M], 0 the largest cluster and -1 none, and how they were found.

    HDBSCAN on `spread`, a [M, SPREAD_DIM] layout of the neighbour graph, or without one k-means on the [M, C] unit
    `rows`. On scikit-learn's digits their V-measures with the classes are 0.92 and 0.71; HDBSCAN on the graph itself
    has 0.70, because it leaves a third of the rows out [measured].
    """
    if spread is None:
        count = min(MOST_MEANS, max(1, round(np.sqrt(len(rows) / 2))))
        return _by_size(spherical_kmeans(rows, count)), f"k-means on the sphere, {count} means"
    smallest = max(SMALLEST, round(len(rows) * SMALLEST_SHARE))
    told = f"HDBSCAN on {spread.shape[1]} dimensions of UMAP, {MIN_SAMPLES} samples, at least {smallest} members"
    if len(rows) <= smallest:
        return np.full(len(rows), -1, np.int32), told
    from fast_hdbscan import fast_hdbscan

    found = fast_hdbscan(
        np.asarray(spread, np.float64), min_samples=MIN_SAMPLES, min_cluster_size=smallest, reproducible=True
    )[0]
    return _by_size(np.asarray(found)), told


def spherical_kmeans(rows: np.ndarray, count: int, *, seed: int = 0) -> np.ndarray:
    """int64 [M] in 0..count-1: the nearest by cosine of `count` mean directions of [M, C] unit rows.

    Source: Dhillon and Modha, Machine Learning 42, 2001; begun as k-means++ begins.
    """
    from scipy.sparse import csr_matrix

    rng = np.random.default_rng(seed)
    means = rows[rng.integers(len(rows), size=1)]
    far = 1 - rows @ means[0]
    while len(means) < count:
        weights = np.maximum(far, 0).astype(np.float64) + 1e-12
        means = np.concatenate([means, rows[rng.choice(len(rows), size=1, p=weights / weights.sum())]])
        far = np.minimum(far, 1 - rows @ means[-1])
    nearest, ones = np.full(len(rows), -1), np.ones(len(rows), np.float32)
    for _ in range(ROUNDS):
        before, nearest = nearest, (rows @ means.T).argmax(1)
        if (nearest == before).all():
            break
        sums = csr_matrix((ones, (nearest, np.arange(len(rows)))), shape=(count, len(rows))) @ rows
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        means = np.where(lengths > 1e-12, sums / np.maximum(lengths, 1e-12), means).astype(np.float32)
    return nearest


def describe(memory: MemoryTable, slots: np.ndarray, rows: np.ndarray, cluster: np.ndarray) -> list[Cluster]:
    """The clusters in the order of their numbers.

    Args: slots [M >= 1] of the memory, their rows [M, C] of any length and cluster [M], -1 none.
    """
    found, order = [], np.argsort(cluster, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(cluster[order])) + 1):
        number = int(cluster[members[0]])
        if number < 0:
            continue
        own = rows[members]
        own /= np.linalg.norm(own, axis=1, keepdims=True)
        exemplar = int(slots[members[(own @ own.sum(0)).argmax()]])
        name, purity = _name(memory, slots[members], exemplar)
        found.append(Cluster(number, len(members), exemplar, name, purity))
    return found


def _name(memory: MemoryTable, slots: np.ndarray, exemplar: int) -> tuple[str, float | None]:
    labels = memory.label[slots]
    classes, counts = np.unique(labels[labels >= 0], return_counts=True)
    if not len(classes):
        uri, image_id = memory.uri[exemplar].as_py(), int(memory.image_id[exemplar])
        return uri or (f"picture {image_id}" if image_id >= 0 else f"slot {exemplar}"), None
    first, *rest = np.argsort(-counts, kind="stable")[:2]  # of equal ones the lower class
    purity = float(counts[first] / len(slots))
    words = [_word(memory, slots, int(classes[i])) for i in (first, *rest)]
    return (words[0] if purity >= 0.5 else "mixed: " + "/".join(words)), purity


def _word(memory: MemoryTable, slots: np.ndarray, label: int) -> str:
    word = memory.class_name[int(slots[memory.label[slots] == label][0])].as_py()
    return word or f"class {label}"


def _by_size(labels: np.ndarray) -> np.ndarray:
    """The same clusters as int32, numbered by falling size; equal ones in the order of their numbers."""
    counts = np.bincount(labels[labels >= 0])
    ranks = np.empty(len(counts) + 1, np.int32)
    ranks[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    ranks[-1] = -1
    return ranks[labels]
