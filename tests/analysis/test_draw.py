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
    heat,
    high,
    inferno,
    neighbours_sheet,
    norms_map,
    pca_sheet,
    shown,
)
from analysis.heads import HeadTable
from analysis.pca import Pca
from memssl_core.data.images import Frame


def test_the_colours_rise_in_lightness():
    colours = inferno(np.linspace(0, 1, 200)).astype(float)
    assert (np.diff(colours @ (0.2126, 0.7152, 0.0722)) >= -1e-9).all()
    assert (inferno(np.array([-1.0, 2.0])) == inferno(np.array([0.0, 1.0]))).all()


def test_the_stronger_a_patch_the_denser_its_colour():
    shares = np.repeat([[0, 0.5, 1]], 5, 1)  # wide enough for the middle to be of one colour
    weights = np.repeat(0.02 * shares, 2, 0)
    drawn = np.asarray(heat(Image.new("RGB", (300, 40), (90, 120, 150)), weights, 0.02, opacity=0.8))
    for x, share in ((50, 0), (150, 0.5), (250, 1)):
        alpha = 0.8 * (0.22 + 0.78 * share)
        expected = (1 - alpha) * np.array([90, 120, 150]) + alpha * inferno(np.array(share))
        np.testing.assert_allclose(drawn[20, x], expected, atol=2)
    edge = drawn[20, 190:211].astype(float)
    assert np.abs(np.diff(edge, axis=0)).max() < 30  # no step from one to the next


def test_sheets_hold_a_tile_for_each(workbench, picture):
    attention = workbench.attention(picture, query=[1, 2])
    one = attention_sheet(picture, attention, tile_px=100)
    assert one.width == 4 * 106 + 6  # picture, mean, two attention heads
    many = neighbours_sheet(picture, workbench.neighbours(picture, k=20), workbench.model.memory, tile_px=96)
    assert many.width == 10 * 102 + 6 and many.height > 2 * 96


GREY = Image.new("RGB", (400, 300), (90, 90, 90))
DARK = np.array([12, 15, 19])


def middles(drawn: Image.Image, rows: int, columns: int) -> np.ndarray:
    """int [rows, columns, 3]: the colour in the middle of each patch."""
    pixels = np.asarray(drawn).astype(int)
    down, across = pixels.shape[0] // rows, pixels.shape[1] // columns
    return pixels[down // 2 :: down, across // 2 :: across][:rows, :columns]


def over(alpha: float, colour: np.ndarray | tuple[int, ...], under: np.ndarray | float = 90.0) -> np.ndarray:
    return alpha * np.array(colour) + (1 - alpha) * under


def test_a_picture_is_reduced_and_never_enlarged():
    assert shown(GREY).size == (400, 300) and shown(GREY.resize((4096, 100))).size == (2048, 50)
    ribbon, weights = GREY.resize((16_384, 8)), np.linspace(1, 2, 64)[None]
    drawn = [attention_map(ribbon, weights, 2, mass=0.5, asked=[3]), norms_map(ribbon, weights, asked=[3])]
    assert [one.size for one in drawn] == [(2048, 1)] * 2


def test_a_ring_at_the_strongest_and_squares_where_it_was_asked():
    weights = np.full((6, 8), 0.01)
    weights[1, 2] = 0.5
    plain, asked = (np.asarray(attention_map(GREY, weights, 0.5, asked=patches)) for patches in ((), (5, 42)))
    for pixels in (plain, asked):
        across, down = pixels[75, 100:150], pixels[50:100, 125]  # through the middle of the patch
        for line in (across, down, across[::-1], down[::-1]):
            assert line[2].min() > 180 and line[0].max() < 120 and line[3].max() < 120  # a ring 23 px wide
    for left, top in ((250, 0), (100, 250)):
        edges = (
            asked[top + 3 : top + 47, left],
            asked[top + 3 : top + 47, left + 50],
            asked[top + 49, left + 3 : left + 47],
        )
        assert all((edge == 255).all() for edge in edges)
        assert asked[top + 25, left + 1].max() < plain[top + 25, left + 1].max()  # its dark edge
        np.testing.assert_array_equal(asked[top + 25, left + 25], plain[top + 25, left + 25])
    big = attention_map(GREY.resize((1600, 1280)), weights, 0.5, asked=[5])
    assert (np.asarray(big)[100, 998:1002] == 255).all()  # lines grow with the picture


def test_a_mass_leaves_the_strongest_patches_in_an_outline():
    weights = np.array([[0.5, 0.3, 0.05], [0.05, 0.05, 0.05]])
    strongest = attention_map(GREY, weights, 0.5, mass=0.7, opacity=0.8)
    seen, dark = middles(strongest, 2, 3), over(0.32, DARK)
    np.testing.assert_allclose(seen[0, 0], over(0.8, inferno(np.array(1)), dark), atol=1)
    np.testing.assert_allclose(seen[0, 1], over(0.8, inferno(np.array(0.6)), dark), atol=1)
    np.testing.assert_allclose(seen.reshape(-1, 3)[2:], np.tile(dark, (4, 1)), atol=1)
    row = np.asarray(strongest)[30].astype(int)  # above the ring
    assert row[266].min() > 150 and np.ptp(row[264:269], 0).min() > 100  # a line beside the two
    np.testing.assert_array_equal(row[140], seen[0, 1])  # and none between them


def test_one_huge_weight_does_not_hide_the_others():
    weights = np.full((20, 20), 0.01)
    weights[:, ::2], weights[3, 3] = 0.02, 5.0
    light = middles(attention_map(GREY, weights, high(weights), mass=0.999), 20, 20).sum(-1)
    assert light[0, 0] - light[0, 1] > 100 and light[3, 3] == light[0, 0]


def test_heads_have_the_colours_they_are_given():
    heads = np.array([[0, 1, 2], [2, 0, -1]])
    seen = middles(coloured_heads(GREY, heads, [3, None, 0], opacity=0.5), 2, 3)
    dark, grey = over(0.2, DARK), (169, 176, 188)
    for place, colour in (((0, 0), PALETTE[3]), ((0, 1), grey), ((0, 2), PALETTE[0]), ((1, 0), PALETTE[0])):
        np.testing.assert_allclose(seen[place], over(0.5, colour, dark), atol=1)
    np.testing.assert_allclose(seen[1, 2], dark, atol=1)
    asked = np.asarray(coloured_heads(GREY, heads, [3, None, 0], asked=[4]))
    assert (asked[160:290, 133] == 255).all()


def test_patches_with_long_tokens_are_ringed():
    norms = np.tile([10.0, 20.0], (6, 4))
    calm = norms_map(GREY, norms)
    np.testing.assert_allclose(middles(calm, 6, 8)[3, 0], over(0.75, inferno(np.array(0))), atol=1)
    np.testing.assert_allclose(middles(calm, 6, 8)[3, 1], over(0.75, inferno(np.array(1))), atol=1)
    norms[2, 3] = 100
    ringed = np.asarray(norms_map(GREY, norms, asked=[47]))
    x, y, radius = 3.5 * 50, 2.5 * 50, 35
    assert ringed[int(y), int(x + radius)].min() > 200 > 60 > ringed[int(y), int(x + radius) + 2].max()
    assert (ringed[255:, 350] == 255).all() and (ringed[255:, 300] < 255).any()


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
