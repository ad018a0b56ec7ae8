"""Principal components as colours, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from bundle.making import small_bundle
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from sklearn.decomposition import PCA

from analysis import Workbench
from analysis.matches import Pair
from analysis.pca import foreground_by_pca, pca_colours
from memssl_core.data.images import Frame
from memssl_core.sources import open_model


def features(rows: int, columns: int, width: int, seed: int = 0) -> np.ndarray:
    """float32 [rows, columns, width] whose components have clearly different lengths."""
    generator = np.random.default_rng(seed)
    levels = generator.normal(size=(rows * columns, width)) * 0.7 ** np.arange(width)
    turned = levels @ np.linalg.qr(generator.normal(size=(width, width)))[0] + 3
    return turned.reshape(rows, columns, width).astype(np.float32)


def assert_same_up_to_sign(found: np.ndarray, expected: np.ndarray) -> None:
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found, expected * signs, atol=1e-4)


@pytest.mark.parametrize("width", [8, 200])
def test_components_of_one_picture_are_those_of_scikit_learn(width):
    cells = features(6, 9, width)
    known = PCA(3).fit(cells.reshape(-1, width).astype(np.float64))
    found = pca_colours(cells)
    assert_same_up_to_sign(found.a.reshape(-1, 3), known.transform(cells.reshape(-1, width)))
    np.testing.assert_allclose(found.explained, known.explained_variance_ratio_, atol=1e-5)
    assert found.b is found.front_b is found.colours_b is None and found.front_a.all()
    assert found.colours_a.shape == (6, 9, 3) and found.colours_a.dtype == np.uint8


@pytest.mark.parametrize("width", [8, 200])
def test_two_pictures_share_their_components_and_their_colours(width):
    a, b = features(6, 9, width), features(4, 5, width, seed=1)
    both = np.concatenate([a.reshape(-1, width), b.reshape(-1, width)]).astype(np.float64)
    found = pca_colours(a, b)
    together = np.concatenate([found.a.reshape(-1, 3), found.b.reshape(-1, 3)])
    assert_same_up_to_sign(together, PCA(3).fit_transform(both))
    order = np.argsort(together[:, 0])
    shades = np.concatenate([found.colours_a.reshape(-1, 3), found.colours_b.reshape(-1, 3)])[order, 0].astype(int)
    assert (np.diff(shades) >= 0).all() and shades[0] == 0 and shades[-1] == 255


def test_the_foreground_gets_an_analysis_of_its_own():
    cells = features(8, 10, 12)
    cells[2:6, 3:8] += 20 * np.eye(12)[0]  # a thing in the middle
    found = pca_colours(cells, foreground=True)
    expected = np.zeros((8, 10), bool)
    expected[2:6, 3:8] = True
    np.testing.assert_array_equal(found.front_a, expected)
    assert not found.colours_a[~expected].any() and not found.a[~expected].any()
    assert_same_up_to_sign(found.a[expected], PCA(3).fit_transform(cells[expected].astype(np.float64)))


def test_matches_and_colours_agree_about_the_foreground():
    a, b = features(6, 9, 20), features(4, 5, 20, seed=1)
    frames = [Frame(90, 60, *cells.shape[:2], 10, 1, 1) for cells in (a, b)]
    pair = Pair(a.reshape(-1, 20), b.reshape(-1, 20), *frames, "token", 0)
    found = pca_colours(a, b, foreground=True)
    for front, other in zip(pair.foreground_by_pca(), (found.front_a, found.front_b), strict=True):
        np.testing.assert_array_equal(front, other.ravel())


@given(
    arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6)), elements=st.integers(-3, 3)),
    st.booleans(),
)
def test_any_features_have_colours(cells, foreground):
    """Few patches, few channels, equal patches: components that are not there are zeros, everything is a number."""
    found = pca_colours(cells, foreground=foreground)
    assert found.a.shape == found.colours_a.shape == (*cells.shape[:2], 3)
    assert np.isfinite(found.a).all() and np.isfinite(found.explained).all()
    assert 0 <= found.explained.sum() <= 1 + 1e-5
    seen = cells[found.front_a].astype(np.float64)
    rank = np.linalg.matrix_rank(seen - seen.mean(0)) if len(seen) else 0
    assert (np.abs(found.a).reshape(-1, 3).max(0) > 1e-6).sum() == min(rank, 3)


@pytest.mark.parametrize("foreground", [False, True])
@pytest.mark.parametrize("patches", [(1, 1), (2, 2), (5, 7), (20, 30)])
def test_a_constant_picture_has_no_components_but_for_rounding(patches, foreground):
    generator = np.random.default_rng(0)
    cells = np.broadcast_to(generator.normal(size=64) * 100, (*patches, 64)).astype(np.float32)
    cells = cells * (1 + generator.choice([-1e-7, 0, 1e-7], cells.shape).astype(np.float32))
    found = pca_colours(cells, foreground=foreground)
    assert not found.explained.any() and not found.a.any() and not found.colours_a.any()


@given(st.integers(0, 2**31), st.booleans())
def test_what_is_mirrored_is_coloured_as_before(seed, foreground):
    cells = features(5, 6, 7, seed)
    whole, mirrored = (pca_colours(one, foreground=foreground) for one in (cells, cells[:, ::-1]))
    np.testing.assert_allclose(mirrored.a[:, ::-1], whole.a, atol=1e-4)


def test_the_workbench_gives_frames_and_the_last_tokens(workbench, picture):
    other = Image.fromarray(np.asarray(picture)[::-1].copy()).resize((60, 100))
    found = workbench.pca(picture, other, size=96)
    cells, frame = workbench.features(picture, 96)
    assert found.frame_a == frame and found.frame_b.columns * 8 < 96 == found.frame_b.rows * 8
    np.testing.assert_array_equal(found.a, pca_colours(cells, workbench.features(other, 96)[0]).a)
    alone = workbench.pca(picture, facet="key", layer=0, size=96, foreground=True)
    keys = workbench.features(picture, 96, facet="key", layer=0)[0]
    np.testing.assert_array_equal(alone.a, pca_colours(keys, foreground=True).a)
    np.testing.assert_array_equal(alone.front_a, foreground_by_pca([keys])[0])
    assert alone.frame_b is None


def test_a_model_of_feature_maps_has_colours_too(picture):
    found = Workbench(open_model("random:resnet10t")).pca(picture, size=128, layer=2)
    assert found.colours_a.shape == (found.frame_a.rows, found.frame_a.columns, 3)


def test_a_model_without_class_token(tmp_path, picture):
    small_bundle(class_token=False, global_pool="avg").save(tmp_path / "b")
    assert Workbench(open_model(str(tmp_path / "b"))).pca(picture, size=64).a.shape == (6, 8, 3)
