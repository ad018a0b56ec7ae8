"""Pictures for files: the strongest patch is the lightest, and every map has its tile."""

from __future__ import annotations

import numpy as np
from PIL import Image

from analysis.draw import (
    PALETTE,
    attention_map,
    attention_sheet,
    coloured_heads,
    head_table_sheet,
    inferno,
    neighbours_sheet,
    norms_map,
    overlay,
    pca_sheet,
)
from analysis.heads import HeadTable
from analysis.pca import Pca
from memssl_core.data.images import Frame


def test_the_colours_rise_in_lightness():
    colours = inferno(np.linspace(0, 1, 200)).astype(float)
    assert (np.diff(colours @ (0.2126, 0.7152, 0.0722)) >= -1e-9).all()
    assert (inferno(np.array([-1.0, 2.0])) == inferno(np.array([0.0, 1.0]))).all()


def test_the_overlay_is_lightest_where_attention_is_strongest():
    weights = np.full((3, 4), 0.01)
    weights[1, 2] = 0.5
    drawn = np.asarray(overlay(Image.new("RGB", (80, 60), (90, 90, 90)), weights).convert("L"))
    assert drawn.shape == (60, 80)
    assert np.unravel_index(drawn.reshape(3, 20, 4, 20).mean((1, 3)).argmax(), (3, 4)) == (1, 2)


def test_sheets_hold_a_tile_for_each(workbench, picture):
    attention = workbench.attention(picture, query=[1, 2])
    one = attention_sheet(picture, attention, tile_px=100)
    assert one.width == 4 * 106 + 6  # picture, mean, two attention heads
    many = neighbours_sheet(picture, workbench.neighbours(picture, k=20), tile_px=96)
    assert many.width == 10 * 102 + 6 and many.height > 2 * 96


GREY = Image.new("RGB", (400, 300), (90, 90, 90))


def middles(drawn: Image.Image, rows: int, columns: int) -> np.ndarray:
    """int [rows, columns, 3]: the colour in the middle of each patch."""
    pixels = np.asarray(drawn).astype(int)
    down, across = pixels.shape[0] // rows, pixels.shape[1] // columns
    return pixels[down // 2 :: down, across // 2 :: across][:rows, :columns]


def test_a_mass_leaves_the_strongest_patches_in_an_outline():
    weights = np.array([[0.5, 0.3, 0.05], [0.05, 0.05, 0.05]])
    whole, strongest = (attention_map(GREY, weights, mass=mass, side_px=300) for mass in (1, 0.7))
    assert whole.size == strongest.size == (300, 225)
    seen = middles(strongest, 2, 3)
    np.testing.assert_array_equal(seen[0, :2], middles(whole, 2, 3)[0, :2])
    dark = seen.reshape(-1, 3)[2:]
    assert (dark == dark[0]).all() and (dark[0] == dark[0, 0]).all() and dark[0, 0] < 90
    assert np.asarray(strongest)[56, 200].min() == 255 > np.asarray(strongest)[56, 100].min()  # a line beside the two


def test_one_huge_weight_does_not_hide_the_others():
    weights = np.full((20, 20), 0.01)
    weights[:, ::2], weights[3, 3] = 0.02, 5.0
    light = middles(attention_map(GREY, weights, side_px=400, clip=0.99), 20, 20).sum(-1)
    assert light[0, 0] - light[0, 1] > 100 and light[3, 3] == light[0, 0]


def test_heads_have_the_colours_they_are_given():
    heads = np.array([[0, 1, 2], [2, 0, -1]])
    seen = middles(coloured_heads(GREY, heads, [3, None, 0], opacity=1, side_px=300), 2, 3)
    assert [tuple(seen[0, 0]), tuple(seen[0, 2]), tuple(seen[1, 0])] == [PALETTE[3], PALETTE[0], PALETTE[0]]
    assert len({*seen[0, 1].tolist()}) == len({*seen[1, 2].tolist()}) == 1  # greys
    assert seen[0, 1, 0] > seen[1, 2, 0]


def test_patches_with_long_tokens_are_ringed():
    norms = np.full((6, 8), 10.0)
    calm = norms_map(GREY, norms, side_px=400)
    norms[2, 3] = 100
    ringed = np.asarray(norms_map(GREY, norms, side_px=400))
    x, y, radius = 3.5 * 50, 2.5 * 50, 35
    assert ringed[int(y), int(x + radius)].min() == 255 > ringed[int(y), int(x + radius) + 2].max()
    np.testing.assert_array_equal(ringed[250:], np.asarray(calm)[250:])


def test_the_table_is_darkest_where_the_head_matters_most():
    kl = np.array([[0.1, 0.0, 0.02], [0.9, 0.3, 0.0]], np.float32)
    for table in (HeadTable(kl, kl, kl, 20, 43, 0.07, (0, 1)), HeadTable(None, None, kl, 20, 0, None, (0, 1))):
        drawn = np.asarray(head_table_sheet(table, cell_px=40).convert("L")).astype(int)
        corners = drawn[42::20, 62::40][:2, :3]  # where no number stands
        assert np.unravel_index(corners.argmin(), (2, 3)) == (1, 0)
        assert (np.argsort(corners.ravel(), kind="stable")[:3] == [3, 4, 0]).all()


def test_components_stand_beside_their_pictures(workbench, picture):
    found = workbench.pca(picture, picture.rotate(90, expand=True), size=64)
    sheet = pca_sheet(found, [picture, picture.rotate(90, expand=True)], side_px=200)
    assert sheet.width == 4 * 206 + 6
    rows, columns = found.front_a.shape
    tile = np.asarray(sheet)[22 : 22 + 138, 6 + 206 : 6 + 206 + 200]
    np.testing.assert_array_equal(tile[138 // rows // 2, 200 // columns // 2], found.colours_a[0, 0])


def test_components_lie_where_the_model_looked():
    """Of a wide picture a model saw the square in the middle; what it did not see stays grey."""
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8)
    frame = Frame(400, 200, 2, 2, 10, 0.1, 0.1, left_px=10)
    found = Pca(np.zeros((2, 2, 3)), None, np.ones((2, 2), bool), None, np.zeros(3), colours, None, frame)
    wide = Image.new("RGB", (400, 200), (90, 90, 90))
    sheet = np.asarray(pca_sheet(found, [wide], side_px=400))
    shown = sheet[-(200 + 6) : -6, -(400 + 6) : -6]
    seen = middles(Image.fromarray(shown), 2, 4)
    np.testing.assert_array_equal(seen[:, 1:3], colours)
    assert (seen[:, [0, 3]] == 90).all()
