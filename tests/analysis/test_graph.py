"""The neighbour graph against brute force, and what is asked of it against loops."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from bundle.making import NOISE_SLOTS, SLOTS, small_memory
from hypothesis import given
from hypothesis import strategies as st

from analysis.graph import (
    Graph,
    density,
    duplicates,
    load_graph,
    neighbour_graph,
    purity,
    save_graph,
    slot_rows,
    written_slots,
)
from memssl_core.errors import ModelError


def unit_rows(count, width=6, seed=0, copies=1):
    rows = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    rows = np.repeat(rows, copies, axis=0)[:count]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@given(count=st.integers(1, 60), seed=st.integers(0, 9), copies=st.sampled_from([1, 2, 20]))
def test_neighbours_are_those_of_brute_force(count, seed, copies):
    rows = unit_rows(count, seed=seed, copies=copies)
    graph = neighbour_graph(rows)
    k = min(15, count - 1)
    assert graph.neighbours.shape == graph.scores.shape == (count, k)
    cosines = rows.astype(np.float64) @ rows.T
    for row in range(count):
        others = np.delete(cosines[row], row)
        np.testing.assert_allclose(graph.scores[row], np.sort(others)[::-1][:k], atol=1e-5)
        np.testing.assert_allclose(cosines[row, graph.neighbours[row]], graph.scores[row], atol=1e-5)
        assert row not in graph.neighbours[row] and len(set(graph.neighbours[row].tolist())) == k


def test_more_rows_than_are_searched_at_a_time():
    rows, told = unit_rows(5000, 4), []
    graph = neighbour_graph(rows, 3, emit=lambda event, *, step, **facts: told.append((step, facts["total"])))
    for row in (0, 2047, 2048, 4999):
        cosines = rows @ rows[row]
        cosines[row] = -2
        assert set(graph.neighbours[row]) == set(np.argsort(-cosines)[:3])
    assert told == [(2048, 5000), (4096, 5000), (5000, 5000)]


def test_it_stops_when_asked_to():
    with pytest.raises(ModelError, match="Stopped while finding neighbours"):
        neighbour_graph(unit_rows(5), should_stop=lambda: True)


def test_without_faiss_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ModelError, match="pip install faiss-cpu"):
        neighbour_graph(unit_rows(5))


def test_a_stored_graph_comes_back_and_anything_else_is_none(tmp_path):
    path = tmp_path / "hash" / "memory.npz"
    assert load_graph(path, 20) is None
    graph = neighbour_graph(unit_rows(20))
    save_graph(path, graph)
    found = load_graph(path, 20)
    np.testing.assert_array_equal(found.neighbours, graph.neighbours)
    np.testing.assert_array_equal(found.scores, graph.scores)
    assert load_graph(path, 21) is None
    path.write_bytes(path.read_bytes()[:200])
    assert load_graph(path, 20) is None
    np.savez(path, neighbours=graph.neighbours)
    assert load_graph(path, 20) is None


# --- which slots


def test_noise_and_zeros_are_no_rows():
    memory = small_memory()
    slots, rows = slot_rows(memory, "memory")
    assert slots.tolist() == list(range(SLOTS - NOISE_SLOTS))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    embeddings = memory.embeddings.copy()
    embeddings[5] = 0
    gap = replace(memory, embeddings=embeddings)
    slots, rows = slot_rows(gap, "embedding")
    assert 5 not in slots and len(rows) == SLOTS - NOISE_SLOTS - 1
    np.testing.assert_allclose(rows[5], embeddings[6] / np.linalg.norm(embeddings[6]), atol=1e-6)
    np.testing.assert_array_equal(gap.embeddings, embeddings)  # it is a copy that is made unit length
    headless = replace(memory, embeddings=None)
    np.testing.assert_array_equal(slot_rows(headless, "embedding", has_head=False)[1], slot_rows(memory, "memory")[1])


def test_a_memory_without_rows_says_so():
    memory = small_memory()
    with pytest.raises(ModelError, match="no embeddings, so only the memory space"):
        written_slots(replace(memory, embeddings=None), "embedding")
    with pytest.raises(ModelError, match="still empty"):
        written_slots(replace(memory, image_id=np.full(SLOTS, -1)), "memory")


# --- questions


@given(count=st.integers(2, 40), seed=st.integers(0, 9))
def test_purity_by_loops(count, seed):
    graph = neighbour_graph(unit_rows(count, seed=seed))
    labels = np.random.default_rng(seed).integers(-1, 3, count)
    found = purity(graph, labels)
    for row in range(count):
        known = [labels[other] for other in graph.neighbours[row] if labels[other] >= 0]
        if labels[row] < 0 or not known:
            assert np.isnan(found[row])
        else:
            assert found[row] == pytest.approx(known.count(labels[row]) / len(known))


def test_density_is_the_mean_cosine():
    graph = neighbour_graph(unit_rows(30))
    np.testing.assert_allclose(density(graph), [np.mean(scores) for scores in graph.scores], atol=1e-6)
    assert density(neighbour_graph(unit_rows(1))).tolist() == [0]


def test_duplicates_are_found_in_groups():
    rows = unit_rows(40, 32)
    rows[[7, 21]] = rows[3]
    rows[30] = rows[12]
    groups = duplicates(neighbour_graph(rows))
    assert [group.tolist() for group in groups] == [[3, 7, 21], [12, 30]]
    assert duplicates(neighbour_graph(unit_rows(40, 32))) == []


@given(seed=st.integers(0, 30), threshold=st.floats(0.3, 1))
def test_duplicates_are_the_chains_of_near_neighbours(seed, threshold):
    graph = neighbour_graph(unit_rows(25, 4, seed=seed), 4)
    groups = [{row} for row in range(25)]
    for row, (others, scores) in enumerate(zip(graph.neighbours, graph.scores, strict=True)):
        for other, score in zip(others, scores, strict=True):
            if score >= threshold:
                joined = [group for group in groups if row in group or other in group]
                groups = [group for group in groups if group not in joined] + [set().union(*joined)]
    expected = sorted((sorted(group) for group in groups if len(group) > 1), key=lambda group: (-len(group), group))
    assert [group.tolist() for group in duplicates(graph, threshold)] == expected


def test_a_chain_of_neighbours_is_one_group():
    neighbours = np.array([[1], [0], [1], [2]], np.int32)
    assert [g.tolist() for g in duplicates(Graph(neighbours, np.float32([[0.99], [0.99], [0.985], [0.5]])))] == [
        [0, 1, 2]
    ]
