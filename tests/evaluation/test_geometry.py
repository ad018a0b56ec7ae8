"""CKA and mutual k-NN: known answers of our protocols, loops over the definitions, and what must change nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from memssl_core.evaluation import cka, mutual_knn
from memssl_core.evaluation.geometry import cka_table, nearest_rows, neighbourhood_overlap, shared_of

X, Y, Z = (np.array([values], float).T for values in ((1, 2, 3, 4), (1, 2, 3, 5), (1, -1, 1, -1)))


def rows_of(n=20, width=5, seed=0):
    return np.random.default_rng(seed).normal(size=(n, width))


def related(n=20, width=5, other=7, seed=0):
    """Two sets of rows that agree in part, neither centred."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, width))
    return rows + 3, rows @ rng.normal(size=(width, other)) + rng.normal(size=(n, other)) - 2


def rotation(width, seed=1):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


def at_degrees(*degrees):
    turns = np.radians(degrees)
    return np.stack([np.cos(turns), np.sin(turns)], 1)


def hsic_by_loops(x, y, debiased) -> float:
    """Our protocol 11.4, sum by sum."""
    n = len(x)
    k, l = ([[float(a @ b) for b in rows] for a in rows] for rows in (x, y))  # noqa: E741
    r = range(n)
    if not debiased:
        h = [[(i == j) - 1 / n for j in r] for i in r]
        hkh, hlh = (np.array(h) @ np.array(m) @ np.array(h) for m in (k, l))
        return float(sum(hkh[i][j] * hlh[j][i] for i in r for j in r))
    for i in r:
        k[i][i] = l[i][i] = 0.0
    trace = sum(k[i][j] * l[j][i] for i in r for j in r)
    sums = sum(map(sum, k)) * sum(map(sum, l))
    through = sum(k[i][j] * l[j][m] for i in r for j in r for m in r)
    return (trace + sums / ((n - 1) * (n - 2)) - 2 * through / (n - 2)) / (n * (n - 3))


@pytest.mark.parametrize(
    "a, b, debiased, expected",
    [
        (X, Y, False, 0.965714),
        (X, Y, True, 0.995871),
        (Z, X, False, 0.2),
        (Z, X, True, -0.277350),
    ],
)
def test_known_answers(a, b, debiased, expected):
    assert cka(a, b, debiased) == pytest.approx(expected, abs=1e-6)


def test_the_loops_give_the_protocols_numbers():
    assert hsic_by_loops(X, Y, True) == pytest.approx(3.166667, abs=1e-6)
    assert hsic_by_loops(X, X, True) == pytest.approx(2.166667, abs=1e-6)
    assert hsic_by_loops(Y, Y, True) == pytest.approx(4.666667, abs=1e-6)


def test_wide_noise_is_alike_only_when_biased():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(16, 512)), rng.normal(size=(16, 512))
    assert cka(a, b, debiased=False) == pytest.approx(0.9683, abs=5e-5)
    assert cka(a, b) == pytest.approx(-0.0392, abs=5e-5)


@given(
    n=st.integers(4, 9),
    width=st.integers(1, 12),
    other=st.integers(1, 12),
    seed=st.integers(0, 99),
    debiased=st.booleans(),
)
def test_cka_by_loops(n, width, other, seed, debiased):
    a, b = related(n, width, other, seed)
    products = [hsic_by_loops(*pair, debiased) for pair in ((a, b), (a, a), (b, b))]
    assume(min(products[1:]) > 1e-6)
    expected = products[0] / math.sqrt(products[1] * products[2])
    assert cka(a, b, debiased) == pytest.approx(expected, abs=1e-6)


@given(seed=st.integers(0, 99), scale=st.floats(1e-6, 1e6), shift=st.floats(-10, 10), debiased=st.booleans())
def test_cka_knows_no_rotation_scale_shift_or_order(seed, scale, shift, debiased):
    a, b = related(seed=seed)
    expected = cka(a, b, debiased)
    order = np.random.default_rng(seed).permutation(len(a))
    assert cka(b, a, debiased) == pytest.approx(expected, abs=1e-9)
    assert cka((a @ rotation(5) + shift) * scale, b, debiased) == pytest.approx(expected, abs=1e-9)
    assert cka(a[order], b[order], debiased) == pytest.approx(expected, abs=1e-9)
    assert cka(a, -scale * a @ rotation(5), debiased) == pytest.approx(1, abs=1e-9)
    assert -1 <= expected <= 1


@pytest.mark.parametrize("debiased", [True, False])
def test_cka_knows_a_stretched_space(debiased):
    a, b = related()
    assert abs(cka(a * [1, 1, 1, 1, 9], b, debiased) - cka(a, b, debiased)) > 0.01


def test_a_table_is_the_cka_of_each_pair():
    xs, ys = [rows_of(seed=s) for s in range(3)], [related(seed=s)[1] for s in range(2)]
    np.testing.assert_allclose(cka_table(xs, ys), [[cka(x, y) for y in ys] for x in xs], atol=1e-12)


@pytest.mark.parametrize(
    "rows",
    [np.ones((6, 3)), np.float32(7.7) + np.zeros((6, 3), np.float32), np.eye(6)],
    ids=["equal", "float32", "simplex"],
)
def test_rows_without_any_arrangement_are_like_nothing(rows):
    assert math.isnan(cka(rows, rows_of(6)))
    assert math.isnan(cka(rows_of(6), rows))


def mutual_by_loops(a, b, k) -> float:
    def near(rows, i):
        cosines = {j: rows[i] @ rows[j] / math.sqrt(rows[i] @ rows[i] * (rows[j] @ rows[j])) for j in range(len(rows))}
        del cosines[i]
        return set(sorted(cosines, key=lambda j: -cosines[j])[:k])

    return sum(len(near(a, i) & near(b, i)) / k for i in range(len(a))) / len(a)


def test_mutual_neighbours_of_the_protocol():
    a, b = at_degrees(0, 10, 25, 45), at_degrees(0, 20, 30, 45)
    assert nearest_rows(a, 1).ravel().tolist() == [1, 0, 1, 2]
    assert nearest_rows(b, 1).ravel().tolist() == [1, 2, 1, 2]
    assert neighbourhood_overlap(a, b, 1).tolist() == [1, 0, 1, 1]
    assert mutual_knn(a, b, 1) == 0.75


@given(n=st.integers(3, 30), k=st.integers(1, 29), seed=st.integers(0, 99))
def test_mutual_knn_by_loops(n, k, seed):
    assume(k < n)
    a, b = related(n, seed=seed)
    assert mutual_knn(a, b, k) == pytest.approx(mutual_by_loops(a, b, k), abs=1e-12)
    assert mutual_knn(a, b, n - 1) == 1


@given(seed=st.integers(0, 99), scale=st.floats(0.01, 100))
def test_mutual_knn_knows_no_rotation_length_or_order(seed, scale):
    a, b = related(seed=seed)
    order = np.random.default_rng(seed).permutation(len(a))
    overlap = neighbourhood_overlap(a, b, 4)
    assert mutual_knn(b, a, 4) == pytest.approx(overlap.mean(), abs=1e-12)
    np.testing.assert_allclose(neighbourhood_overlap(scale * a @ rotation(5), b, 4), overlap)
    lengths = np.random.default_rng(seed).uniform(0.5, 2, (len(a), 1))
    np.testing.assert_allclose(neighbourhood_overlap(a, b * lengths, 4), overlap)
    np.testing.assert_allclose(neighbourhood_overlap(a[order], b[order], 4), overlap[order])
    assert mutual_knn(a, a, 4) == 1


def test_unrelated_rows_share_neighbours_by_chance():
    assert mutual_knn(rows_of(400, 30), rows_of(400, 30, seed=1), 20) == pytest.approx(20 / 399, abs=0.01)


def test_more_rows_than_are_sorted_at_once():
    a, b = related(300)
    assert mutual_knn(a, b, 3) == pytest.approx(mutual_by_loops(a, b, 3), abs=1e-12)


def test_equal_rows_come_by_their_place_and_never_themselves():
    rows = np.repeat(at_degrees(0, 90), 3, axis=0)
    assert nearest_rows(rows, 2).tolist() == [[1, 2], [0, 2], [0, 1], [4, 5], [3, 5], [3, 4]]
    assert nearest_rows(np.zeros((4, 2)), 2).tolist() == [[1, 2], [0, 2], [0, 1], [0, 1]]


def test_shared_entries_are_counted_row_by_row():
    assert shared_of(np.array([[1, 2], [0, 3]]), np.array([[2, 1], [2, 0]])).tolist() == [1, 0.5]


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: cka(rows_of(3), rows_of(3)), "3 rows are too few"),
        (lambda: cka(rows_of(6), rows_of(7)), "6 rows cannot be compared with 7"),
        (lambda: cka(rows_of(6) * np.nan, rows_of(6)), "finite"),
        (lambda: mutual_knn(rows_of(6), rows_of(7), 2), "6 rows cannot be compared with 7"),
        (lambda: mutual_knn(rows_of(6), rows_of(6), 6), "k is 6; of 6 rows it must be from 1 to 5"),
        (lambda: mutual_knn(rows_of(6), rows_of(6), 0), "k is 0"),
    ],
)
def test_what_cannot_be_compared(call, words):
    with pytest.raises(ValueError, match=words):
        call()
