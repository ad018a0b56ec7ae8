from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import index
from analysis.index import Ivf, nearest, read_index, write_index


def brute_force(vectors, queries, k, keep):
    """By sorting everything; of equal scores the first row."""
    rows = [row for row in range(len(vectors)) if keep is None or keep[row]]
    found = []
    for query in queries:
        scores = {row: float(np.dot(query.astype(np.float64), vectors[row].astype(np.float64))) for row in rows}
        found.append(sorted(rows, key=lambda row: (-scores[row], row))[:k])  # noqa: B023
    return found


@given(st.data())
def test_exact_search_equals_brute_force_ties_included(data):
    seed, count = data.draw(st.integers(0, 10_000)), data.draw(st.integers(1, 40))
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, (count, 3)).astype(np.float16)  # small whole numbers: many equal scores, no rounding
    queries = rng.integers(-2, 3, (3, 3)).astype(np.float32)
    keep = rng.random(count) < 0.6 if data.draw(st.booleans()) else None
    k = data.draw(st.integers(1, 12))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "CHUNK", data.draw(st.integers(1, 45)))
        rows, scores = nearest(vectors, queries, k, keep)
    assert rows.tolist() == brute_force(vectors, queries, k, keep)
    expected = [
        [float(query @ vectors[row].astype(np.float32)) for row in found]
        for query, found in zip(queries, rows, strict=True)
    ]
    assert scores.tolist() == expected


def clustered(count: int, seed: int) -> np.ndarray:
    """float16 unit rows of overlapping clusters."""
    middles = np.random.default_rng(0).standard_normal((200, 16))
    rng = np.random.default_rng(seed)
    rows = middles[rng.integers(0, 200, count)] + 0.7 * rng.standard_normal((count, 16))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(3000, 1)


@pytest.fixture(scope="module")
def folder(vectors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    assert write_index(vectors, folder) is not None
    return folder


def recall(opened: Ivf, vectors, queries) -> float:
    truth = nearest(vectors, queries, 10)[0]
    found = opened.nearest(vectors, queries, 10)[0]
    return float(np.mean([len({*a.tolist()} & {*b.tolist()}) / 10 for a, b in zip(truth, found, strict=True)]))


def test_the_measured_recall_holds_for_new_queries(vectors, folder):
    opened = read_index(folder)
    facts = opened.facts
    assert (facts.rows, facts.trained_rows) == (3000, 3000) and 1 < facts.probes < facts.lists
    assert facts.recall >= 0.95
    queries = clustered(300, 2).astype(np.float32)
    assert recall(opened, vectors, queries) == pytest.approx(facts.recall, abs=0.03)
    assert recall(Ivf(index.replace(facts, probes=1), opened.index), vectors, queries) < 0.9


def test_scores_are_exact_and_filters_hold(vectors, folder):
    opened, queries = read_index(folder), clustered(20, 3).astype(np.float32)
    keep = np.random.default_rng(0).random(len(vectors)) < 0.1
    rows, scores = opened.nearest(vectors, queries, 15, keep)
    assert keep[rows].all() and (np.diff(scores) <= 0).all()
    np.testing.assert_allclose(scores, np.einsum("qc,qkc->qk", queries, vectors[rows].astype(np.float32)), atol=1e-6)
    exact = nearest(vectors, queries, 15, keep)[0]
    assert np.mean([np.isin(a, b).mean() for a, b in zip(exact, rows, strict=True)]) > 0.9


def test_too_few_in_the_lists_is_told(vectors, folder):
    keep = np.zeros(len(vectors), bool)
    keep[[5, 77]] = True
    rows, scores = read_index(folder).nearest(vectors, vectors[:1].astype(np.float32), 4, keep)
    assert sorted(rows[0].tolist()) == [-1, -1, 5, 77] and scores[0, 2:].tolist() == [-np.inf, -np.inf]


def test_an_index_grows_without_new_training(vectors, folder, tmp_path):
    grown = np.concatenate([vectors, clustered(500, 4)])
    events = []
    facts = write_index(grown, tmp_path, old=folder, emit=lambda event, *, step, **told: events.append(told["words"]))
    assert (facts.rows, facts.trained_rows) == (3500, 3000) and "training the index" not in events
    rows, _ = read_index(tmp_path).nearest(grown, grown[3400:3401].astype(np.float32), 1)
    assert rows.tolist() == [[3400]]
    doubled = np.concatenate([vectors, clustered(3000, 5)])
    assert write_index(doubled, tmp_path, old=folder).trained_rows == 6000


def test_what_cannot_be_read_is_no_index(folder, tmp_path, vectors):
    assert read_index(tmp_path) is None
    (tmp_path / index.FACTS).write_bytes((folder / index.FACTS).read_bytes())
    (tmp_path / index.INDEX).write_bytes((folder / index.INDEX).read_bytes()[:5000])
    assert read_index(tmp_path) is None
    assert write_index(vectors, tmp_path, old=tmp_path).rows == 3000  # trained anew
    (tmp_path / index.FACTS).write_text(json.dumps({"rows": 1}))
    assert read_index(tmp_path) is None


@pytest.mark.parametrize("after", [0, 3, 9])
def test_it_stops_when_asked(vectors, tmp_path, after):
    asked = iter(range(1000))
    assert write_index(vectors, tmp_path, should_stop=lambda: next(asked) >= after) is None or after == 9
    assert (tmp_path / index.INDEX).exists() == (after == 9)
