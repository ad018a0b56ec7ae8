"""Trustworthiness and continuity against scikit-learn's, against loops, and in cases that can be told by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.manifold import trustworthiness as by_scikit_learn

from memssl_core.evaluation.health import continuity, trustworthiness


def a_map(count=90, width=6, seed=0, noise=0.3):
    """Rows, and a map of them that is right about some neighbours."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, width))
    return rows, rows[:, :2] / np.linalg.norm(rows, axis=1, keepdims=True) + noise * rng.normal(size=(count, 2))


@given(count=st.integers(12, 150), k=st.integers(1, 5), seed=st.integers(0, 30))
def test_trustworthiness_is_that_of_scikit_learn(count, k, seed):
    rows, xy = a_map(count, seed=seed)
    assert trustworthiness(rows, xy, k) == pytest.approx(
        by_scikit_learn(rows, xy, n_neighbors=k, metric="cosine"), abs=1e-6
    )


@pytest.mark.parametrize("k", [1, 4, 15])
def test_continuity_by_loops(k):
    rows, xy = a_map()
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    count, beyond = len(rows), 0
    for i in range(count):
        others = [j for j in range(count) if j != i]
        in_space = sorted(others, key=lambda j: -(units[i] @ units[j]))
        on_map = sorted(others, key=lambda j: np.linalg.norm(xy[i] - xy[j]))
        beyond += sum(max(0, 1 + on_map.index(j) - k) for j in in_space[:k])
    expected = 1 - 2 * beyond / (count * k * (2 * count - 3 * k - 1))
    assert continuity(rows, xy, k) == pytest.approx(expected, abs=1e-9)


def circle(count):
    turn = np.linspace(0, 2 * np.pi, count, endpoint=False) ** 1.01
    return np.stack([np.cos(turn), np.sin(turn)], 1)


def test_a_map_that_changes_nothing_is_perfect():
    rows = circle(60)
    assert trustworthiness(rows, rows) == continuity(rows, rows) == 1
    assert trustworthiness(3 * rows, -2 * rows + 5) == 1  # lengths, place and scale do not matter


def test_a_random_map_is_as_good_as_chance():
    rows, _ = a_map(600)
    xy = np.random.default_rng(5).normal(size=(600, 2))
    assert 0.45 < trustworthiness(rows, xy) < 0.55 and 0.45 < continuity(rows, xy) < 0.55


def test_a_tear_costs_continuity_and_a_fold_trustworthiness():
    turn = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    rows = np.stack([np.cos(turn), np.sin(turn)], 1)
    torn = np.stack([turn, np.zeros(200)], 1)  # a circle cut open
    folded = np.stack([np.abs(turn - np.pi), np.zeros(200)], 1) + np.random.default_rng(0).normal(0, 1e-6, (200, 2))
    assert continuity(rows, torn) < trustworthiness(rows, torn)
    assert trustworthiness(rows, folded) < continuity(rows, folded)


@pytest.mark.parametrize("k", [0, 10, 15])
def test_k_is_below_half_of_the_points(k):
    rows, xy = a_map(20)
    with pytest.raises(ValueError, match=f"k is {k}; of 20 points"):
        trustworthiness(rows, xy, k)


def test_lengths_that_differ():
    rows, xy = a_map(20)
    with pytest.raises(ValueError, match="20 rows do not belong to 19 points"):
        continuity(rows, xy[:19], 3)


def test_the_order_of_points_changes_nothing():
    rows, xy = a_map()
    order = np.random.default_rng(1).permutation(len(rows))
    assert trustworthiness(rows[order], xy[order]) == pytest.approx(trustworthiness(rows, xy), abs=1e-9)


def test_equal_points_share_the_best_rank():
    rows = np.repeat(circle(20), 5, axis=0)
    assert trustworthiness(rows, rows, 4) == 1  # the four copies of a row, in whatever order
