"""The map moved, zoomed, recoloured and left, by mouse, keys and touch."""

from __future__ import annotations

import io

import numpy as np
import pytest
from browser.map_board import HEIGHT, OKABE_ITO, SIDE, WIDTH, Board, cloud, rgb, winding
from PIL import Image
from playwright.sync_api import CDPSession, expect


def view(it: Board) -> tuple[float, float, float]:
    state = it.state
    return state["x"], state["y"], state["zoom"]


def test_the_view_stays_when_the_map_is_recoloured(board):
    it = board()
    x, y, label = cloud(3000)
    it.show(x, y)
    node = it.page.evaluate_handle("map.node.querySelector('canvas')")
    it.drag([(300, 200), (340, 220), (410, 250)])
    it.page.mouse.wheel(0, -600)
    it.still()
    before = view(it)
    assert before[2] == pytest.approx(4)
    it.colour("category", label)
    it.colour("scale", label * 20, "cividis")
    it.page.evaluate("on => map.dim(Uint8Array.from(on))", (label > 3).astype(int).tolist())
    it.show(x[::-1], y[::-1])  # another layout of as many points
    assert view(it) == before
    it.page.evaluate("map.marks({ pinned: 5, links: [1, 2], labels: [{ x: 9, y: 9, text: 'cat' }] })")
    it.show(*cloud(2999)[:2])
    assert view(it)[2] == 1
    assert it.page.evaluate("([node]) => node === map.node.querySelector('canvas')", [node])  # never mounted again
    it.show(np.array([], int), np.array([], int))
    assert it.pixels().sum() == 0 and it.state["total"] == 0
    it.page.mouse.move(*it.window((200, 200)))
    it.show(np.array([7]), np.array([9]))
    assert it.pixels()[..., 3].sum() > 0


def test_dragging_moves_the_map_with_the_pointer(board):
    it = board()
    it.show(*cloud(3000)[:2])
    it.page.evaluate("() => { map.goTo(1500, 6); return still(); }")
    before = it.places()
    it.drag([(300, 200), (340, 220), (410, 250)])
    assert it.places() - before == pytest.approx(np.full_like(before, [110, 50]) * 1.0)
    assert it.heard("pick") == [] and len(it.heard("view")) > 1


def test_the_wheel_zooms_at_the_pointer_and_lets_the_page_scroll_at_its_end(board):
    it = board()
    it.show(*cloud(3000)[:2])
    spot = np.array([250, 130])
    before = it.places()
    it.page.mouse.move(*it.window(spot))
    for _ in range(3):
        it.page.mouse.wheel(0, -200)
    it.still()
    assert it.state["zoom"] == pytest.approx(4)
    assert it.places() - spot == pytest.approx(4 * (before - spot))
    wheel = """dy => { const turned = new WheelEvent('wheel', { deltaY: dy, cancelable: true, bubbles: true });
                       map.node.querySelector('.overlay').dispatchEvent(turned); return turned.defaultPrevented; }"""
    assert it.page.evaluate(wheel, 9000) and not it.page.evaluate(wheel, 100)
    assert it.state["zoom"] == 0.5
    it.page.get_by_role("button", name="Show all").click()
    assert it.state["zoom"] == 1


def test_a_click_pins_and_a_click_beside_unpins(board):
    it = board()
    it.show(np.array([0, SIDE - 1, 30_000]), np.array([0, SIDE - 1, 30_000]))
    it.page.mouse.click(*it.window(it.places()[2] + 5))
    it.page.mouse.click(*it.window((300, 60)))
    assert it.heard("pick") == [2, None]


def test_the_keys_do_what_the_pointer_does(board):
    it = board()
    x, y, _ = cloud(3000)
    it.show(x, y)
    canvas = it.page.locator(".mapbox .overlay")
    assert canvas.get_attribute("role") == "img" and "Enter pins" in canvas.get_attribute("aria-label")
    it.page.keyboard.press("Tab")
    expect(canvas).to_be_focused()
    assert it.page.evaluate("getComputedStyle(map.node).boxShadow") != "none"
    for _ in range(4):
        it.page.keyboard.press("+")
    assert it.state["zoom"] == pytest.approx(1.5**4)
    before = it.places()
    for key, moved in (
        ("ArrowRight", (-64, 0)),
        ("ArrowDown", (0, -64)),
        ("Shift+ArrowUp", (0, 256)),
        ("ArrowLeft", (64, 0)),
    ):
        it.page.keyboard.press(key)
        it.still()
        assert it.places() - before == pytest.approx(np.full_like(before, moved) * 1.0, abs=1e-6), key
        before = it.places()
    it.page.keyboard.press("Enter")
    away = np.hypot(*(it.places() - [WIDTH / 2, HEIGHT / 2]).T)
    assert it.heard("pick") == [away.argmin()] and it.state["hovered"] == away.argmin()
    it.page.keyboard.press("l")
    assert it.heard("mode") == ["lasso"] and it.state["mode"] == "lasso"
    it.page.keyboard.press("Enter")  # without a pointer: all that is on screen
    places = it.places()
    assert it.selected() == np.flatnonzero(((places > 0) & (places < [WIDTH, HEIGHT])).all(1)).tolist()
    it.page.keyboard.press("L")
    assert it.heard("mode") == ["lasso", "pan"]
    it.page.keyboard.press("Escape")
    assert len(it.heard("clear")) == 1 and it.state["hovered"] is None
    zoom = it.state["zoom"]
    it.page.keyboard.press("Control+-")  # the browser's own
    it.page.keyboard.press("-")
    assert it.state["zoom"] == pytest.approx(zoom / 1.5)
    it.page.keyboard.press("0")
    assert it.state["zoom"] == 1
    it.page.evaluate("map.describe('Map of 3 000 slots')")
    assert it.page.get_by_role("img", name="Map of 3 000 slots").count() == 1


def test_escape_drops_a_lasso_under_way(board):
    it = board()
    it.show(*cloud(3000)[:2])
    it.page.evaluate("map.mode('lasso')")
    it.page.locator(".mapbox .overlay").focus()
    it.page.mouse.move(100, 100)
    it.page.mouse.down()
    for spot in ((400, 100), (400, 300), (100, 300)):
        it.page.mouse.move(*spot)
    it.page.keyboard.press("Escape")
    it.page.mouse.up()
    assert it.heard("select") == [] and it.heard("clear") == []


def touch(session: CDPSession, kind: str, *spots: tuple[float, float]) -> None:
    points = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(spots)]
    session.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})


def test_on_a_phone_one_finger_picks_and_two_move_the_map(board):
    it = board(width=390, height=844, has_touch=True, is_mobile=True, device_scale_factor=2)
    x, y, _ = cloud(3000)
    it.show(x, y)
    page = it.page
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert it.pixels().shape == (840, 2 * 388, 4)  # two pixels of the screen for one of the page
    for button in page.locator(".mapbox .zoom button").all():
        box = button.bounding_box()
        assert box and min(box["width"], box["height"]) >= 44
    session = page.context.new_cdp_session(page)

    def nearest(spot: tuple[float, float]) -> int:
        return int(np.hypot(*(it.places() + it.window((0, 0)) - spot).T).argmin())

    before = view(it)
    touch(session, "Start", (150, 200))
    touch(session, "Move", (170, 210))
    touch(session, "Move", (200, 220))
    it.still()
    assert it.state["hovered"] == nearest((200, 220))  # shown before the finger is lifted
    touch(session, "End")
    assert it.heard("pick") == [nearest((200, 220))] and view(it) == before

    index = nearest((180, 220))
    start = it.places()[index]
    middle = np.array(it.window(start))
    touch(session, "Start", tuple(middle + [-40, 0]))
    touch(session, "Start", tuple(middle + [-40, 0]), tuple(middle + [40, 0]))
    for spread in (60, 80):
        touch(session, "Move", tuple(middle + [20 - spread, 10]), tuple(middle + [20 + spread, 10]))
    touch(session, "End", tuple(middle + [-60, 10]))
    touch(session, "Move", tuple(middle + [-10, 90]))  # the finger that is left moves nothing
    touch(session, "End")
    it.still()
    assert it.state["zoom"] == pytest.approx(2, rel=1e-3)
    assert it.places()[index] == pytest.approx(start + [20, 10], abs=0.5)
    assert len(it.heard("pick")) == 1

    page.evaluate("map.mode('lasso')")
    spots = [(100, 120), (300, 130), (280, 330), (120, 300)]
    touch(session, "Start", spots[0])
    for spot in spots[1:]:
        touch(session, "Move", spot)
    touch(session, "End")
    polygon = np.array(spots, float) - it.window((0, 0))
    assert it.selected() == [i for i, place in enumerate(it.places()) if winding(polygon, place) != 0]


def test_another_theme_repaints(board):
    it = board()
    it.show(*cloud(500)[:2])
    drawn = it.pixels()[..., 3] > 0
    light = it.pixels()[drawn][:, :3]
    it.page.evaluate("() => { document.body.classList.add('dark'); return still(); }")
    dark = it.pixels()[drawn][:, :3]
    assert (light == rgb(OKABE_ITO[0])).all(1).any() and (dark == rgb("#59636f")).all(1).any()
    image = Image.open(io.BytesIO(picture(it)))
    assert image.getpixel((2, 2))[:3] == (0x12, 0x15, 0x1A)


def picture(it: Board) -> bytes:
    return bytes(it.page.evaluate("async () => [...new Uint8Array(await (await map.png()).arrayBuffer())]"))


def test_the_picture_is_what_is_on_screen(board):
    it = board()
    assert it.page.evaluate("map.png()") is None  # nothing was drawn yet
    x, y, label = cloud(3000)
    it.show(x, y)
    it.colour("category", label)
    it.page.evaluate("() => { map.marks({ pinned: 3, links: [4, 5], cross: { x: 9000, y: 9000 } }); return still(); }")
    image = np.array(Image.open(io.BytesIO(picture(it))).convert("RGB")).astype(int)
    it.page.evaluate("for (const part of map.node.querySelectorAll('.zoom, .told')) part.style.display = 'none'")
    x0, y0 = it.window((0, 0))
    shot = it.page.screenshot(clip={"x": x0, "y": y0, "width": WIDTH, "height": HEIGHT})
    seen = np.array(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)
    assert image.shape == seen.shape == (HEIGHT, WIDTH, 3)
    assert (abs(image - seen)[4:-4, 4:-4] > 2).mean() < 1e-4  # the corners are rounded on screen


def test_leaving_the_tab_resets_nothing(board):
    it = board()
    x, y, label = cloud(3000)
    it.show(x, y)
    it.page.evaluate("() => { map.goTo(9, 5); map.mode('lasso'); map.density('off'); return still(); }")
    before, draws = view(it), it.state["draws"]
    it.page.evaluate("() => { document.getElementById('box').style.display = 'none'; return still(); }")
    it.colour("category", np.full(3000, 3))  # while it is away
    assert it.state["draws"] == draws
    it.page.evaluate("() => { document.getElementById('box').style.display = ''; return still(); }")
    assert view(it) == before and it.state["mode"] == "lasso"
    assert (it.pixels() == [*rgb(OKABE_ITO[3]), 255]).all(2).any()
    it.page.evaluate("() => { document.getElementById('box').style.width = '402px'; return still(); }")
    assert view(it) == before  # the same place in the middle
    assert it.pixels().shape == (HEIGHT, 400, 4) and (it.pixels()[..., 3] > 0).any()


def test_a_part_is_drawn_while_it_moves_and_this_is_said(board):
    it = board()
    it.page.evaluate(
        "() => { const now = performance.now.bind(performance); performance.now = () => 50 * now(); }"
    )  # slow
    it.page.evaluate(
        """() => {
          const spread = step => Uint16Array.from({ length: 200_000 }, (_, i) => i * step);
          map.show({ x: spread(9973), y: spread(9974) });
        }"""
    )
    it.still(300)
    told = it.page.locator(".mapbox .told")
    assert it.state["count"] == 200_000 and told.is_hidden()
    it.page.mouse.move(300, 200)
    it.page.mouse.down()
    it.page.mouse.move(340, 220)
    it.page.mouse.move(380, 220)
    it.still()
    shown = it.state["count"]
    assert 32_768 <= shown < 200_000
    assert told.inner_text().replace("\u2009", "") == f"{shown} of 200000 points while it moves"
    it.page.mouse.up()
    it.still(300)
    assert it.state["count"] == 200_000 and told.is_hidden()


def test_labels_do_not_cover_each_other_and_are_text(board):
    it = board()
    it.show(np.array([0, SIDE - 1]), np.array([0, SIDE - 1]))
    written = it.page.evaluate(
        """async () => {
          const written = [], pen = CanvasRenderingContext2D.prototype, own = pen.fillText;
          pen.fillText = function (...given) { written.push(given); own.apply(this, given); };
          const at = (x, y, text) => ({ x, y, text });
          map.marks({ labels: [at(30000, 30000, '<img src=x onerror=alert(1)>'), at(30100, 30100, 'below the first'),
                               at(10000, 50000, 'far away'), at(65535, 65535, 'n'.repeat(60))] });
          await still();
          return written;
        }"""
    )
    assert [text for text, *_ in written] == ["<img src=x onerror=alert(1)>", "far away", "n" * 27 + "…"]
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for _, x, y in written)
    assert it.page.locator("img:not(canvas)").count() == 0


def test_slots_are_found_by_their_id(board):
    it = board()
    give = "() => map.show({ x: Uint16Array.of(1, 2, 3), y: Uint16Array.of(1, 2, 3), ids: Uint32Array.of(70, 5, 900) })"
    it.page.evaluate(give)
    assert it.page.evaluate("[map.find(5), map.find(900), map.find(1)]") == [1, 2, None]
    it.show(np.arange(4), np.arange(4))
    assert it.page.evaluate("[map.find(3), map.find(4)]") == [3, None]
