"""Matches against NumPy loops, and what holds of them whatever the features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memssl_core.model.matching import RULES, is_artefact, match, without_position


def match_by_loops(a: np.ndarray, b: np.ndarray, rule: str) -> list[tuple[int, int, float]]:
    """(patch of a, patch of b, cosine), best first; written out pair by pair."""
    cosine = np.array([[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in b] for x in a])
    if rule == "argmax":
        found = [(i, max(range(len(b)), key=lambda j: (a[i] @ b[j], -j))) for i in range(len(a))]
    else:
        there = [max(range(len(b)), key=lambda j: (cosine[i, j], -j)) for i in range(len(a))]
        back = [max(range(len(a)), key=lambda i: (cosine[i, j], -i)) for j in range(len(b))]
        found = [(i, there[i]) for i in range(len(a)) if back[there[i]] == i]
    return sorted(((i, j, cosine[i, j]) for i, j in found), key=lambda one: -one[2])


@pytest.mark.parametrize("rule", RULES)
@given(seed=st.integers(0, 10**6), rows=st.tuples(st.integers(1, 40), st.integers(1, 40)), width=st.integers(3, 12))
def test_equals_loops(rule, seed, rows, width):
    rng = np.random.default_rng(seed)
    a, b = (rng.normal(size=(count, width)) for count in rows)
    patches, scores = match(a, b, rule)
    expected = match_by_loops(a.astype(np.float32), b.astype(np.float32), rule)
    assert patches.tolist() == [[i, j] for i, j, _ in expected]
    np.testing.assert_allclose(scores, [score for *_, score in expected], atol=1e-5)
    assert patches.dtype == np.int64 and scores.dtype == np.float32


@given(seed=st.integers(0, 10**6), count=st.integers(1, 50))
def test_a_picture_matches_itself_and_either_order_is_the_same(seed, count):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(count, 8)), rng.normal(size=(count + 3, 8))
    patches, scores = match(a, a)
    assert (patches[:, 0] == patches[:, 1]).all() and len(patches) == count
    np.testing.assert_allclose(scores, 1, atol=1e-6)
    there, back = match(a, b)[0], match(b, a)[0]
    assert sorted(map(tuple, there.tolist())) == sorted(map(tuple, back[:, ::-1].tolist()))


def test_larger_than_a_chunk_and_from_tensors():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(2500, 6)).astype(np.float32)
    shuffled = rng.permutation(2500)
    patches, _ = match(torch.from_numpy(a).half(), torch.from_numpy(a[shuffled]).half())
    assert (shuffled[patches[:, 1]] == patches[:, 0]).mean() > 0.99


def test_of_equal_products_the_lower_patch_counts():
    a = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert match(a[[0, 0]], a[[0, 0, 1]])[0].tolist() == [[0, 0]]
    assert match(a[[1, 0, 0]], a[[0, 0, 1]], "argmax")[0].tolist() == [[0, 2], [1, 0], [2, 0]]


def test_long_artefacts_win_raw_products_and_no_mutual_match():
    """Outlier patches, as of models without registers (UX pitfall 7)."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(30, 16))
    b = a + 0.01 * rng.normal(size=a.shape)
    b[7] *= 20
    b[7] += a.mean(0)
    assert is_artefact(b).tolist() == [patch == 7 for patch in range(30)] and not is_artefact(a).any()
    raw, _ = match(a, b, "argmax")
    mutual, _ = match(a, b)
    assert (raw[:, 1] == 7).mean() > 0.4
    assert sorted(mutual.tolist()) == [[patch, patch] for patch in range(30) if patch != 7]


@given(seed=st.integers(0, 10**6), grids=st.tuples(*[st.tuples(st.integers(1, 7), st.integers(1, 7))] * 2))
def test_without_position_no_linear_fit_reads_the_place(seed, grids):
    rng = np.random.default_rng(seed)
    places, features = [], []
    for rows, columns in grids:
        x, y = np.meshgrid((np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows)
        places.append(np.stack([x.ravel(), y.ravel()], 1))
        features.append(rng.normal(size=(rows * columns, 9)) + places[-1] @ rng.normal(size=(2, 9)) * 3)
    left = np.concatenate(without_position(features[0], grids[0], features[1], grids[1])).astype(np.float64)
    at = np.concatenate(places)
    covariance = (left - left.mean(0)).T @ (at - at.mean(0))
    assert np.abs(covariance).max() < 1e-4
    before = np.concatenate(features)
    assert np.linalg.matrix_rank(before - left, tol=1e-4) <= 2  # two directions at most are gone


def test_position_that_was_added_goes_and_content_stays():
    rng = np.random.default_rng(1)
    content, (wx, wy) = rng.normal(size=(36, 32)), 4 * rng.normal(size=(2, 32))
    y, x = np.divmod(np.arange(36), 6)
    at = x[:, None] * wx + y[:, None] * wy
    moved = rng.permutation(36)
    a, b = content + at, content[moved] + at
    assert (match(a, b, "mutual")[0].T[0] == moved[match(a, b)[0].T[1]]).mean() < 0.5
    patches, _ = match(*without_position(a, (6, 6), b, (6, 6)))
    assert len(patches) == 36 and (patches[:, 0] == moved[patches[:, 1]]).all()


@pytest.mark.parametrize("a, b", [((0, 4), (3, 4)), ((3, 4), (3, 5))])
def test_features_that_cannot_be_compared(a, b):
    with pytest.raises(ValueError, match="of one width"):
        match(np.zeros(a), np.zeros(b))
