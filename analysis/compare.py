"""Two models on the same pictures: the memories they answer with, where they look, and whom they hold to be alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from analysis.attention import Attention, Query
from analysis.probe import MIN_PICTURES, Probed, even_sample, picture_names
from memssl_core.data.images import Frame, ImageSource, decode_image, picture_key
from memssl_core.errors import ModelError
from memssl_core.evaluation.geometry import cka, cka_table, nearest_rows, shared_of

if TYPE_CHECKING:
    from analysis.workbench import Workbench


TOLD = ("image_id", "uri", "class_name", "step", "box")
Heads = Literal["mean", "max"] | int
LAYER_PICTURES = 1024
"""pictures at most that transformer blocks are compared on, whose memory goes in their square, for every block"""


@dataclass(frozen=True)
class Look:
    """Which map of a model."""

    layer: int = -1
    """transformer block, 0-based; negatives from the end"""
    head: Heads = "mean"
    """mean or maximum over the attention heads, or the index of one"""
    size: int | None = None
    """long side in px at which the model reads the picture; None: the picture's own"""

    def of(self, attention: Attention) -> np.ndarray:
        """float32 [rows, columns]: the mean over the queries. ModelError if there is no such attention head."""
        maps = attention.maps().mean(1)
        if isinstance(self.head, str):
            return maps.mean(0) if self.head == "mean" else maps.max(0)
        if not 0 <= self.head < len(maps):
            raise ModelError(f"There is no attention head {self.head}; this block has 0 to {len(maps) - 1}.")
        return maps[self.head]


LAST_BLOCK = Look()


@dataclass(frozen=True, eq=False)
class MemoryOverlap:
    """The pictures nearest to one picture in the memories of two models, each once, best first."""

    rows_a: list[dict[str, Any]]
    """at most k: provenance as in `Neighbours.rows`; none if this side has no answer"""
    rows_b: list[dict[str, Any]]
    scores_a: np.ndarray
    """float32 [len(rows_a)] cosine similarities"""
    scores_b: np.ndarray
    same_a: np.ndarray
    """bool [len(rows_a)]: the other side answers with this picture too"""
    same_b: np.ndarray
    shared: int
    """pictures that both sides answer with"""
    share: float | None
    """of the longer list, 0..1; None where `words` says why"""
    chance: float | None
    """what `share` would be on average if each side answered with pictures of its memory drawn at random"""
    common: int
    """pictures that both memories hold at all"""
    words: str | None
    """a sentence when the lists cannot be compared: a side has no memory, or no picture is in both"""

    def summary(self) -> dict[str, Any]:
        """Plain values for JSON: `a` and `b` as `Neighbours.records` gives them, each with `same`."""
        facts: dict[str, Any] = {name: getattr(self, name) for name in ("share", "chance", "shared", "common", "words")}
        for side in "ab":
            rows, scores, same = (getattr(self, f"{name}_{side}") for name in ("rows", "scores", "same"))
            facts[side] = [
                {"id": row["slot"], "score": score, "same": is_same} | {name: row[name] for name in TOLD}
                for row, score, is_same in zip(rows, scores.tolist(), same.tolist(), strict=True)
            ]
        return facts


@dataclass(frozen=True, eq=False)
class Judged:
    """How alike two models see n pictures."""

    cka: float
    """debiased, of the embeddings; NaN if one side's are all equal"""
    mutual_knn: float
    """mean of `kept`"""
    chance: float
    """what `mutual_knn` is on average for unrelated models: k / (n - 1)"""
    k: int
    """neighbours asked for; at most half of the others"""
    n: int
    kept: np.ndarray
    """float64 [n]: of each picture's k neighbours under A the share that are neighbours under B too"""
    order: np.ndarray
    """int64 [n]: the pictures whose neighbours changed most first, equal ones in their own order"""
    neighbours_a: np.ndarray
    """int64 [n, k], best first"""
    neighbours_b: np.ndarray
    layers: np.ndarray | None
    """float64 [La, Lb]: debiased CKA of the patches' means as they leave each transformer block, NaN where one is
    constant, over an even sample of the pictures; None if a side has no such blocks"""

    def summary(self, names: Sequence[str], most: int = 24) -> dict[str, Any]:
        """Plain values for JSON; `changed` tells of at most so many pictures, by the names [n]."""
        changed = [
            {
                "index": i,
                "name": names[i],
                "kept": float(self.kept[i]),
                "a": self.neighbours_a[i].tolist(),
                "b": self.neighbours_b[i].tolist(),
            }
            for i in self.order[:most].tolist()
        ]
        layers = None if self.layers is None else [[_plain(value) for value in row] for row in self.layers.tolist()]
        figures = {"mutual_knn": self.mutual_knn, "chance": self.chance, "k": self.k, "n": self.n}
        return {"cka": _plain(self.cka), **figures, "layers": layers, "changed": changed}


def compare_memories(a: Workbench, b: Workbench, image: ImageSource, k: int = 20) -> MemoryOverlap:
    """The k pictures nearest to one picture in each of two memories, and which of them both answer with.

    Pictures are the same if their uris are, or without uris their image_ids in the same data source; several slots
    of a picture count once, by the nearest. Raises: ModelError if k < 1.
    """
    if k < 1:
        raise ModelError(f"k is {k}; ask for at least 1 memory.")
    key = picture_key(image)
    one, other = (_nearest_pictures(workbench, image, k, key) for workbench in (a, b))
    common, shared = len(one.held & other.held), set(one.names) & set(other.names)
    words = one.words or other.words
    if not words and not common:
        words = "No picture is in both memories, so what they answer with cannot be compared."
    share = chance = None
    if not words:
        longer = max(len(one.names), len(other.names))
        share = len(shared) / longer
        chance = common * len(one.names) * len(other.names) / (len(one.held) * len(other.held) * longer)
    return MemoryOverlap(
        rows_a=one.rows,
        rows_b=other.rows,
        scores_a=one.scores,
        scores_b=other.scores,
        same_a=np.array([name in shared for name in one.names], bool),
        same_b=np.array([name in shared for name in other.names], bool),
        shared=len(shared),
        share=share,
        chance=chance,
        common=common,
        words=words,
    )


def same_place(query: Query, frame: Frame) -> Query:
    """A query as another model can be asked it: a patch becomes the place (x, y) px of its middle."""
    if isinstance(query, list):
        return [same_place(one, frame) for one in query]  # type: ignore[misc]
    is_patch = isinstance(query, int) and 0 <= query < frame.rows * frame.columns
    return frame.centre_of(query) if is_patch else query  # type: ignore[arg-type]


def compare_maps(
    a: Workbench,
    b: Workbench,
    image: ImageSource,
    query: Query = "cls",
    look: Look = LAST_BLOCK,
    other: Look | None = None,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Where two models look from the same place of a picture: float32 maps [rows, columns], and their overlap (0..1).

    A patch index is one of A's grid. `other` is B's look, by default A's. Raises: ModelError, naming the model that
    has no such map.
    """
    picture = decode_image(image)
    maps: list[np.ndarray] = []
    for workbench, one in ((a, look), (b, other or look)):
        try:
            found = workbench.attention(picture, one.layer, query, one.size)
            maps.append(one.of(found))
        except ModelError as reason:
            raise ModelError(f"{workbench.model.name}: {reason}") from reason
        query = same_place(query, found.frame)
    return maps[0], maps[1], map_overlap(*maps)


def map_overlap(weights_a: np.ndarray, weights_b: np.ndarray) -> float:
    """Share (0..1) of two maps [rows, columns] that lies at the same places: the integral of the smaller of the two,
    each spread evenly within its patches and of sum 1 over the picture. The grids may differ.
    """
    a, b = (np.asarray(weights, np.float64) for weights in (weights_a, weights_b))
    if a.ndim != 2 or b.ndim != 2 or not (a.sum() > 0 and b.sum() > 0) or min(a.min(), b.min()) < 0:
        raise ValueError("maps must be [rows, columns] of weights from 0, some of them above")
    heights, rows_a, rows_b = _common_cells(len(a), len(b))
    widths, columns_a, columns_b = _common_cells(a.shape[1], b.shape[1])
    density_a, density_b = (weights / weights.sum() * weights.size for weights in (a, b))
    smaller = np.minimum(density_a[np.ix_(rows_a, columns_a)], density_b[np.ix_(rows_b, columns_b)])
    return float(heights @ smaller @ widths)


def compare_probe(a: Probed, b: Probed, k: int = 10) -> Judged:
    """How alike two models see the same n pictures, in the same order; `k` is cut to half of the others.

    Raises: ModelError for fewer than 4 pictures or k < 1.
    """
    n = len(a)
    if n != len(b):
        raise ValueError(f"{n} pictures cannot be compared with {len(b)}; they must be the same")
    if n < MIN_PICTURES or k < 1:
        raise ModelError(f"{n} pictures and k {k} cannot be compared; give {MIN_PICTURES} pictures and k 1 at least.")
    k = min(k, (n - 1) // 2)
    near_a, near_b = nearest_rows(a.embedding, k), nearest_rows(b.embedding, k)
    kept = shared_of(near_a, near_b)
    table = None
    if a.layers is not None and b.layers is not None:
        sample = even_sample(n, LAYER_PICTURES)
        blocks_a, blocks_b = (list(layers[sample].swapaxes(0, 1)) for layers in (a.layers, b.layers))
        table = cka_table(blocks_a, blocks_b)
    order = np.argsort(kept, kind="stable")
    return Judged(
        cka=cka(a.embedding, b.embedding),
        mutual_knn=float(kept.mean()),
        chance=k / (n - 1),
        k=k,
        n=n,
        kept=kept,
        order=order,
        neighbours_a=near_a,
        neighbours_b=near_b,
        layers=table,
    )


@dataclass(frozen=True, eq=False)
class _Side:
    names: list[tuple]  # of pictures, best first, as `picture_names` gives them
    rows: list[dict[str, Any]]
    scores: np.ndarray
    held: set[tuple]  # all pictures of the memory
    words: str | None


def _nearest_pictures(workbench: Workbench, image: ImageSource, k: int, key: str) -> _Side:
    """The k nearest pictures of a model's memory, by the nearest slot of each."""
    memory, asked = workbench.model.memory, k
    data = workbench.model.card["data"] or f"untold, {id(memory)}"  # equal numbers of other data are other pictures
    while True:
        try:
            found = workbench.neighbours(image, k=asked, key=key)
        except ModelError as reason:
            return _Side([], [], np.empty(0, np.float32), set(), f"{workbench.model.name}: {reason}")
        assert memory is not None  # `neighbours` has refused such a model
        first: dict[tuple, int] = {}
        for at, name in enumerate(picture_names(memory, found.ids, data)):
            first.setdefault(name, at)
        if len(first) >= k or len(found.ids) < asked:
            break
        asked *= 4
    names, places = list(first)[:k], list(first.values())[:k]
    held = set(picture_names(memory, np.flatnonzero(memory.image_id != -1), data))
    return _Side(names, [found.rows[at] for at in places], found.scores[places], held, None)


def _common_cells(count_a: int, count_b: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lengths [M] of the pieces that the edges of both grids cut 0..1 into, and the cells [M] they lie in."""
    edges = np.union1d(np.arange(count_a + 1) * count_b, np.arange(count_b + 1) * count_a)  # in 1 / (count_a count_b)
    return np.diff(edges) / (count_a * count_b), edges[:-1] // count_b, edges[:-1] // count_a


def _plain(value: float) -> float | None:
    return value if np.isfinite(value) else None
