"""The numbers of the map against NumPy and slow loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from browser.map_board import SIDE, cloud, disc, winding


@pytest.mark.parametrize(("size", "rim"), [(1, 0), (2, 0), (3, 0), (4, 1), (5, 2)])
def test_dots_are_painted_as_by_loops(functions, size: int, rim: int):
    rng = np.random.default_rng(size)
    n, width, height, edge = 400, 60, 40, 8
    x, y, level, on = (rng.integers(0, top, n) for top in (SIDE, SIDE, 256, 2))
    scale, left, top = 0.0013, 9.25, 11.5
    given = [*(values.tolist() for values in (x, y, level, on)), width, height, edge, scale, left, top, size, rim]
    found = functions.evaluate(
        """([x, y, level, on, width, height, edge, scale, left, top, size, rim]) => {
          const points = { x: Uint16Array.from(x), y: Uint16Array.from(y) }, view = { scale, left, top };
          const pixel = raster.placed(points, x.length, view, width, height, edge);
          const shape = raster.dot(size, width, rim), levels = Uint8Array.from(level), mask = Uint8Array.from(on);
          const colours = Uint32Array.from({ length: 256 }, (_, i) => 1000 + i), rims = colours.map(c => c + 1000);
          const painted = new Uint32Array(width * height), tallied = new Uint32Array(width * height);
          raster.paint(painted, pixel, x.length, levels, mask, shape, colours, rims);
          raster.paintBelow(painted, pixel, x.length, mask, shape, 7);
          raster.tally(tallied, pixel, x.length, levels, mask, shape);
          const counted = [...tallied];
          raster.shade(tallied, Uint32Array.from({ length: 256 }, () => 0xff00ff00), 0.25, 20);
          const seen = [...raster.inView(points, view, width, height)];
          return [[...painted], counted, [...tallied].map(p => p >>> 24), seen];
        }""",
        given,
    )
    painted, counts, last = (np.zeros((height, width), int) for _ in range(3))
    inner, outer = disc(size, rim)
    px, py = x * scale - left, y * scale - top
    kept = (px >= edge) & (py >= edge) & (px < width - edge) & (py < height - edge)
    assert 50 < kept.sum() < n
    for i in np.flatnonzero(kept & (on == 1)):
        row, column = math.floor(py[i]), math.floor(px[i])
        for dy, dx in outer:
            painted[row + dy, column + dx] = 2000 + level[i]
        for dy, dx in inner:
            painted[row + dy, column + dx] = 1000 + level[i]
            counts[row + dy, column + dx] += 1
            last[row + dy, column + dx] = level[i]
    for i in np.flatnonzero(kept & (on == 0)):
        for dy, dx in inner:
            at = math.floor(py[i]) + dy, math.floor(px[i]) + dx
            painted[at] = painted[at] or 7
    assert found[0] == painted.ravel().tolist()
    assert found[1] == (counts * 256 + last).ravel().tolist()
    share = np.minimum(1, np.log(np.maximum(counts, 1)) / np.log(20))
    alphas = np.where(counts > 0, np.floor(255 * (0.25 + 0.75 * share) + 0.5), 0)
    assert found[2] == alphas.ravel().astype(int).tolist()
    assert found[3] == np.flatnonzero((px >= 0) & (py >= 0) & (px < width) & (py < height)).tolist()


def test_the_order_of_drawing_is_a_fixed_shuffle(functions):
    order = functions.evaluate("[...raster.shuffled(5000)]")
    assert sorted(order) == list(range(5000)) and order == functions.evaluate("[...raster.shuffled(5000)]")
    blocks = np.array(order).reshape(10, 500) // 500  # each tenth holds some of each tenth
    counts = np.array([np.bincount(block, minlength=10) for block in blocks])
    assert counts.min() > 25 and counts.max() < 80
    assert functions.evaluate("[...raster.shuffled(0), ...raster.shuffled(1)]") == [0]


def test_the_nearest_point_is_that_of_brute_force(functions):
    rng = np.random.default_rng(0)
    x, y, _ = cloud(3000)
    x, y = (np.concatenate([values[:1500], values[:1500], values[1500:] // 512 * 512]) for values in (x, y))  # ties
    places = np.concatenate([rng.uniform(-5000, SIDE + 5000, (250, 2)), rng.integers(0, 128, (50, 2)) * 512 + 256.0])
    for reach in (40.0, 700.0, 3000.0, 100_000.0):
        found = functions.evaluate(
            """([x, y, places, reach]) => {
              const points = { x: Uint16Array.from(x), y: Uint16Array.from(y) }, grid = raster.grid(points);
              return places.map(([a, b]) => raster.nearest(points, grid, a, b, reach));
            }""",
            [x.tolist(), y.tolist(), places.tolist(), reach],
        )
        away = (x[None].astype(float) - places[:, :1]) ** 2 + (y[None].astype(float) - places[:, 1:]) ** 2
        best = away.argmin(1)  # of equals the lowest index
        expected = [int(i) if away[row, i] <= reach**2 else None for row, i in enumerate(best)]
        assert found == expected
    assert (np.sort(away, 1)[:, 0] == np.sort(away, 1)[:, 1]).sum() > 50  # ties there were


@pytest.mark.parametrize("seed", range(3))
def test_what_a_line_goes_round(functions, seed: int):
    rng = np.random.default_rng(seed)
    polygon, places = rng.uniform(0, 100, (9, 2)), rng.uniform(-10, 110, (300, 2))
    call = "([polygon, places]) => places.map(([x, y]) => raster.goesRound(polygon, x, y))"
    found = functions.evaluate(call, [polygon.tolist(), places.tolist()])
    assert found == [winding(polygon, place) != 0 for place in places]
    assert 20 < sum(found) < 280


def test_a_card_stays_inside_and_beside_its_point(functions):
    rng = np.random.default_rng(0)
    cases = []
    for _ in range(500):
        box = rng.uniform(150, 1500, 2)
        cases.append([*(rng.uniform(0, 1, 2) * box), *rng.uniform(40, 400, 2), *box])
    found = functions.evaluate("cases => cases.map(given => mapcanvas.cardPlace(...given))", np.array(cases).tolist())
    for (x, y, width, height, box_width, box_height), at in zip(cases, found, strict=True):
        left, top = at["left"], at["top"]
        assert left >= 0 and top >= 0
        assert left + width <= max(box_width, width) + 1e-9 and top + height <= max(box_height, height) + 1e-9
        has_room = max(x, box_width - x) >= width + 16 or max(y, box_height - y) >= height + 16
        if has_room and width <= box_width and height <= box_height:
            assert not (left < x < left + width and top < y < top + height)


# ---- on screen
