from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from memssl_core.data.pairs import PairKind, known_pair, project
from memssl_core.errors import DataError

KINDS = get_args(PairKind)
SEEDS = st.integers(0, 2**64 - 1)


def ramps(width: int, height: int) -> Image.Image:
    """Four levels a pixel: red from left to right, green from top to bottom."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0], picture[..., 1] = 4 * np.arange(width), 4 * np.arange(height)[:, None]
    return Image.fromarray(picture)


def place(picture: Image.Image, points: np.ndarray) -> np.ndarray:
    """Where in the ramps the points (x, y) [N, 2] of a picture come from: bilinear between pixel centres."""
    levels = np.asarray(picture, np.float64)[..., :2] / 4
    low = np.floor(points).astype(int)
    found = np.zeros_like(points)
    for right in (0, 1):
        for down in (0, 1):
            x, y = low[:, 0] + right, low[:, 1] + down
            weight = (1 - np.abs(points[:, 0] - x)) * (1 - np.abs(points[:, 1] - y))
            found += weight[:, None] * levels[y, x]
    return found


def centres(picture: Image.Image, margin: int = 0) -> np.ndarray:
    """(x, y) of all pixel centres but those within `margin` of an edge."""
    x, y = np.meshgrid(
        np.arange(margin, picture.width - margin, dtype=float), np.arange(margin, picture.height - margin)
    )
    return np.column_stack([x.ravel(), y.ravel()])


def is_inside(picture: Image.Image, points: np.ndarray, margin: float = -0.5) -> np.ndarray:
    last = np.array(picture.size) - 1 - margin
    return ((points >= margin) & (points <= last)).all(1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(60, 44), (40, 63)], ids=["landscape", "portrait"])
@given(seed=SEEDS)
def test_the_homography_maps_pixel_centres_to_where_the_other_picture_shows_them(kind, size, seed):
    pair = known_pair(ramps(*size), kind, seed)
    points = centres(pair.a, margin=3)  # at the edges of a picture resizing bends the ramps
    targets = project(pair.homography, points)
    shown = is_inside(pair.b, targets, margin=3)
    assert shown.sum() > 100
    error = place(pair.b, targets[shown]) - place(pair.a, points[shown])
    assert np.abs(error).max() < 0.4  # px; a level is a quarter
    assert np.abs(error.mean(0)).max() < 0.1  # a forgotten half pixel is 0.5


@pytest.mark.parametrize("kind", KINDS)
@given(seed=SEEDS, width=st.integers(8, 40), height=st.integers(8, 40))
def test_any_size_gives_two_pictures_without_empty_border(kind, seed, width, height):
    pair = known_pair(Image.new("RGB", (width, height), "white"), kind, seed)
    assert pair.a.size == pair.b.size == (width, height) and pair.homography.dtype == np.float64
    assert np.asarray(pair.a).min() == np.asarray(pair.b).min() == 255


def test_crops_share_enough_and_a_changed_perspective_shows_only_the_picture():
    picture, edges = Image.new("RGB", (30, 20)), np.array([[-0.5, -0.5], [29.5, 19.5]])
    shares = []
    for seed in range(200):
        (x0, y0), (x1, y1) = project(known_pair(picture, "crops", seed).homography, edges)  # of a, in b
        shared = (min(x1, 29.5) - max(x0, -0.5)) * (min(y1, 19.5) - max(y0, -0.5))
        shares.append(shared / min(600, (x1 - x0) * (y1 - y0)))
        back = np.linalg.inv(known_pair(picture, "homography", seed).homography)
        assert is_inside(
            picture, project(back, np.array([[-0.5, -0.5], [29.5, -0.5], [29.5, 19.5], [-0.5, 19.5]]))
        ).all()
    assert min(shares) > 0.3


def test_identity_and_mirror_are_exact():
    picture = ramps(9, 13)
    same, mirrored = known_pair(picture, "identity"), known_pair(picture, "mirror")
    assert (np.asarray(same.b) == np.asarray(picture)).all() and (same.homography == np.eye(3)).all()
    assert (np.asarray(mirrored.b) == np.asarray(picture)[:, ::-1]).all()
    np.testing.assert_array_equal(project(mirrored.homography, np.array([[0.0, 5], [-0.5, 0]])), [[8, 5], [8.5, 0]])


@pytest.mark.parametrize("kind", ["crops", "homography"])
def test_seed_and_size_alone_decide_the_geometry(kind):
    first, again = known_pair(ramps(40, 30), kind, 5), known_pair(Image.new("RGB", (40, 30)), kind, 5)
    assert (first.homography == again.homography).all()
    assert (np.asarray(first.b) == np.asarray(known_pair(ramps(40, 30), kind, 5).b)).all()
    assert not np.allclose(first.homography, known_pair(ramps(40, 30), kind, 6).homography)


def test_project_divides_by_the_third_coordinate_and_knows_points_without_image():
    homography = np.array([[1.0, 0, 2], [0, 1, 0], [0, 0.5, 1]])
    points = np.array([[1.0, 2], [3, 0], [0, -2]])
    np.testing.assert_array_equal(project(homography, points), [[1.5, 1], [5, 0], [np.inf, -np.inf]])
    assert project(homography, np.empty((0, 2))).shape == (0, 2)


@pytest.mark.parametrize("kind, seed, words", [("upside-down", 0, "identity, mirror, crops"), ("crops", -1, "seed")])
def test_what_cannot_be_made_is_said(kind, seed, words):
    with pytest.raises(DataError, match=words):
        known_pair(ramps(8, 8), kind, seed)
