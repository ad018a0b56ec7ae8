"""What the map draws, finds under the pointer and selects."""

from __future__ import annotations

import numpy as np
import pytest
from browser.map_board import HEIGHT, OKABE_ITO, SIDE, WIDTH, cloud, disc, rgb, winding


def test_points_are_drawn_where_they_lie(board):
    it = board()
    x, y, label = cloud(20_000)
    it.page.evaluate("map.density('off')")
    it.show(x, y)
    it.colour("category", np.full(len(x), 1))
    pixels, places = it.pixels(), it.places()
    assert pixels.shape == (HEIGHT, WIDTH, 4) and it.state["count"] == len(x)
    columns, rows = np.floor(places).astype(int).T
    inner, _ = disc(int(it.state["size"]), 0)
    expected = np.zeros((HEIGHT, WIDTH), bool)
    for dy, dx in inner:
        expected[rows + dy, columns + dx] = True
    assert np.array_equal(pixels[..., 3] > 0, expected)
    assert (pixels[expected][:, :3] == rgb(OKABE_ITO[1])).all()


def test_every_category_has_its_colour_and_more_than_eight_are_grey(board):
    it = board()
    x, y = (np.tile(np.linspace(0, SIDE - 1, 4), 3), np.repeat([0, SIDE // 2, SIDE - 1], 4))
    it.show(x, y)
    columns, rows = np.floor(it.places()).astype(int).T

    def colours() -> list[list[int]]:
        return it.pixels()[rows, columns, :3].tolist()

    kinds = np.arange(12)
    it.colour("category", kinds)
    assert colours() == [rgb(OKABE_ITO[kind] if kind < 8 else OKABE_ITO[0]).tolist() for kind in kinds]
    chosen = [0, 0, 7, 6, 5, 4, 3, 2, 1, 0, 3]  # the last has none
    it.colour("category", kinds, chosen)
    assert colours() == [rgb(OKABE_ITO[number]).tolist() for number in [*chosen, 0]]
    it.colour("category", np.full(12, 255))
    assert colours() == [rgb(OKABE_ITO[0]).tolist()] * 12
    for scale in ("cividis", "age"):
        values = np.linspace(0, 255, 12).astype(int)
        it.colour("scale", values, scale)
        levels = np.array(it.page.evaluate("[...map.levels]")).reshape(256, 3)
        assert colours() == levels[values].tolist()
        lightness = levels @ [0.2126, 0.7152, 0.0722]
        assert (np.diff(lightness) * np.sign(lightness[-1] - lightness[0]) > -1).all()
        assert all(abs(lightness - 255) > 35)  # none is lost on white
    refused = (
        "() => { try { map.colour({ kind: 'category', values: new Uint8Array(3) }); } catch (e) { return e.message; } }"
    )
    assert it.page.evaluate(refused) == "3 colours for 12 points"


@pytest.mark.parametrize(("palette", "dark", "grey"), [("cividis", False, OKABE_ITO[0]), ("age", True, "#59636f")])
def test_on_a_scale_with_unknown_values_they_are_grey(board, palette: str, dark: bool, grey: str):
    it = board(dark=dark)
    it.show(np.linspace(0, SIDE - 1, 6), np.linspace(0, SIDE - 1, 6))
    colour = """([values, palette, none]) => {
      map.colour({ kind: 'scale', values: Uint8Array.from(values), palette, none });
      return still().then(() => [...map.levels]);
    }"""
    columns, rows = np.floor(it.places()).astype(int).T
    values = np.array([0, 1, 2, 128, 255, 0])
    pure = it.page.evaluate(colour, [values.tolist(), palette, False])
    levels = np.array(pure).reshape(256, 3)
    assert it.pixels()[rows, columns, :3].tolist() == levels[values].tolist()
    assert it.page.evaluate(colour, [values.tolist(), palette, True]) == pure
    expected = np.where(values[:, None] == 0, rgb(grey), levels[values])
    assert it.pixels()[rows, columns, :3].tolist() == expected.tolist() and rgb(grey).tolist() != levels[0].tolist()


@pytest.mark.parametrize("density", ["off", "on"])
def test_what_is_greyed_is_still_there(board, density: str):
    it = board()
    x, y, label = cloud(5000)
    it.page.evaluate("density => map.density(density)", density)
    it.show(x, y)
    it.colour("category", label % 8)
    before = it.pixels()[..., 3] > 0
    it.page.evaluate("on => { map.dim(Uint8Array.from(on)); return still(); }", (label == 1).astype(int).tolist())
    after = it.pixels()
    assert np.array_equal(after[..., 3] > 0, before)
    columns, rows = np.floor(it.places()[label == 1]).astype(int).T
    assert (after[rows, columns, :3] == rgb(OKABE_ITO[1])).all() or density == "on"  # there alpha rounds the colour
    grey = after[before & (after[..., 3] == 255)]
    assert len(np.unique(grey[:, :3], axis=0)) <= (2 if density == "off" else 3)
    it.page.evaluate("() => { map.dim(null); return still(); }")
    assert len(np.unique(it.pixels()[before][:, :3], axis=0)) >= 8


def test_density_shows_how_many_lie_on_a_pixel(board):
    it = board()
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [[0, SIDE - 1], np.full(400, 20_000), np.full(20, 40_000), [50_000], rng.integers(0, SIDE, 2000)]
    )
    y = np.concatenate([[0, SIDE - 1], np.full(421, 30_000), rng.integers(0, 20_000, 2000)])
    it.show(x, y)
    it.colour("category", np.full(len(x), 1))
    it.page.evaluate("() => { map.density('on'); return still(); }")
    assert it.state["dense"]
    columns, rows = np.floor(it.places()[[2, 410, 422]]).astype(int).T
    many, some, one = it.pixels()[rows, columns, 3].tolist()
    assert many > some > one > 50
    it.page.evaluate("() => { map.density('off'); return still(); }")
    assert it.pixels()[rows, columns, 3].tolist() == [255, 255, 255] and not it.state["dense"]


def test_dots_grow_with_the_zoom_and_density_goes(board):
    it = board()
    it.show(*cloud(60_000)[:2])
    seen = []
    for _ in range(14):
        it.still()
        seen.append((it.state["size"], it.state["dense"]))
        it.page.get_by_role("button", name="Zoom in").click()
    sizes, dense = zip(*seen, strict=True)
    assert sizes[0] == 1 and sizes[-1] == 5 and list(sizes) == sorted(sizes)
    assert dense[0] and not dense[-1] and list(dense) == sorted(dense, reverse=True)


HOVERS = """places => {
  const canvas = map.node.querySelector('.overlay'), box = canvas.getBoundingClientRect();
  return places.map(([x, y]) => {
    const at = { clientX: box.left + x, clientY: box.top + y };
    canvas.dispatchEvent(new PointerEvent('pointermove', { ...at, bubbles: true, pointerType: 'mouse' }));
    return map.state.hovered;
  });
}"""


@pytest.mark.parametrize("zoom", [1, 6, 60])
def test_hover_finds_what_brute_force_finds(board, zoom: int):
    it = board()
    rng = np.random.default_rng(zoom)
    x, y, _ = cloud(20_000)
    x[1::2], y[1::2] = x[::2], y[::2]  # each point twice: the lower index is meant
    it.show(x, y)
    it.page.evaluate("zoom => { map.goTo(200, zoom); return still(); }", zoom)
    near = it.places()
    near = near[((near > 0) & (near < [WIDTH, HEIGHT])).all(1)]
    spots = np.concatenate(
        [rng.uniform(0, 1, (200, 2)) * [WIDTH, HEIGHT], rng.choice(near, 100) + rng.normal(size=(100, 2)) * 6]
    )
    found = it.page.evaluate(HOVERS, spots.tolist())
    away = np.hypot(*(it.places()[None] - spots[:, None]).transpose(2, 0, 1))
    # exact in coordinates; in px two points may differ by a rounding, so compare distances, then evenness
    for spot, index in zip(away, found, strict=True):
        least = spot.min()
        if abs(least - 10) < 1e-6:
            continue
        assert (index is None) == (least > 10)
        assert index is None or (spot[index] == pytest.approx(least, abs=1e-6) and index % 2 == 0)
    assert sum(index is not None for index in found) > 50
    index, at = it.page.evaluate("heard.filter(told => told[0] === 'hover' && told[1] !== null).at(-1).slice(1)")
    assert [at["x"], at["y"]] == pytest.approx(it.window(it.places()[index]), abs=0.01)  # where a card goes


def lassos() -> list[np.ndarray]:
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    round_ = np.stack([330 + 150 * np.cos(turn), 200 + 120 * np.sin(turn)], 1)
    eight = np.stack([350 + 200 * np.sin(turn), 210 + 120 * np.sin(2 * turn)], 1)
    twice = np.stack([350 + (90 + 4 * turn) * np.cos(2 * turn), 210 + (90 + 4 * turn) * np.sin(2 * turn)], 1)
    return [
        round_,
        eight,
        twice,
        np.array([[100.0, 50], [600, 60], [640, 500], [300, 90]]),
    ]  # the last one leaves the map


@pytest.mark.parametrize("zoom", [1, 5])
def test_a_lasso_takes_what_lies_in_its_line(board, zoom: int):
    it = board()
    it.show(*cloud(2500)[:2])
    it.page.evaluate("zoom => { map.goTo(10, zoom); map.mode('lasso'); return still(); }", zoom)
    places = it.places()
    on_screen = ((places >= 0) & (places < [WIDTH, HEIGHT])).all(1)
    for polygon in lassos():
        spots = [(round(x), round(y)) for x, y in polygon]
        it.drag(spots)
        expected = [i for i in np.flatnonzero(on_screen) if winding(np.array(spots, float), places[i]) != 0]
        assert it.selected() == expected and len(expected) > 10
    it.drag([(50, 50), (51, 51)])  # no line but a click
    assert len(it.heard("select")) == 4 and len(it.heard("pick")) == 1


def test_a_box_takes_what_lies_in_it(board):
    it = board()
    it.show(*cloud(6000)[:2])
    it.page.evaluate("map.mode('box')")
    places = it.places()
    for a, b in (((100, 80), (420, 300)), ((500, 390), (300, 110))):
        it.drag([a, (10, 20), (200, 333), b])
        low, high = np.minimum(a, b), np.maximum(a, b)
        assert it.selected() == np.flatnonzero(((places > low) & (places < high)).all(1)).tolist()
        assert len(it.selected()) > 100
