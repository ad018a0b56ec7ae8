from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memssl_core.evaluation.health import rankme
from memssl_core.evaluation.knn import knn
from tests.references import votes_by_loops


def on_circle(*cosines: float) -> np.ndarray:
    return np.array([[c, math.sqrt(1 - c * c)] for c in cosines])


def test_temperature_decides_between_one_near_and_two_far_neighbours():
    gallery, query = on_circle(0.9, 0.8, 0.8), np.array([[1.0, 0.0]])
    assert knn(gallery, [0, 1, 1], query, [0], k=(3,), temperature=0.07).metrics["top1@3"] == 100
    assert knn(gallery, [0, 1, 1], query, [1], k=(3,), temperature=1.0).metrics["top1@3"] == 100


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 8), st.booleans())
def test_equals_a_vote_counted_by_loops(seed, rows, k, has_ties):
    rng = np.random.default_rng(seed)
    gallery, queries = rng.normal(size=(rows, 5)), rng.normal(size=(7, 5))
    if has_ties:
        gallery = np.repeat(gallery, 3, axis=0)
    labels, answers = rng.choice([3, 7, 1000], len(gallery)), rng.choice([3, 7, 1000], 7)
    gallery, queries = gallery.astype(np.float32), queries.astype(np.float32)
    expected = [votes_by_loops(gallery.tolist(), labels.tolist(), q, k, 0.07) for q in queries.tolist()]
    if has_ties and len({tuple(r) for r in gallery}) < k:
        return
    result = knn(gallery, labels, queries, answers, k=(k,))
    assert result.metrics[f"top1@{k}"] == pytest.approx(100 * np.mean(np.array(expected) == answers))


def test_equal_scores_go_to_the_lower_row_and_equal_votes_to_the_lower_class():
    gallery = np.ones((40, 3))
    labels = np.array([5] * 3 + [2] * 37)
    assert knn(gallery, labels, np.ones((1, 3)), [5], k=(3,)).metrics["top1@3"] == 100
    assert knn(gallery, labels, np.ones((1, 3)), [2], k=(6,)).metrics["top1@6"] == 100


def test_few_gallery_rows_odd_batches_and_top5():
    rng = np.random.default_rng(0)
    gallery, labels = rng.normal(size=(5, 4)), np.arange(5)
    result = knn(gallery, labels, np.repeat(gallery, 12, axis=0)[:57], np.repeat(labels, 12)[:57], k=(7,))
    assert result.metrics == {"top1@7": 100.0, "top5@7": 100.0} and result.config["k_eff"] == [5]
    absent = knn(gallery[:2], labels[:2], gallery[4:], labels[4:], k=(2,))
    assert absent.metrics == {"top1@2": 0.0, "top5@2": 0.0}


def test_scaling_rows_and_shuffling_the_gallery_change_nothing():
    rng = np.random.default_rng(1)
    gallery, queries = rng.normal(size=(50, 6)), rng.normal(size=(20, 6))
    labels, answers = rng.integers(0, 4, 50), rng.integers(0, 4, 20)
    order = rng.permutation(50)
    first = knn(gallery, labels, queries, answers, k=(5, 10)).metrics
    assert knn(3 * gallery[order], labels[order], 0.1 * queries, answers, k=(5, 10)).metrics == first


@pytest.mark.parametrize("bad", [np.empty((0, 3)), np.full((2, 3), np.nan), np.ones(3)])
def test_nothing_to_compare_is_an_error(bad):
    with pytest.raises(ValueError):
        knn(np.ones((2, 3)), [0, 1], bad, np.zeros(len(bad), int))
    with pytest.raises(ValueError):
        knn(np.ones((2, 3)), [0], np.ones((1, 3)), [0])


def test_rankme_of_known_spectra():
    assert rankme(np.eye(4)) == pytest.approx(4.0000006, abs=1e-6)
    assert rankme(np.diag([1.0, 0, 0, 0])) == pytest.approx(1.0000047, abs=1e-6)
