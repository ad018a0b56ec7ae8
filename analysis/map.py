"""The map of a memory: fitting it once, finding it again, and placing new pictures on it."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from analysis.clusters import SPREAD_DIM, Cluster, can_spread, describe, find_clusters
from analysis.graph import (
    Graph,
    K,
    adjacency,
    load_graph,
    neighbour_graph,
    purity,
    save_graph,
    slot_rows,
    vectors_of,
    written_slots,
)
from analysis.neighbours import Space
from memssl_core import paths
from memssl_core.bundle import hub
from memssl_core.bundle.card import card_with_map
from memssl_core.bundle.layout import CARD, MAP
from memssl_core.bundle.maps import MemoryMap, read_map, save_map
from memssl_core.bundle.table import MemoryTable
from memssl_core.errors import BundleError, ModelError
from memssl_core.evaluation.health import continuity, trustworthiness
from memssl_core.jobs import WAIT_S, Emit, write_atomically
from memssl_core.sources import Model
from memssl_core.training.runs import run_weights

MIN_DIST = 0.1
SAMPLE = 10_000
"""rows that covariance and figures are taken from at most, chosen with seed 0"""
_NEEDED = {"faiss": "faiss-cpu", "umap": "umap-learn"}
_LIBRARIES = ("umap-learn", "numba", "numpy", "scipy", "scikit-learn", "fast-hdbscan", "faiss-cpu")
Stop = Callable[[], bool]


def _quiet(event: str, *, step: int, **facts: Any) -> None: ...


def _never() -> bool:
    return False


# Layouts


def pca_map(rows: np.ndarray, dim: int = 2) -> np.ndarray:
    """float32 [M, dim]: [M, C] rows along their first principal components, each pointing to its largest weight.

    The components are those of at most SAMPLE rows. Columns are zero where there are fewer components than `dim`.
    """
    sample = rows[_sample(len(rows))].astype(np.float64)
    mean = sample.mean(0)
    axes = np.linalg.eigh((sample - mean).T @ (sample - mean))[1][:, : -dim - 1 : -1]  # [C, dim]
    axes *= np.sign(np.take_along_axis(axes, np.abs(axes).argmax(0)[None], 0))
    places = ((rows - mean) @ axes).astype(np.float32)
    return np.pad(places, ((0, 0), (0, dim - places.shape[1])))


def umap_map(
    rows: np.ndarray,
    graph: Graph,
    *,
    dim: int = 2,
    min_dist: float = MIN_DIST,
    seed: int | None = 0,
    emit: Emit = _quiet,
    should_stop: Stop = _never,
) -> tuple[np.ndarray, dict[str, Any]]:
    """float32 [M, dim]: UMAP of [M, C] unit rows on their neighbour graph; and the settings.

    With a seed one core works and the same machine and versions give the same map; with None all work, and no two
    maps are equal. Begins with the spectral layout, or with the principal components if the graph falls apart (UMAP
    would place its parts at random). Rows that have no more than K others are neighbours all: they get `pca_map`.
    Source: McInnes, Healy and Melville 2018; umap-learn's defaults, its neighbours counting the row itself.
    Raises: ModelError if umap-learn is not installed, or when asked to stop.
    """
    if len(rows) <= K + 1:
        return pca_map(rows, dim), {"method": "pca"}
    try:
        import umap
        import umap.layouts
    except ImportError as reason:
        raise ModelError("Fitting a map needs UMAP; install it with `pip install umap-learn`.") from reason
    from scipy.sparse.csgraph import connected_components

    parts = connected_components(adjacency(graph), directed=False)[0]
    own = np.arange(len(rows), dtype=np.int32)[:, None]
    neighbours = np.concatenate([own, graph.neighbours[:, : K - 1]], 1)
    distances = np.concatenate([np.zeros_like(own, np.float32), np.maximum(1 - graph.scores[:, : K - 1], 0)], 1)
    settings = {"n_neighbors": K, "min_dist": min_dist, "metric": "cosine"}
    settings["n_epochs"] = 500 if len(rows) <= 10_000 else 200
    start: Any = "spectral" if parts == 1 else _pca_start(rows, dim)
    told = _Told(emit, should_stop, f"laying {len(rows)} slots out in {dim} dimensions")
    fitter = umap.UMAP(
        n_components=dim,
        **settings,
        init=start,
        random_state=seed,
        n_jobs=-1 if seed is None else 1,
        precomputed_knn=(neighbours, distances),
        force_approximation_algorithm=True,  # which keeps it from looking for neighbours of its own
        disconnection_distance=np.inf,
        tqdm_kwds={"file": told, "bar_format": "{n_fmt}/{total_fmt}", "disable": False},
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that new rows cannot be transformed, which `place` does
            places = fitter.fit_transform(rows)
    except BaseException:
        with suppress(RuntimeError):  # it was not held
            umap.layouts.tqdm.get_lock().release()  # the bar keeps its lock when its file raises an error
        raise
    settings |= {"method": "umap", "seed": seed, "parts": int(parts), "init": "spectral" if parts == 1 else "pca"}
    return np.asarray(places, np.float32), settings


def _pca_start(rows: np.ndarray, dim: int) -> np.ndarray:
    """`pca_map` within -1 and 1 and a little noise, so that no two rows begin at one place."""
    places = pca_map(rows, dim)
    noise = np.random.default_rng(0).normal(scale=1e-4, size=places.shape)
    return (places / max(float(np.abs(places).max()), 1e-12) + noise).astype(np.float32)


class _Told:
    """The file that UMAP's progress bar is written to: each "12/200" becomes an event, and a wish to stop an error."""

    def __init__(self, emit: Emit, should_stop: Stop, words: str) -> None:
        self._emit, self._should_stop, self._words = emit, should_stop, words

    def write(self, text: str) -> None:
        done, _, total = text.strip().partition("/")
        if done.isdecimal() and total.isdecimal():
            self._emit("progress", step=int(done), total=int(total), words=self._words)
        _check(self._should_stop)

    def flush(self) -> None: ...


def place(query: np.ndarray, rows: np.ndarray, xy: np.ndarray, k: int = K) -> np.ndarray:
    """float32 [2], approximately where a new row belongs: the similarity-weighted mean of its neighbours' places.

    Args: query [C]; rows [M, C] that lie at xy [M, 2]; all rows of any length, compared by cosine.
    """
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(query)
    scores = rows @ query / np.maximum(lengths, 1e-12)
    near = np.argsort(-scores, kind="stable")[:k]
    weights = np.maximum(scores[near], 0)  # a row that is unlike the new one counts nothing, unless all are
    return np.average(xy[near], axis=0, weights=weights if weights.any() else None).astype(np.float32)


def map_figures(rows: np.ndarray, xy: np.ndarray, labels: np.ndarray, graph: Graph) -> dict[str, float]:
    """How truly a map shows who is near whom; {} for too few rows.

    Trustworthiness and continuity at K of the map and of `pca_map`, of at most SAMPLE rows; and the share of a row's K
    neighbours on the map, and in the space, that bear its label, where any is known (labels [M], -1 unknown).
    """
    if len(rows) <= 2 * K:
        return {}
    from sklearn.neighbors import NearestNeighbors

    chosen, measures = _sample(len(rows)), {"trustworthiness": trustworthiness, "continuity": continuity}
    maps = {"": xy, "_pca": pca_map(rows)}
    figures = {
        name + of: measure(rows[chosen], maps[of][chosen], K) for of in maps for name, measure in measures.items()
    }
    if (labels >= 0).any():
        distances, near = NearestNeighbors(n_neighbors=K).fit(xy).kneighbors()
        shares = {
            "label_agreement": purity(Graph(near, -distances), labels),
            "label_agreement_space": purity(graph, labels),
        }
        figures |= {name: float(np.nanmean(share)) for name, share in shares.items() if not np.isnan(share).all()}
    return {name: round(value, 5) for name, value in figures.items()}


def _sample(count: int) -> np.ndarray:
    """int64, increasing: all rows, or SAMPLE of them."""
    if count <= SAMPLE:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, SAMPLE, replace=False))


# A model's map


def fit_map(
    model: Model,
    space: Space = "memory",
    *,
    min_dist: float = MIN_DIST,
    seed: int | None = 0,
    again: bool = False,
    emit: Emit = _quiet,
    should_stop: Stop = _never,
) -> MemoryMap:
    """The map of a model's memory: the stored one if it was fitted as asked, else a new one, which is stored.

    A second fit of the same map waits for the first, in whatever process, and takes what that made.
    Args: seed, None for a fast map: all cores, no two are equal, and k-means for the clusters; any stored one serves.
        again, fit although one is stored.
    Raises: ModelError without a memory, faiss or umap-learn, or when asked to stop; nothing is left then.
    """
    space = map_space(model, space)
    target, kept = map_files(model, space)[0], _kept(model)
    before = _changed(target)
    with _turn(kept / f"{space}.lock", emit, should_stop):
        if not again or _changed(target) != before:  # the second: somebody fitted it meanwhile
            with suppress(BundleError):
                known = stored_map(model, space)
                if known and _is_as_asked(known, min_dist, seed):
                    return known
        _check_libraries()
        made = _fit(model, space, min_dist, seed, emit, should_stop)
        _check(should_stop)
        save_map(target, made)
        if target.name == MAP:
            with suppress(OSError, UnicodeDecodeError):  # a card that is not there, or somebody's own
                card = target.with_name(CARD).read_bytes().decode()
                write_atomically(target.with_name(CARD), card_with_map(card, made.parameters).encode())
    return made


def _fit(model: Model, space: Space, min_dist: float, seed: int | None, emit: Emit, should_stop: Stop) -> MemoryMap:
    began, memory = time.monotonic(), _memory(model)
    slots, rows = slot_rows(memory, space, has_head=model.head is not None)
    graph = graph_of(model, space, emit=emit, should_stop=should_stop)
    asked = {"seed": seed, "emit": emit, "should_stop": should_stop}
    xy, settings = umap_map(rows, graph, min_dist=min_dist, **asked)
    wide = can_spread() and seed is not None
    spread = umap_map(rows, graph, dim=SPREAD_DIM, min_dist=0.0, **asked)[0] if wide else None
    emit("progress", step=0, total=None, words="finding clusters")
    cluster, how = find_clusters(rows, spread)
    emit("progress", step=0, total=None, words="judging the map")
    figures = map_figures(rows, xy, memory.label[slots], graph)
    parameters = {
        "bundle_hash": model.card["bundle_hash"],
        "space": space,
        **settings,
        "min_dist": min_dist,
        "seed": seed,
        "clustering": how,
        **figures,
        "versions": _versions(),
        "fit_s": round(time.monotonic() - began, 1),
    }
    return MemoryMap(slots, xy, cluster, parameters)


def _check_libraries() -> None:
    if missing := [package for module, package in _NEEDED.items() if find_spec(module) is None]:
        names = " and ".join(missing)
        raise ModelError(f"Fitting a map needs {names}; install it with `pip install {' '.join(missing)}`.")


def _is_as_asked(known: MemoryMap, min_dist: float, seed: int | None) -> bool:
    told = known.parameters
    return told.get("min_dist") == min_dist and (seed is None or told.get("seed") == seed)


def stored_map(model: Model, space: Space = "memory") -> MemoryMap | None:
    """The map that was fitted for this very memory; None if there is none.

    Raises: ModelError without a memory or this space; BundleError for a file that is no sound map.
    """
    space = map_space(model, space)
    slots = written_slots(_memory(model), space, has_head=model.head is not None)
    for path in map_files(model, space):
        if found := read_map(path, slots, bundle_hash=model.card["bundle_hash"], space=space):
            return found
    return None


def graph_of(
    model: Model,
    space: Space = "memory",
    *,
    at_most: int | None = None,
    emit: Emit = _quiet,
    should_stop: Stop = _never,
) -> Graph:
    """The neighbour graph of the written slots, in the order of the map's points; made and kept if there is none.

    Raises: ModelError without a memory, this space or faiss, when asked to stop, or when it would have to be made of
    more than `at_most` slots.
    """
    of_model = _memory(model), map_space(model, space)
    path = graph_file(model, space)
    graph = load_graph(path, len(written_slots(*of_model, has_head=model.head is not None)))
    if graph is None:
        if at_most is not None and model.card["memory_filled"] > at_most:
            raise ModelError("The neighbours of this memory are not known; fit its map with `python -m analysis map`.")
        rows = slot_rows(*of_model, has_head=model.head is not None)[1]
        graph = neighbour_graph(rows, emit=emit, should_stop=should_stop)
        with suppress(OSError):  # it is made again where nothing can be kept
            save_graph(path, graph)
    return graph


def graph_file(model: Model, space: Space) -> Path:
    """Where the graph of a memory is kept once it was made."""
    return _kept(model) / f"{map_space(model, space)}.npz"


def map_clusters(model: Model, memory_map: MemoryMap) -> list[Cluster]:
    """The clusters of a model's map with their exemplars and names, in the order of their numbers."""
    memory, slots = _memory(model), memory_map.slot
    vectors = vectors_of(memory, memory_map.parameters["space"], has_head=model.head is not None)
    rows = vectors if len(slots) == len(vectors) else vectors[slots]
    return describe(memory, slots, rows, memory_map.cluster)


def map_space(model: Model, space: Space) -> Space:
    """The space that is mapped: a model without head remembers embeddings. Raises: ModelError if there is none."""
    if space not in ("memory", "embedding"):
        raise ModelError(f"There is no space {space!r}; choose memory or embedding.")
    _memory(model)
    return space if model.head is not None else "embedding"


def _memory(model: Model) -> MemoryTable:
    if model.memory is None:
        raise ModelError("This model has no memory, so it has no map; open a bundle that has one.")
    return model.memory


def map_state(model: Model, space: Space) -> Hashable:
    """Changes when another map was stored for this memory."""
    return tuple(_changed(path) for path in map_files(model, map_space(model, space)))


def map_files(model: Model, space: Space) -> list[Path]:
    """Where a map may lie; the first is where one is written.

    The map of the vectors in a memory lies in their bundle, if that is a folder here that can be written to; others
    among what the program keeps.
    """
    kept, folder = _kept(model) / f"{space}.parquet", _bundle_folder(model)
    if folder is None or (space == "embedding" and model.head is not None):
        return [kept]
    is_ours = not model.source.startswith("hub:") and os.access(folder, os.W_OK)
    return [folder / MAP, kept] if is_ours else [kept, folder / MAP]


def _kept(model: Model) -> Path:
    return paths.maps_dir() / model.card["bundle_hash"]


def _bundle_folder(model: Model) -> Path | None:
    """The folder that the model was opened from; None for a checkpoint."""
    kind, _, rest = model.source.partition(":")
    if model.source == "embedded":
        return paths.embedded_bundle()
    if kind == "hub":
        return hub.cached_repo(model.card["repository"], model.card["revision"])
    folder = run_weights(rest) if kind == "run" else Path(rest if kind == "bundle" else model.source).expanduser()
    return folder if folder.is_dir() else None


def _changed(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


@contextmanager
def _turn(path: Path, emit: Emit, should_stop: Stop) -> Iterator[None]:
    """Alone of all processes; the system frees the lock however its holder ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise ModelError("Maps cannot be kept here; set MEMSSL_HOME to a folder that can be written to.") from reason
    lock = FileLock(path)
    while True:
        with suppress(Timeout):
            lock.acquire(timeout=0)
            break
        _check(should_stop)
        emit("progress", step=0, total=None, words="waiting for another fit of this map to end")
        time.sleep(WAIT_S)
    try:
        yield
    finally:
        lock.release()


def _check(should_stop: Stop) -> None:
    if should_stop():
        raise ModelError("Stopped; no map was written.")


def _versions() -> dict[str, str]:
    found = {}
    for library in _LIBRARIES:
        with suppress(PackageNotFoundError):
            found[library] = version(library)
    return found
