from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from memssl_core.data.images import Frame
from memssl_core.data.pairs import PairKind, known_pair, project
from memssl_core.evaluation.correspondence import chance_accuracy, instance_accuracy, true_patches
from memssl_core.model.matching import match

GRIDS = st.tuples(st.integers(1, 9), st.integers(1, 9))
SEEDS = st.integers(0, 10**6)
MOVED = st.tuples(st.sampled_from(["crops", "homography"]), GRIDS, GRIDS)
UNMOVED = st.tuples(st.sampled_from(["identity", "mirror"]), GRIDS).map(lambda case: (*case, case[1]))
CASES = MOVED | UNMOVED  # kind, grid a, grid b: with other grids, centres of unmoved patches fall on edges of patches
WIDTH, HEIGHT = 48, 33


def whole(rows: int, columns: int) -> Frame:
    """The frame of patches that share all of a picture."""
    return Frame(WIDTH, HEIGHT, rows, columns, 8, columns * 8 / WIDTH, rows * 8 / HEIGHT)


def geometry(kind: PairKind, seed: int = 0) -> np.ndarray:
    return known_pair(Image.new("RGB", (WIDTH, HEIGHT)), kind, seed).homography


def truth_by_loops(grid_a, grid_b, homography) -> list[tuple[int, int, float, float] | None]:
    """For each patch of a its target's (row, column) in b, and x, y px; None where it does not count."""

    def through(matrix, x, y):
        u, v, w = (sum(m * p for m, p in zip(row, (x, y, 1), strict=True)) for row in matrix.tolist())
        return u / w, v / w

    def is_inside(x, y):
        return -0.5 <= x < WIDTH - 0.5 and -0.5 <= y < HEIGHT - 0.5

    def centre(grid, row, column):
        return (column + 0.5) * WIDTH / grid[1] - 0.5, (row + 0.5) * HEIGHT / grid[0] - 0.5

    found = []
    for row in range(grid_a[0]):
        for column in range(grid_a[1]):
            x, y = through(homography, *centre(grid_a, row, column))
            cell = math.floor((y + 0.5) / HEIGHT * grid_b[0]), math.floor((x + 0.5) / WIDTH * grid_b[1])
            counts = is_inside(x, y) and is_inside(*through(np.linalg.inv(homography), *centre(grid_b, *cell)))
            found.append((*cell, x, y) if counts else None)
    return found


@given(CASES, SEEDS, st.booleans())
def test_equals_a_count_by_loops(case, seed, is_restricted):
    kind, grid_a, grid_b = case
    homography, rng = geometry(kind, seed), np.random.default_rng(seed)
    truth = truth_by_loops(grid_a, grid_b, homography)
    frames = whole(*grid_a), whole(*grid_b)
    expected = [-1 if t is None else t[0] * grid_b[1] + t[1] for t in truth]
    assert true_patches(*frames, homography).tolist() == expected

    of = rng.random(len(truth)) < 0.5 if is_restricted else None
    if of is not None:
        truth = [t if of[i] else None for i, t in enumerate(truth)]
    if not any(truth):
        with pytest.raises(ValueError, match="no patch of a is seen in b"):
            instance_accuracy(np.empty((0, 2), int), *frames, homography, of=of)
        return
    asked = rng.permutation(len(truth))[: rng.integers(0, len(truth) + 1)]
    patches = np.stack([asked, rng.integers(0, grid_b[0] * grid_b[1], len(asked))], 1)
    off, distances = [], []
    for patch, answer in patches.tolist():
        if truth[patch] is not None:
            row, column, x, y = truth[patch]
            row_b, column_b = divmod(answer, grid_b[1])
            off.append(max(abs(row - row_b), abs(column - column_b)))
            x_b, y_b = (column_b + 0.5) * WIDTH / grid_b[1] - 0.5, (row_b + 0.5) * HEIGHT / grid_b[0] - 0.5
            distances.append(math.dist((x, y), (x_b, y_b)))
    result = instance_accuracy(patches, *frames, homography, radii=(0, 1, 3), of=of)
    assert (result.n_query, result.n_gallery) == (len(off), grid_b[0] * grid_b[1])
    mean = lambda values: sum(values) / len(values) if values else math.nan
    metrics = {f"acc@{radius}": 100 * mean([o <= radius for o in off]) for radius in (0, 1, 3)}
    metrics |= {"end_point_px": mean(distances), "coverage": 100 * len(off) / sum(t is not None for t in truth)}
    assert result.metrics == pytest.approx(metrics, nan_ok=True)


@given(CASES, SEEDS)
def test_chance_is_the_mean_over_all_answers(case, seed):
    kind, grid_a, grid_b = case
    frames, homography = (whole(*grid_a), whole(*grid_b)), geometry(kind, seed)
    rows, of = np.arange(grid_a[0] * grid_a[1]), np.random.default_rng(seed).random(grid_a[0] * grid_a[1]) < 0.7
    if not (of & (true_patches(*frames, homography) >= 0)).any():
        return
    answers = [
        instance_accuracy(np.stack([rows, np.full_like(rows, cell)], 1), *frames, homography, of=of).metrics
        for cell in range(grid_b[0] * grid_b[1])
    ]
    chance = chance_accuracy(*frames, homography, of=of)
    assert chance == pytest.approx({name: np.mean([answer[name] for answer in answers]) for name in chance})


@given(GRIDS)
def test_identity_and_mirror_with_their_own_grids_are_right(grid):
    frame, cells = whole(*grid), np.arange(grid[0] * grid[1]).reshape(grid)
    for kind, answer in (("identity", cells), ("mirror", cells[:, ::-1])):
        patches = np.stack([cells.ravel(), answer.ravel()], 1)
        metrics = instance_accuracy(patches, frame, frame, geometry(kind)).metrics
        assert metrics.pop("end_point_px") == pytest.approx(0, abs=1e-9)
        assert set(metrics.values()) == {100.0}


def position_codes(frame: Frame, points: np.ndarray) -> np.ndarray:
    """[N, 4]: the nearest code of a patch centre by cosine is that of the patch which holds the point."""
    x, y = np.pi * (points.T + 0.5) / np.array([[frame.width], [frame.height]])
    return np.stack([np.cos(x), np.sin(x), np.cos(y), np.sin(y)], 1)


@pytest.mark.parametrize("rule", ["argmax", "mutual"])
@given(CASES, SEEDS)
def test_features_that_code_the_true_place_score_100(rule, case, seed):
    kind, grid_a, grid_b = case
    frame_a, frame_b, homography = whole(*grid_a), whole(*grid_b), geometry(kind, seed)
    if (true_patches(frame_a, frame_b, homography) < 0).all():
        return
    centres_a, centres_b = (
        np.array([frame.centre_of(patch) for patch in range(frame.rows * frame.columns)])
        for frame in (frame_a, frame_b)
    )
    codes = position_codes(frame_b, project(homography, centres_a)), position_codes(frame_b, centres_b)
    result = instance_accuracy(match(*codes, rule)[0], frame_a, frame_b, homography)
    assert math.isnan(result.metrics["acc@0"]) if result.n_query == 0 else result.metrics["acc@0"] == 100
    assert rule == "mutual" or result.metrics["coverage"] == 100


def test_a_crop_that_the_model_sees_of_a_limits_what_counts():
    seen = Frame(WIDTH, HEIGHT, 2, 2, 8, 1, 1, left_px=16, top_px=8)  # 16 px of the middle
    all_of_it = whole(4, 6)
    true = true_patches(all_of_it, seen, np.eye(3)).reshape(4, 6)
    expected = np.full((4, 6), -1)
    expected[1:3, 2:4] = [[0, 1], [2, 3]]
    assert true.tolist() == expected.tolist()


@pytest.mark.parametrize("shift_px, expected", [(18, [0, 0, 0, 0, -1, -1]), (30, [-1] * 6)])
def test_a_patch_whose_middle_lies_outside_a_does_not_count(shift_px, expected):
    shifted = np.array([[1.0, 0, shift_px], [0, 1, 0], [0, 0, 1]])
    assert true_patches(whole(1, 6), whole(1, 1), shifted).tolist() == expected


@pytest.mark.parametrize(
    "patches, of, words",
    [
        ([[0, 0], [0, 1]], None, "twice"),
        ([[6, 0]], None, "from 0 to 5 of a"),
        ([[0, 6]], None, "0 to 5 of b"),
        ([[-1, 0]], None, "from 0"),
        ([[0, 0]], np.ones(5, bool), r"bool \[6\]"),
        ([[0, 0]], np.zeros(6, bool), "nothing to count"),
    ],
)
def test_what_cannot_be_counted_is_an_error(patches, of, words):
    with pytest.raises(ValueError, match=words):
        instance_accuracy(np.array(patches), whole(2, 3), whole(2, 3), np.eye(3), of=of)
