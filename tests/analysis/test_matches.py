"""Matches of two pictures: what the model's own numbers say, in pixels of the original pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps

from analysis import Workbench
from analysis.matches import COLUMNS, holding
from memssl_core.data.drawn import draw
from memssl_core.errors import ModelError
from memssl_core.model.features import FACETS
from memssl_core.model.matching import RULES
from memssl_core.sources import open_model
from tests.model.test_matching import match_by_loops


@pytest.fixture(scope="module")
def embedded() -> Workbench:
    return Workbench(open_model("embedded"))


@pytest.fixture(scope="module")
def other() -> Image.Image:
    """A portrait of another size than `picture`."""
    small = np.random.default_rng(2).integers(0, 256, (12, 7, 3), np.uint8)
    return Image.fromarray(small).resize((70, 120), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("facet", FACETS)
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_matches_equal_a_recomputation(workbench, picture, other, rule, facet, layer):
    found = workbench.match(picture, other, rule, facet, layer, size=64)
    cells = [workbench.features(one, 64, facet=facet, layer=layer)[0] for one in (picture, other)]
    assert cells[0].shape[:2] == (6, 8) and cells[1].shape[:2] == (8, 5)
    expected = match_by_loops(*(one.reshape(-1, 32).astype(np.float64) for one in cells), rule)
    assert len(found.scores) == len(expected)
    np.testing.assert_allclose(found.scores, [score for *_, score in expected], atol=1e-5)
    assert {tuple(pair) for pair in found.patches.tolist()} == {(i, j) for i, j, _ in expected}
    assert (found.facet, found.layer, found.rule) == (facet, layer, rule)


def test_points_are_the_middles_of_patches_in_pixels_of_each_original(workbench, picture, other):
    found = workbench.match(picture, other, size=64, n=5)
    assert len(found.scores) == 5 and (np.diff(found.scores) <= 0).all()
    for (patch_a, patch_b), a, b in zip(found.patches, found.points_a, found.points_b, strict=True):
        assert found.frame_a.patch_at(*a) == patch_a and found.frame_b.patch_at(*b) == patch_b
        assert tuple(a) == found.frame_a.centre_of(int(patch_a)) and tuple(b) == found.frame_b.centre_of(int(patch_b))
    row = dict(zip(COLUMNS, next(found.rows), strict=True))
    assert (row["row_a"], row["column_a"]) == divmod(int(found.patches[0, 0]), 8)
    assert (row["row_b"], row["column_b"]) == divmod(int(found.patches[0, 1]), 5)


def test_a_picture_with_itself_is_the_identity(embedded, picture):
    for facet in FACETS:
        for layer in range(6):
            found = embedded.match(picture, picture, facet=facet, layer=layer, size=96)
            count = found.frame_a.rows * found.frame_a.columns
            assert sorted(found.patches.tolist()) == [[patch, patch] for patch in range(count)], (facet, layer)


def test_a_mirror_image_is_the_mirrored_grid_for_features_that_hold_the_place(workbench, picture, monkeypatch):
    """Features coded by the place in the upright original: what a perfect model would give."""
    mirrored = ImageOps.mirror(picture)

    def features(image, size=None, **asked):
        _, frame = Workbench.pixels(workbench, image, size)
        x, y = np.array([frame.centre_of(patch) for patch in range(frame.rows * frame.columns)]).T
        x = picture.width - 1 - x if image is mirrored else x
        angles = np.stack([x / picture.width, y / picture.height]) * 3
        coded = np.concatenate([np.cos(angles), np.sin(angles)]).T
        return coded.reshape(frame.rows, frame.columns, 4).astype(np.float32), frame

    monkeypatch.setattr(workbench, "features", features, raising=False)
    for rule in RULES:
        found = workbench.match(picture, mirrored, rule, size=64)
        rows, columns = found.frame_a.rows, found.frame_a.columns
        grid = np.arange(rows * columns).reshape(rows, columns)
        expected = np.stack([grid.ravel(), grid[:, ::-1].ravel()], 1).tolist()
        assert sorted(found.patches.tolist()) == expected


def test_position_can_be_taken_out(workbench, picture, other):
    pair = workbench.pair(picture, other, "token", -1, 64, position=False)
    kept = workbench.pair(picture, other, "token", -1, 64)
    assert np.linalg.matrix_rank(np.concatenate([kept.a - pair.a, kept.b - pair.b]), tol=1e-3) == 2
    assert (
        workbench.match(picture, other, size=64, position=False).summary()
        != workbench.match(picture, other, size=64).summary()
    )


@pytest.mark.parametrize("weights, mass, on", [
    ((0.5, 0.3, 0.15, 0.05), 0.6, (1, 1, 0, 0)),
    ((0.25, 0.35, 0.1, 0.3), 0.6, (0, 1, 0, 1)),
])  # fmt: skip
def test_the_foreground_holds_the_mass(weights, mass, on):
    assert holding(np.array(weights), mass).tolist() == list(map(bool, on))


@pytest.mark.parametrize("by", ["attention", "pca"])
def test_only_matches_with_both_ends_in_the_foreground(workbench, picture, other, by):
    every = workbench.match(picture, other, "argmax", size=64)
    if by == "attention":
        in_a, in_b = workbench.foreground(picture, 64), workbench.foreground(other, 64)
        rows = workbench.attention(picture, -1, "cls", 64).rows.mean(0)[0, 1:]
        assert in_a.sum() < len(in_a) and rows[in_a].sum() >= 0.6 * rows.sum()
        assert rows[in_a].sum() - rows[in_a].min() < 0.6 * rows.sum()  # none of them could be spared
    else:
        in_a, in_b = workbench.pair(picture, other, size=64).foreground_by_pca()
    found = workbench.match(picture, other, "argmax", size=64, foreground=by)
    expected = [pair for pair in every.patches.tolist() if in_a[pair[0]] and in_b[pair[1]]]
    assert found.patches.tolist() == expected and 0 < len(expected) < len(every.scores)


def test_the_foreground_of_drawn_objects_by_pca_is_better_than_its_opposite(embedded):
    """On objects in the middle; the sign of a principal component is arbitrary."""
    right = []
    for index in range(0, 12, 2):
        one, two = draw(3, index, 128), draw(3, index + 1, 128)
        pair = embedded.pair(Image.fromarray(one.image), Image.fromarray(two.image), size=128)
        for mask, front in zip((one.mask, two.mask), pair.foreground_by_pca(), strict=True):
            truth = mask.reshape(16, 8, 16, 8).mean((1, 3)).ravel() > 0.5
            right.append((truth == front).mean())
    assert np.mean(right) > 0.6


def test_a_convolutional_model_matches_cells_of_its_stages(picture, other):
    bench = Workbench(open_model("random:resnet10t"))
    found = bench.match(picture, other, size=128)
    assert found.facet == "token" and found.layer == 4 and (found.frame_a.rows, found.frame_a.columns) == (3, 4)
    fine = bench.match(picture, picture, layer=2, size=128)
    assert len(fine.scores) == fine.frame_a.rows * fine.frame_a.columns == 12 * 16
    with pytest.raises(ModelError, match="no attention"):
        bench.match(picture, other, foreground="attention", size=128)
    assert len(bench.match(picture, picture, foreground="pca", size=128).scores) > 0


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_models_with_registers_or_rotary_positions(name, picture):
    bench = Workbench(open_model(f"random:{name}"))
    found = bench.match(picture, picture, facet="key", layer=1, size=112)
    count = found.frame_a.rows * found.frame_a.columns
    assert sorted(found.patches.tolist()) == [[patch, patch] for patch in range(count)]
    assert bench.foreground(picture, 112).shape == (count,)


@pytest.mark.parametrize("wrong, sentence", [
    ({"rule": "best"}, "by rule 'best'"), ({"n": 0}, "no 0 matches"), ({"facet": "dog"}, "no facet 'dog'"),
    ({"layer": 3}, "blocks 0 to 2"), ({"size": 0}, "long side"),
])  # fmt: skip
def test_mistakes_are_said(workbench, picture, wrong, sentence):
    with pytest.raises(ModelError, match=sentence):
        workbench.match(picture, picture, **wrong)


def test_pictures_are_walked_once_whatever_is_asked(workbench, picture, other, monkeypatch):
    bench = Workbench(workbench.model)
    bench.match(picture, other, size=64)
    monkeypatch.setattr("analysis.tokens.walk", None)
    found = bench.match(picture, other, "argmax", "value", 0, size=64, foreground="attention", position=False)
    assert len(found.scores) > 0
