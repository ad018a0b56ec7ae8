"""Pictures on the map: which points get one, when they are fetched, and what is drawn."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import pytest
from browser.map_board import OKABE_ITO, Board, rgb
from PIL import Image
from playwright.sync_api import Page, Route

SIDE_PX = 44
ACCENT = "#0b62c4"
BROKEN = "data:image/png,none"
# Every point has a picture of its own colour; what is asked for is counted; the map is still when `settle` says so
PREPARE = """() => {
  const canvas = Object.assign(document.createElement('canvas'), { width: 8, height: 6 });
  const pen = canvas.getContext('2d'), made = {};
  window.pictureOf = index => {
    pen.fillStyle = `rgb(${40 + index % 200} ${40 + Math.floor(index / 200)} 90)`;
    pen.fillRect(0, 0, 8, 6);
    return made[index] ??= canvas.toDataURL();
  };
  window.asked = [];
  let underWay = 0;
  window.Image = class extends Image {
    decode() { asked.push(this.src); underWay++; return super.decode().finally(() => underWay--); }
  };
  const wait = window.setTimeout, waiting = [];
  window.setTimeout = (act, ms) => (ms === 150 ? -waiting.push(act) : wait(act, ms));
  window.settle = async () => { // and until all pictures are there
    waiting.splice(0).at(-1)?.();
    for (let quiet = 0; quiet < 3; quiet = underWay ? 0 : quiet + 1) await new Promise(requestAnimationFrame);
  };
}"""


@pytest.fixture
def pictured(board: Callable[..., Board]) -> Callable[..., Board]:
    """A board of [side * side] points in a lattice, a little out of place, with pictures; not yet still."""

    def make(side: int = 40, **options) -> Board:
        it = board(**options)
        it.page.evaluate(PREPARE)
        rng = np.random.default_rng(side)
        at = np.linspace(1000, 64_000, side)
        x, y = (values.ravel() + rng.uniform(-600, 600, side * side) for values in np.meshgrid(at, at))
        it.show(x.astype(np.uint16), y.astype(np.uint16))
        return it

    return make


def settle(it: Board, act: str = "") -> None:
    it.page.evaluate(f"() => {{ {act}; return settle(); }}")


def in_order(it: Board) -> list[int]:
    """The points on screen as they are drawn."""
    places, size = it.places(), it.page.evaluate("[map.node.clientWidth, map.node.clientHeight]")
    on_screen = ((places >= 0) & (places < size)).all(1)
    return [i for i in it.page.evaluate("n => [...raster.shuffled(n)]", len(it.x)) if on_screen[i]]


def with_room(it: Board, candidates: list[int], most: int = 120) -> set[int]:
    kept: list[int] = []
    places = it.places()
    for i in candidates:
        if len(kept) < most and (abs(places[kept] - places[i]).max(1) >= SIDE_PX).all():
            kept.append(i)
    return set(kept)


def drawn(it: Board) -> set[int]:
    """The points whose picture lies on them."""
    layer, places = it.pixels(".overlay"), np.floor(it.places()).astype(int)
    return {i for i in in_order(it) if layer[places[i, 1], places[i, 0]].tolist() == [*colour_of(i), 255]}


def colour_of(index: int) -> list[int]:
    return [40 + index % 200, 40 + index // 200, 90]


# ---- the pure functions


@pytest.mark.parametrize(("seed", "side", "most"), [(0, 44, 400), (1, 20, 400), (2, 2, 400), (3, 20, 30)])
def test_squares_with_room_meet_none_before_them(functions: Page, seed: int, side: int, most: int):
    x, y = np.random.default_rng(seed).integers(0, 400, (2, 400))
    call = "([x, y, side, most]) => mappictures.withRoom(x, y, side, most)"
    found = functions.evaluate(call, [x.tolist(), y.tolist(), side, most])
    taken, expected = np.zeros((500, 500), bool), []  # pixel by pixel
    for i in range(400):
        square = taken[y[i] : y[i] + side, x[i] : x[i] + side]
        if not square.any() and len(expected) < most:
            square[:] = True
            expected.append(i)
    assert found == expected and len(found) > 20
    assert found == functions.evaluate(call, [x.tolist(), y.tolist(), side, most])
    touching = "mappictures.withRoom([0, 10, 19.9, 20.1], [0, 0, 0, 0], 10, 9)"
    assert functions.evaluate(touching) == [0, 1, 3]


def test_the_images_used_last_are_kept(functions: Page):
    rng = np.random.default_rng(0)
    asks = [rng.choice(12, 2, replace=False).tolist() for _ in range(80)]  # one to look up, one to bring
    found = functions.evaluate(
        """async asks => {
          const own = Image, found = [], asked = [];
          window.Image = class { set src(url) { asked.push(url); } decode() { return Promise.resolve(); } };
          const cache = mappictures.imageCache(() => {}, 5);
          for (const [a, b] of asks) {
            found.push(Boolean(cache.get(`${a}`)));
            cache.want([`${b}`, `${b}`]);
            await new Promise(done => setTimeout(done));
          }
          window.Image = own;
          return [found, asked.map(Number)];
        }""",
        asks,
    )
    kept: OrderedDict[int, None] = OrderedDict()
    looked, brought = [], []
    for a, b in asks:
        looked.append(a in kept)
        if a in kept:
            kept.move_to_end(a)
        if b not in kept:
            brought.append(b)
            kept[b] = None
            if len(kept) > 5:
                kept.popitem(last=False)
    assert found == [looked, brought] and 20 < sum(looked) < 60


# ---- on screen


def test_pictures_appear_when_near_and_still(pictured):
    it = pictured()
    it.colour("category", np.full(1600, 5))
    settle(it)
    assert it.state["pictures"] == 0 and it.heard("picture") == []  # too many points
    it.page.evaluate("() => { map.goTo(820, 3); return still(); }")
    assert it.heard("picture") == [] and it.page.evaluate("asked") == []  # it moves
    settle(it)
    candidates = in_order(it)
    assert it.heard("picture") == candidates and 120 < len(candidates) <= 400
    expected = with_room(it, candidates)
    assert drawn(it) == expected and 40 < len(expected) < len(candidates)
    assert len(it.page.evaluate("asked")) == len(expected)

    layer = it.pixels(".overlay")
    first = candidates[0]
    x, y = np.round(it.places()[first] - SIDE_PX / 2).astype(int)
    row = layer[y + SIDE_PX // 2, x : x + SIDE_PX, :3].tolist()
    rims = [rgb("#ffffff").tolist()] * 2 + [rgb(OKABE_ITO[5]).tolist()] * 2
    assert row == rims + [colour_of(first)] * (SIDE_PX - 8) + rims[::-1]
    assert (layer[y : y + 2, x : x + SIDE_PX] == 255).all() and layer[y + 3, x + 20, :3].tolist() == rims[2]

    settle(it, "map.goTo(300, 7)")
    settle(it, "map.goTo(820, 3)")
    assert drawn(it) == expected  # the same view shows the same
    settle(it, "map.fit()")
    assert it.state["pictures"] == 0 and not it.pixels(".overlay").any()


def test_pictures_move_with_their_points_and_nothing_is_asked_for_meanwhile(pictured):
    it = pictured()
    settle(it, "map.goTo(820, 5)")
    before = with_room(it, in_order(it))
    asked, heard = len(it.page.evaluate("asked")), len(it.heard("picture"))
    it.drag([(300, 200), (340, 220), (380, 250)])
    assert drawn(it) == before & set(in_order(it)) != before
    it.page.mouse.move(*it.window((20, 20)))
    it.page.mouse.wheel(0, -100)
    it.still()
    assert drawn(it) == before & set(in_order(it)) and it.state["zoom"] == pytest.approx(5 * 2 ** (1 / 3))
    assert len(it.page.evaluate("asked")) == asked and len(it.heard("picture")) == heard
    settle(it)
    after = with_room(it, in_order(it))
    assert drawn(it) == after and after - before

    # what was under way when it began to move is not followed by more
    it.page.evaluate(
        """() => {
          window.drop = [];
          const decode = () => new Promise((_, no) => drop.push(no));
          window.Image = class { set src(url) { asked.push(url); this.decode = decode; } };
        }"""
    )
    settle(it, "map.goTo(100, 5); asked.length = 0")
    assert len(it.page.evaluate("asked")) == 6
    it.page.evaluate("() => { map.goTo(100, 5.1); for (const no of drop) no(); return still(); }")
    assert len(it.page.evaluate("asked")) == 6
    settle(it)
    assert len(it.page.evaluate("[...new Set(asked)]")) == len(it.page.evaluate("asked")) == 12


def test_pictures_are_switched_off_and_on(pictured):
    it = pictured()
    settle(it, "map.goTo(820, 5)")
    expected = with_room(it, in_order(it))
    asked = len(it.page.evaluate("asked"))
    it.page.evaluate("() => { heard.length = 0; map.pictures(false); return still(); }")
    assert it.state["pictures"] == 0 and not it.pixels(".overlay").any()
    settle(it, "map.goTo(100, 6)")
    assert it.heard("picture") == [] and it.state["pictures"] == 0
    settle(it, "map.goTo(820, 5)")
    it.page.evaluate("() => { map.pictures(true); return still(); }")
    assert drawn(it) == expected and len(it.page.evaluate("asked")) == asked  # they were kept
    it.page.evaluate("() => { map.goTo(820, 5.2); map.pictures(false); return still(); }")
    assert it.state["pictures"] == 0  # while it moves too


def test_what_has_no_picture_or_a_broken_one_leaves_room_to_others(pictured):
    it = pictured(10)
    it.page.evaluate(
        f"const own = pictureOf; pictureOf = i => i % 3 === 0 ? null : i % 3 === 1 ? '{BROKEN}' + i : own(i)"
    )
    settle(it)
    expected = with_room(it, [i for i in in_order(it) if i % 3 == 2])
    assert drawn(it) == expected
    for act in ("map.goTo(55, 1.2)", "map.goTo(55, 0.8)", "map.fit()"):
        settle(it, act)
    assert drawn(it) == expected
    asked = it.page.evaluate("asked")
    assert len(set(asked)) == len(asked) and sum(url.startswith(BROKEN) for url in asked) > 15


def test_what_is_greyed_has_no_picture(pictured):
    it = pictured(10)
    settle(it)
    mask = (np.random.default_rng(0).random(100) < 0.4).astype(int)
    before = drawn(it)
    it.page.evaluate("on => { map.goTo(55, 1.01); map.dim(Uint8Array.from(on)); return still(); }", mask.tolist())
    assert it.state["pictures"] == len([i for i in before if mask[i]]) < len(before)  # at once, though it moves
    settle(it)
    assert drawn(it) == with_room(it, [i for i in in_order(it) if mask[i]])
    settle(it, "map.dim(null)")
    assert drawn(it) == with_room(it, in_order(it))


def test_another_map_forgets_the_pictures_and_another_layout_does_not(pictured):
    it = pictured(8)
    settle(it)
    settle(it, "map.goTo(27, 1.6)")
    x, y = it.x.astype(int), it.y.astype(int)
    it.show(y[::-1], x)  # as many points
    settle(it)
    assert drawn(it) == with_room(it, in_order(it))
    settle(it, "document.getElementById('box').style.width = '322px'")
    assert drawn(it) == with_room(it, in_order(it))
    asked = it.page.evaluate("asked")
    assert len(set(asked)) == len(asked)
    it.show(x[:63], y[:63])
    assert it.state["pictures"] == 0
    settle(it)
    assert len(set(it.page.evaluate("asked"))) < len(it.page.evaluate("asked"))


def test_marks_lie_over_the_pictures_and_a_click_on_one_means_its_point(pictured):
    it = pictured(4)
    settle(it)
    spot = it.places()[6]
    corner = spot + [SIDE_PX / 2 - 2, 3 - SIDE_PX / 2]
    it.page.mouse.move(*it.window(corner))
    it.still()
    assert it.state["hovered"] == 6
    column, row = np.floor(spot).astype(int)
    assert it.pixels(".overlay")[row, column + 6, :3].tolist() != it.pixels(".overlay")[row, column + 12, :3].tolist()
    it.page.mouse.click(*it.window(corner))
    it.page.mouse.click(*it.window(corner + [6, -6]))
    assert it.heard("pick") == [6, None]
    it.page.evaluate("() => { map.marks({ pinned: 6 }); return still(); }")
    assert it.pixels(".overlay")[row, column, :3].tolist() == rgb(ACCENT).tolist()
    assert it.state["pictures"] == len(it.heard("picture")) == 16  # chosen once for this view


def test_the_png_holds_the_pictures_of_the_server(pictured):
    it = pictured(3)
    requests = []

    def serve(route: Route) -> None:
        requests.append(route.request.url)
        data = io.BytesIO()
        tall = Image.new("RGB", (30, 90), (250, 0, 0))
        tall.paste((10, 200, 30), (0, 25, 30, 65))  # shown are the middle 30 x 30
        tall.save(data, "PNG")
        route.fulfill(body=data.getvalue(), content_type="image/png")

    it.page.route("**/thumb/*", serve)
    it.page.evaluate("pictureOf = index => `/thumb/${index}`")
    settle(it)
    assert len(requests) == 9
    png = it.page.evaluate("async () => [...new Uint8Array(await (await map.png()).arrayBuffer())]")
    image = np.array(Image.open(io.BytesIO(bytes(png))).convert("RGB"))
    columns, rows = np.floor(it.places()).astype(int).T
    for up in (-SIDE_PX // 2 + 6, 0, SIDE_PX // 2 - 6):
        assert image[rows + up, columns].tolist() == [[10, 200, 30]] * 9
