"""Maps: layouts, figures that a random map fails, places of new rows, where a map lies, one fit of two."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from bundle.making import NOISE_SLOTS, SLOTS, small_bundle, small_memory
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.metrics import v_measure_score

from analysis import map as maps
from analysis.clusters import SPREAD_DIM, find_clusters
from analysis.graph import neighbour_graph
from analysis.map import (
    fit_map,
    graph_file,
    graph_of,
    map_figures,
    pca_map,
    place,
    stored_map,
    umap_map,
)
from memssl_core import paths
from memssl_core.bundle.card import card as bundle_card
from memssl_core.bundle.layout import open_bundle
from memssl_core.errors import ModelError
from memssl_core.evaluation.health import trustworthiness
from memssl_core.sources import open_model

WRITTEN = SLOTS - NOISE_SLOTS


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


# --- layouts


@pytest.fixture(scope="module")
def digits():
    """Rows and classes of nine in ten digits and of the rest, the map of the former, and a random one."""
    pictures = load_digits()
    rows, classes = unit(pictures.data), pictures.target
    out = np.arange(len(rows)) % 10 == 3
    graph = neighbour_graph(rows[~out])
    xy, settings = umap_map(rows[~out], graph)
    chance = np.random.default_rng(0).permutation(xy)
    return rows[~out], classes[~out], rows[out], classes[out], xy, chance, settings, graph


def test_the_map_of_digits_is_true_and_truer_than_principal_components(digits):
    rows, _, _, _, xy, chance, settings, _ = digits
    found = trustworthiness(rows, xy)
    assert found >= 0.9 and found >= trustworthiness(rows, pca_map(rows)) + 0.05
    assert trustworthiness(rows, chance) < 0.9
    assert settings["init"] == "spectral" and settings["n_neighbors"] == 15 and settings["parts"] == 1


def test_a_digit_left_out_lands_among_its_own(digits):
    rows, classes, others, wanted, xy, chance, *_ = digits

    def share_right(places):
        right = 0
        for row, label in zip(others, wanted, strict=True):
            spot = place(row, rows, places)
            near = np.argsort(np.linalg.norm(places - spot, axis=1))[:15]
            right += np.bincount(classes[near]).argmax() == label
        return right / len(others)

    assert share_right(xy) >= 0.9 > 0.5 > share_right(chance)


def test_clusters_of_digits_and_where_a_digit_left_out_lands(digits):
    rows, classes, others, _, xy, chance, _, graph = digits
    cluster, _ = find_clusters(rows, umap_map(rows, graph, dim=SPREAD_DIM, min_dist=0.0)[0])
    assert v_measure_score(classes, cluster) > 0.85 and (cluster >= 0).mean() > 0.9
    most = lambda near: np.bincount(cluster[near] + 1).argmax()  # noqa: E731

    def share_right(places):
        spots = [place(row, rows, places) for row in others]
        on_map = [most(np.argsort(np.linalg.norm(places - spot, axis=1))[:15]) for spot in spots]
        return np.mean([a == most(np.argsort(-(rows @ row))[:15]) for a, row in zip(on_map, others, strict=True)])

    assert share_right(xy) >= 0.9 > 0.5 > share_right(chance)


def test_figures_of_digits(digits):
    rows, classes, _, _, xy, _, _, graph = digits
    found = map_figures(rows, xy, classes, graph)
    assert found["trustworthiness"] == pytest.approx(trustworthiness(rows, xy), abs=1e-5)
    assert found["trustworthiness_pca"] < found["trustworthiness"] and found["continuity"] > 0.9
    assert found["label_agreement_space"] == pytest.approx(
        np.mean(classes[graph.neighbours] == classes[:, None]), abs=1e-5
    )
    assert 0.85 < found["label_agreement"] <= 1
    assert "label_agreement" not in map_figures(rows, xy, np.full(len(rows), -1), graph)


def test_the_same_seed_gives_the_same_map(digits):
    rows = digits[0][:200]
    graph, told = neighbour_graph(rows), []
    emit = lambda event, *, step, **facts: told.append((step, facts["total"]))  # noqa: E731
    first, second, other = (umap_map(rows, graph, seed=seed, emit=emit)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)
    assert told[-1] == (500, 500) and (0, 500) in told


def test_a_map_without_seed_works_too(digits):
    rows = digits[0][:200]
    xy, settings = umap_map(rows, neighbour_graph(rows), seed=None)
    assert np.isfinite(xy).all() and settings["seed"] is None


def test_a_graph_in_parts_begins_with_principal_components():
    rng = np.random.default_rng(0)
    rows = unit(np.eye(9)[np.repeat([0, 4, 8], 30)] + rng.normal(scale=0.01, size=(90, 9)))
    xy, settings = umap_map(rows, neighbour_graph(rows))
    assert settings["parts"] == 3 and settings["init"] == "pca" and np.isfinite(xy).all()
    assert trustworthiness(rows, xy) > 0.9


@pytest.mark.parametrize("count", [1, 2, 3, 16, 17, 40])
@pytest.mark.parametrize("kind", ["equal", "two kinds", "any"])
def test_few_or_equal_rows_have_a_map(count, kind):
    rows = np.random.default_rng(0).normal(size=(count, 5))
    rows = unit(
        rows[{"equal": [0] * count, "two kinds": [i % 2 * (count - 1) for i in range(count)]}.get(kind, slice(None))]
    )
    for dim in (2, 5):
        xy, settings = umap_map(rows, neighbour_graph(rows), dim=dim)
        assert xy.shape == (count, dim) and xy.dtype == np.float32 and np.isfinite(xy).all()
        assert settings["method"] == ("pca" if count <= 16 else "umap")


def test_a_fit_stops_when_asked_to_and_the_next_one_runs(digits):
    rows, steps = digits[0][:200], []
    graph, note = neighbour_graph(rows), lambda event, *, step, **facts: steps.append(step)
    with pytest.raises(ModelError, match="Stopped; no map was written"):
        umap_map(rows, graph, emit=note, should_stop=lambda: bool(steps))
    assert steps[-1] < 500
    next_one = threading.Thread(target=umap_map, args=(rows, graph), daemon=True)
    next_one.start()
    next_one.join(30)
    assert not next_one.is_alive()  # a progress bar that was cut off keeps nobody waiting


@given(count=st.integers(2, 60), width=st.integers(1, 8), seed=st.integers(0, 20))
def test_principal_components_are_those_of_scikit_learn(count, width, seed):
    rows = np.random.default_rng(seed).normal(size=(count, width)) * (1 + np.arange(width))
    found, dim = pca_map(rows), min(2, count, width)
    expected = PCA(dim).fit_transform(rows)
    np.testing.assert_allclose(np.abs(found[:, :dim]), np.abs(expected), atol=1e-3)
    assert found.shape == (count, 2) and found.dtype == np.float32 and not found[:, width:].any()
    np.testing.assert_array_equal(found, pca_map(rows))


def test_principal_components_of_a_sample():
    rows = np.random.default_rng(0).normal(size=(12_000, 3)) * [9, 3, 1]
    np.testing.assert_allclose(np.abs(pca_map(rows)), np.abs(PCA(2).fit_transform(rows)), atol=0.5)


# --- places


def test_a_new_row_is_placed_between_its_neighbours():
    rows, xy = unit(np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1.0]])), np.array([[0, 0], [4, 0], [100, 100.0]])
    np.testing.assert_allclose(place(np.array([1, 1, 0.1]), rows, xy, 2), [2, 0], atol=1e-6)
    np.testing.assert_allclose(place(np.array([3, 1, 0.1]), rows, xy, 2), [1, 0], atol=1e-6)
    np.testing.assert_allclose(place(np.array([2, 0, 0]), 7 * rows, xy, 3), [0, 0], atol=1e-6)
    np.testing.assert_allclose(place(np.array([-1, -1, -1]), rows, xy), xy.mean(0), atol=1e-4)  # like none of them


@given(seed=st.integers(0, 50), k=st.integers(1, 20))
def test_a_place_is_inside_what_its_neighbours_span(seed, k):
    rng = np.random.default_rng(seed)
    rows, xy, query = rng.normal(size=(30, 4)), rng.normal(size=(30, 2)), rng.normal(size=4)
    spot = place(query, rows, xy, k)
    near = xy[np.argsort(-(unit(rows) @ query))[:k]]
    assert (near.min(0) - 1e-5 <= spot).all() and (spot <= near.max(0) + 1e-5).all()


# --- a model's map


@pytest.fixture
def bundle_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMSSL_HOME", str(tmp_path / "home"))
    small_bundle().save(tmp_path / "b")
    return tmp_path / "b"


@pytest.fixture
def no_more_fits(monkeypatch):
    """From the call on, fitting is an error."""
    return lambda: monkeypatch.setattr(maps, "_fit", lambda *_: pytest.fail("it was fitted again"))


def test_a_map_is_fitted_once_and_lies_in_its_bundle(bundle_folder, no_more_fits):
    model = open_model(str(bundle_folder))
    assert stored_map(model) is None and not graph_file(model, "memory").exists()
    made, told = fit_map(model), model.card
    assert (bundle_folder / "map.parquet").is_file()
    assert open_bundle(bundle_folder).bundle_hash == told["bundle_hash"] == made.parameters["bundle_hash"]
    assert made.slot.tolist() == list(range(WRITTEN)) and made.xy.shape == (WRITTEN, 2)
    assert made.parameters["versions"].keys() >= {"umap-learn", "numba"} and 0 < made.parameters["trustworthiness"] <= 1
    assert graph_of(model).neighbours.shape == (WRITTEN, 15)
    no_more_fits()
    for again in (fit_map(model), fit_map(model, seed=None), stored_map(open_model(f"bundle:{bundle_folder}"))):
        np.testing.assert_array_equal(again.xy, made.xy)
        np.testing.assert_array_equal(again.cluster, made.cluster)
        assert again.parameters == made.parameters


def test_other_settings_and_again_fit_anew(bundle_folder, no_more_fits):
    model = open_model(str(bundle_folder))
    first = fit_map(model, seed=None)
    seeded = fit_map(model)
    assert first.parameters["seed"] is None and first.parameters["clustering"].startswith("k-means")
    assert seeded.parameters["seed"] == 0 and seeded.parameters["clustering"].startswith("HDBSCAN")
    assert fit_map(model, min_dist=0.5).parameters["min_dist"] == 0.5
    assert stored_map(model).parameters["min_dist"] == 0.5
    no_more_fits()
    with pytest.raises(pytest.fail.Exception, match="fitted again"):
        fit_map(model, min_dist=0.5, again=True)


def test_without_fast_hdbscan_there_are_clusters_too(bundle_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "fast_hdbscan", None)
    made = fit_map(open_model(str(bundle_folder)))
    assert made.parameters["clustering"].startswith("k-means") and made.cluster.min() == 0


def test_the_map_of_embeddings_is_kept_apart(bundle_folder):
    model = open_model(str(bundle_folder))
    fit_map(model)
    other = fit_map(model, "embedding")
    assert other.parameters["space"] == "embedding"
    assert not np.array_equal(other.xy, stored_map(model).xy)
    np.testing.assert_array_equal(stored_map(model, "embedding").xy, other.xy)
    (kept,) = paths.maps_dir().rglob("*.parquet")
    assert kept.name == "embedding.parquet" and kept.parent.name == model.card["bundle_hash"]


def test_a_bundle_that_cannot_be_written_to(bundle_folder, monkeypatch):
    model = open_model(str(bundle_folder))
    shipped = fit_map(model)
    monkeypatch.setattr(maps.os, "access", lambda path, mode: False)
    np.testing.assert_array_equal(stored_map(model).xy, shipped.xy)
    other = fit_map(model, min_dist=0.7)
    assert stored_map(model).parameters["min_dist"] == other.parameters["min_dist"] == 0.7
    assert (paths.maps_dir() / model.card["bundle_hash"] / "memory.parquet").is_file()


def test_the_map_of_another_memory_is_not_used(bundle_folder):
    fit_map(open_model(str(bundle_folder)))
    content = (bundle_folder / "map.parquet").read_bytes()
    small_bundle(seed=1).save(bundle_folder)
    (bundle_folder / "map.parquet").write_bytes(content)
    assert stored_map(open_model(str(bundle_folder))) is None


def test_a_model_without_head_maps_its_embeddings(bundle_folder):
    bundle = small_bundle()
    config = bundle.config | {"memssl": bundle.config["memssl"] | {"head": None}}
    memory = replace(small_memory(dim=32), embeddings=None)
    replace(bundle, config=config, head=None, student=None, memory=memory).save(bundle_folder)
    model = open_model(str(bundle_folder))
    assert fit_map(model).parameters["space"] == "embedding"
    assert (bundle_folder / "map.parquet").is_file()
    np.testing.assert_array_equal(stored_map(model).xy, stored_map(model, "embedding").xy)


def test_the_graph_is_found_once_and_kept(workbench, monkeypatch, tmp_path):
    monkeypatch.setenv("MEMSSL_HOME", str(tmp_path / "home"))
    found, fresh = graph_of(workbench.model), neighbour_graph(workbench.slots()[1])
    np.testing.assert_array_equal(found.neighbours, fresh.neighbours)
    assert graph_file(workbench.model, "memory").is_file()
    monkeypatch.setattr(maps, "neighbour_graph", lambda *_, **__: pytest.fail("it was found again"))
    np.testing.assert_array_equal(graph_of(workbench.model).scores, found.scores)
    with pytest.raises(pytest.fail.Exception, match="found again"):
        graph_of(workbench.model, "embedding")


def test_where_nothing_can_be_kept_there_is_a_graph_too(workbench, monkeypatch, tmp_path):
    (tmp_path / "home").write_text("a file, not a folder")
    monkeypatch.setenv("MEMSSL_HOME", str(tmp_path / "home"))
    assert graph_of(workbench.model).neighbours.shape == (WRITTEN, 15)


def test_there_is_no_third_space(workbench):
    with pytest.raises(ModelError, match="no space 'x'"):
        stored_map(workbench.model, "x")


def test_the_card_of_a_bundle_tells_its_map(bundle_folder):
    card = bundle_folder / "README.md"
    card.write_text(bundle_card(small_bundle().config))
    model = open_model(str(bundle_folder))
    for seed in (None, 0):
        made = fit_map(model, seed=seed)
        told = card.read_text()
        assert told.count("## Map") == 1 and told.count("## Limits") == 1
        assert f"| trustworthiness@15 of the map | {made.parameters['trustworthiness']:.4g} |" in told
        assert f"seed {seed}" in told
    fit_map(model, "embedding")  # which lies elsewhere
    assert card.read_text() == told


def test_a_model_without_memory(tmp_path):
    small_bundle(with_memory=False).save(tmp_path / "b")
    for ask in (stored_map, fit_map):
        with pytest.raises(ModelError, match="no memory, so it has no map"):
            ask(open_model(str(tmp_path / "b")))


# --- one fit of two


def test_two_fits_at_once_are_one_and_a_third_reads_on(bundle_folder, monkeypatch):
    model, fit, fits, waited = open_model(str(bundle_folder)), maps._fit, [], []
    begun, go_on = threading.Event(), threading.Event()

    def slow(*args):
        fits.append(1)
        begun.set()
        go_on.wait(60)
        return fit(*args)

    monkeypatch.setattr(maps, "_fit", slow)
    found = []
    run = lambda **how: found.append(fit_map(model, **how))  # noqa: E731
    first = threading.Thread(target=run)
    first.start()
    assert begun.wait(30)
    emit = lambda event, *, step, **facts: waited.append(facts["words"])  # noqa: E731
    others = [threading.Thread(target=run, kwargs={"again": again, "emit": emit}) for again in (False, True)]
    for thread in others:
        thread.start()
    until = time.monotonic() + 30
    while len(waited) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    assert stored_map(model) is None
    go_on.set()
    for thread in (first, *others):
        thread.join(60)
    assert len(fits) == 1 and set(waited) == {"waiting for another fit of this map to end"}
    for one in found:
        np.testing.assert_array_equal(one.xy, found[0].xy)


def test_who_waits_can_be_stopped(bundle_folder):
    model = open_model(str(bundle_folder))
    held = maps._turn(maps._kept(model) / "memory.lock", maps._quiet, maps._never)
    with held, pytest.raises(ModelError, match="Stopped; no map was written"):
        fit_map(model, should_stop=lambda: True)
    assert not (bundle_folder / "map.parquet").exists()


def test_the_embedded_bundle_ships_its_map():
    model = open_model("embedded")
    found = maps.read_map(
        paths.embedded_bundle() / "map.parquet",
        np.arange(model.memory.slots),
        bundle_hash=model.card["bundle_hash"],
        space="memory",
    )
    assert found is not None and (paths.embedded_bundle() / "map.parquet").stat().st_size < 150_000
    told = found.parameters
    assert told["seed"] == 0 and told["trustworthiness"] >= max(0.9, told["trustworthiness_pca"])
