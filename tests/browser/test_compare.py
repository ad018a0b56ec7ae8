"""The Compare tab in a browser: another model, another seed, one without attention; maps, memories, a probe set."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from browser.conftest import Watched, assert_accessible, watch_jumps
from browser.pictures import Upload, upload
from browser.test_page import add
from PIL import Image
from playwright.sync_api import Locator, Page, Route, expect

from analysis.compare import map_overlap
from memssl_core.data.images import decode_image
from ui import wire
from ui.examples import examples

TRAY = "#tray-compare"
OTHER, SEED, RESNET = "random:test_vit", "random:test_vit@1", "random:test_resnet"
PROBE_MS = 90_000
Visit = Callable[..., Watched]


@pytest.fixture
def tab(visit: Visit) -> Visit:
    """Opens the tab at the state that the query names; with another model, waits for the maps of both."""

    def open_tab(query: str = "", **options) -> Watched:
        return visit(f"?tab=compare{query}", ready=".cmp .models:visible", **options)

    return open_tab


def photograph(name: str, box: tuple[int, int, int, int]) -> Upload:
    return upload(decode_image(examples()[name].read()).crop(box), f"{name}.jpg", "JPEG")


def link(page: Page) -> dict[str, str]:
    page.wait_for_timeout(300)  # the address follows at a distance
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def choose(page: Page, source: str) -> None:
    page.get_by_label("Compare with").fill(source)
    page.get_by_label("Compare with").press("Enter")


def settled(page: Page, *sides: str) -> None:
    """Until the maps of these sides are there."""
    for side in sides or ("a", "b"):
        expect(page.locator(f".maps2 .stage.{side}:not(.empty)")).to_have_count(1, timeout=30_000)
    page.wait_for_timeout(300)  # what is asked a moment later
    expect(page.locator(".maps2 .load:visible")).to_have_count(0)


def own_source(page: Page) -> str:
    return page.evaluate("async () => (await (await fetch('api/facts')).json()).model.source")


def overlap(page: Page) -> str:
    return page.locator(".common b").inner_text()


def stage(page: Page, side: str) -> Locator:
    return page.locator(f".maps2 .stage.{side} .overlay")


def pixels(page: Page, side: str = "a") -> np.ndarray:
    """uint8 [height, width, 4] of the map as it is drawn."""
    width, height, data = stage(page, side).evaluate(
        """it => { const { width, height } = it, copy = new OffscreenCanvas(width, height);
                   const context = copy.getContext('2d', { willReadFrequently: true });
                   context.drawImage(it, 0, 0);
                   return [width, height, [...context.getImageData(0, 0, width, height).data]]; }"""
    )
    return np.array(data, np.uint8).reshape(height, width, 4)


def tag(page: Page, side: str) -> Locator:
    return page.locator(f".maps2 .stage.{side} .tag:not(.right)")


def live(page: Page) -> Locator:
    return page.locator(".both > .quiet-live")


def quiet_requests(watched: Watched, since: int) -> list[str]:
    return [url for url in watched.requests[since:] if "heartbeat" not in url]


@pytest.mark.parametrize("seed", range(4))
def test_the_overlap_of_two_maps(page: Page, server: str, seed: int):
    """Against both maps on the finest common grid."""
    rng = np.random.default_rng(seed)
    shapes = rng.integers(1, 8, (2, 2))
    a, b = (rng.dirichlet(np.full(rows * columns, 0.4)).reshape(rows, columns) for rows, columns in shapes)
    fine = [np.kron(one, np.ones(other)) / np.prod(other) for one, other in ((a, shapes[1]), (b, shapes[0]))]
    page.goto(f"{server}healthz")
    call = (
        """async maps => { const { mapOverlap } = await import('/ui/comparemaps.js'); return mapOverlap(...maps); }"""
    )
    told = [{"weights": (3 * it).ravel().tolist(), "rows": len(it), "columns": it.shape[1]} for it in (a, b)]
    found = page.evaluate(call, told)
    assert (
        found == pytest.approx(float(np.minimum(*fine).sum()), abs=1e-9) == pytest.approx(map_overlap(a, b), abs=1e-9)
    )
    assert page.evaluate(call, [told[0], told[0]]) == pytest.approx(1)


def test_what_to_compare_with_is_one_click_away(tab: Visit):
    def kept(route: Route) -> None:
        route.fulfill(json=[{"source": SEED, "title": "tiny, step 10"}])

    page = tab().page
    offers = page.locator(".offers")
    expect(offers.get_by_role("button", name="vit_tiny_patch16_224, untrained")).to_be_visible()
    expect(page.locator(".both")).not_to_be_visible()
    page.route("**/api/checkpoints", kept)  # those of runs are made by training, which is tested elsewhere
    page.reload()
    offers.get_by_role("region", name="Checkpoints of runs").get_by_role("button", name="tiny, step 10").click()
    settled(page)
    expect(page.locator(".side b").nth(1)).to_have_text("test_vit, random weights (seed 1)")
    expect(offers).not_to_be_visible()
    assert link(page)["other"] == SEED
    choose(page, "random:no_such_model")
    expect(page.locator(".models .note")).to_contain_text("timm has no model named")
    expect(page.locator(".side b").nth(1)).to_contain_text("test_vit")  # the one before stays
    page.get_by_role("button", name="Swap").click()
    expect(page.locator("button.model")).to_contain_text("test_vit")
    settled(page)
    expect(page.locator(".side b").nth(1)).to_have_text("small")
    assert link(page)["model"] == SEED
    page.get_by_role("button", name="None", exact=True).click()
    expect(offers.get_by_role("button", name="test_vit, seed 2")).to_be_visible()
    assert "other" not in link(page)


@pytest.mark.parametrize(
    ("name", "box"), [("astronaut", (0, 0, 512, 300)), ("lion", (40, 0, 140, 200))], ids=["landscape", "portrait"]
)
def test_two_models_look_at_one_photograph(tab: Visit, name: str, box: tuple[int, int, int, int]):
    page = (watched := tab(f"&other={OTHER}")).page
    settled(page)
    add(page, photograph(name, box), TRAY)
    ratio = (box[2] - box[0]) / (box[3] - box[1])
    expect(page.locator(f"{TRAY} [aria-pressed=true]")).to_have_attribute("aria-label", f"{name}.jpg")
    settled(page)
    for side in "ab":
        shown = page.locator(f".maps2 .stage.{side}").bounding_box()
        assert shown and shown["width"] / shown["height"] == pytest.approx(ratio, rel=0.03)
        assert len(np.unique(pixels(page, side))) > 20  # a map is drawn, not one flat colour
    # the number on the page is that of the maps that came
    keys = [url for url in watched.requests if "/api/attention/" in url][-2:]
    grids = []
    for key in keys:
        arrays, facts = wire.unpack(page.request.get(key).body())
        grids.append(arrays["rows"][-1].mean(0)[facts["n_prefix"] :].reshape(facts["grid"]))
    assert overlap(page) == f"{100 * map_overlap(*grids):.0f} %"
    for side, grid in zip("ab", grids, strict=True):
        row, column = np.unravel_index(grid.argmax(), grid.shape)
        expect(stage(page, side)).to_have_attribute(
            "aria-label", re.compile(f"strongest at row {row}, column {column},")
        )


def test_a_model_is_like_itself_and_not_like_another_seed(tab: Visit):
    page = tab().page
    choose(page, own_source(page))
    settled(page)
    assert overlap(page) == "100 %"
    expect(page.locator(".memboth .memory:not(.same)")).to_have_count(0)
    expect(page.locator(".memboth > .head .meta")).to_have_text(
        re.compile(r"^16 shared, 100 % \(chance 100.0 %\) .* 16 pictures")
    )
    assert page.locator(".memboth .memory.same").count() == 32
    expect(page.locator(".memboth img").first).to_have_attribute("alt", re.compile(", in both$"))
    page.get_by_role("button", name="Choose another model").or_(page.locator("button.model")).first.click()
    page.get_by_label("Any source").fill(OTHER)
    page.get_by_label("Any source").press("Enter")
    expect(page.locator("button.model")).to_contain_text("test_vit", timeout=30_000)
    choose(page, SEED)
    expect(page.locator(".side b").nth(1)).to_contain_text("seed 1")
    settled(page)
    assert overlap(page) != "100 %"
    expect(page.locator(".memboth").get_by_text("This model has no memory.")).to_have_count(2)


def test_blocks_heads_and_scales_make_no_request(tab: Visit):
    page = (watched := tab(f"&other={OTHER}")).page
    settled(page)
    page.wait_for_timeout(500)
    before = len(watched.requests)
    seen = [overlap(page)]
    page.get_by_label("Block of A").select_option(label="Block 1")
    page.get_by_label("Head of A").select_option(label="Head 2")
    expect(tag(page, "a")).to_have_text("A · Block 1 · head 2")
    expect(tag(page, "b")).to_have_text(re.compile("B · Block 6 · head 2"))  # it has other blocks
    seen.append(overlap(page))
    page.get_by_label("Head of B").select_option(label="Max")
    page.get_by_label("Block of B").select_option(label="Block 2")
    expect(tag(page, "b")).to_have_text("B · Block 2 · max")
    seen.append(overlap(page))
    assert len(set(seen)) > 1
    shared = page.locator(".maps2 .scale span:last-child").all_inner_texts()
    assert shared[0] == shared[1]
    page.get_by_role("switch", name="Same scale for both").press("Space")
    own = page.locator(".maps2 .scale span:last-child").all_inner_texts()
    assert own[0] != own[1] and set(own) & set(shared)
    page.get_by_role("slider", name="Opacity").press("Home")
    drawn = pixels(page)
    page.get_by_role("slider", name="Opacity").press("End")
    assert (pixels(page)[..., 3].mean() > drawn[..., 3].mean()) and quiet_requests(watched, before) == []
    told = link(page)
    assert {name: told[name] for name in ("layer", "head", "layer_b", "head_b", "scale", "opacity")} == {
        "layer": "0", "head": "1", "layer_b": "1", "head_b": "max", "scale": "own", "opacity": "100"
    }  # fmt: skip
    expect(page.locator(".cmd code:visible")).to_contain_text("--layer 0 --head 1")
    expect(page.locator(".cmd code:visible")).to_contain_text("--other-layer 1 --other-head max")


def test_a_place_is_asked_of_both(tab: Visit):
    page = tab(f"&other={OTHER}&img=coffee").page
    settled(page)
    box = stage(page, "a").bounding_box()
    assert box
    stage(page, "a").click(position={"x": 0.53 * box["width"], "y": 0.28 * box["height"]})
    expect(live(page)).to_have_text(re.compile(r"A .* from patch 3, 8: .* B .* from patch \d+, \d+:"))
    grids = [
        re.findall(r"\d+", words)[:2] for words in page.locator(".maps2 .under span:first-child").all_inner_texts()
    ]
    places = [
        [(int(at) + 0.5) / int(n) for at, n in zip(spot, grid, strict=True)]
        for spot, grid in zip(re.findall(r"patch (\d+), (\d+)", live(page).inner_text()), grids, strict=True)
    ]
    assert np.abs(np.diff(places, axis=0)).max() <= 0.5 / min(int(n) for grid in grids for n in grid) + 1e-9
    stage(page, "a").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    expect(live(page)).to_have_text(re.compile("A .* from patch 4, 9:"))
    page.keyboard.press("]")
    expect(tag(page, "a")).to_have_text("A · Block 3 · max")
    page.keyboard.press(",")
    expect(tag(page, "a")).to_have_text("A · Block 2 · max")
    page.keyboard.press("Escape")
    expect(live(page)).to_have_text(re.compile("A .* from class token: .* B .* from class token"))
    assert "patch" not in link(page)
    page.get_by_role("group", name="Query").get_by_role("button", name="Patch").click()
    expect(live(page)).to_have_text(re.compile("A .* from patch"))
    overlay = stage(page, "b")
    overlay.hover(position={"x": 30, "y": 30})
    expect(page.locator(".maps2 .under span:last-child").nth(0)).not_to_contain_text("strongest")


def test_the_divider_by_pointer_range_and_keyboard(tab: Visit):
    page = (watched := tab(f"&other={OTHER}&img=lion&scale=own")).page
    settled(page)
    page.wait_for_timeout(500)
    before = len(watched.requests)
    page.get_by_role("button", name="Under a slider").click()
    expect(page.locator(".maps2 .stage:visible")).to_have_count(1)
    expect(page.locator(".maps2 .tag:visible")).to_have_text(["A · Block 3 · mean", re.compile("B · Block 6 · mean")])
    split = page.get_by_role("slider", name="Divider")
    split.press("End")
    only_a = pixels(page)
    split.press("Home")
    only_b = pixels(page)
    assert (only_a != only_b).any()
    grip = page.locator(".divider")
    picture = page.locator(".maps2 .stage.a .inner").bounding_box()
    handle = grip.locator("i").bounding_box()
    assert picture and handle
    page.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
    page.mouse.down()
    page.mouse.move(picture["x"] + 0.3 * picture["width"], picture["y"] + 20, steps=5)
    page.mouse.up()
    page.mouse.move(5, 5)
    expect(split).to_have_value("30")
    both = pixels(page)
    at = round(0.3 * both.shape[1])
    assert (both[:, :at] == only_a[:, :at]).all() and (both[:, at:] == only_b[:, at:]).all()
    split.press("ArrowRight")
    expect(split).to_have_attribute("aria-valuetext", "A 31 %, B 69 %")
    track = split.bounding_box()
    assert track
    page.mouse.click(track["x"] + 0.8 * track["width"], track["y"] + track["height"] / 2)
    assert abs(int(split.input_value()) - 80) <= 3
    assert quiet_requests(watched, before) == []
    told = link(page)
    assert told["mode"] == "slider" and told["split"] == split.input_value()
    stage(page, "a").click(position={"x": 0.95 * picture["width"], "y": 30})  # on B's half
    expect(live(page)).to_have_text(re.compile(r"B .* from patch \d+, \d+"))
    with page.expect_download() as download:
        page.get_by_role("button", name="PNG", exact=True).click()
    saved = Image.open(download.value.path())
    assert saved.size == decode_image(examples()["lion"].read()).size and not saved.getexif()


def test_a_model_without_attention_or_memory_is_compared_all_the_same(tab: Visit):
    page = tab(f"&other={RESNET}&img=coffee").page
    settled(page, "a")
    expect(page.locator(".maps2 .stage.b .state")).to_contain_text("feature map and no attention")
    expect(page.get_by_role("button", name="Under a slider")).to_be_disabled()
    expect(page.get_by_label("Block of B")).not_to_be_visible()
    expect(page.locator(".common b")).to_have_text("none")
    expect(page.locator(".memboth .two > div").nth(1)).to_contain_text("This model has no memory.")
    expect(page.locator(".memboth .two > div").nth(0).locator("img")).not_to_have_count(0)
    page.get_by_role("button", name="Compare on 256 pictures").click()
    expect(page.locator(".measures b")).to_have_count(2, timeout=PROBE_MS)
    expect(page.locator(".changed .shot")).to_have_count(24)
    page.get_by_role("button", name="Swap").click()
    expect(page.locator("button.model")).to_contain_text("test_resnet")
    settled(page, "b")
    expect(page.locator(".maps2 .stage.a .state")).to_contain_text("feature map and no attention")


def test_what_changed_most_over_a_probe_set(tab: Visit):
    page = (watched := tab("&other=random:test_vit@7&img=coffee")).page
    settled(page)
    go = page.get_by_role("button", name="Compare on 256 pictures")
    go.click()
    expect(page.locator(".working .meta")).to_have_text(re.compile(r"^\d+ of 512 · \d"))
    expect(page.get_by_role("button", name="Cancel")).to_be_focused()
    page.get_by_role("button", name="Cancel").click()
    expect(go).to_be_focused()
    page.wait_for_timeout(1500)
    before = len(watched.requests)
    page.wait_for_timeout(1500)
    assert quiet_requests(watched, before) == []  # nothing is asked on
    expect(page.locator(".measures")).not_to_be_visible()
    go.click()
    expect(page.locator(".measures b")).to_have_count(2, timeout=PROBE_MS)
    value, share = page.locator(".measures b").all_inner_texts()
    assert -0.1 < float(value) < 1 and 0 <= float(share.removesuffix(" %")) < 100
    expect(page.locator(".measures")).to_contain_text("chance 3.9 %")
    shots = page.locator(".changed .shot")
    expect(shots).to_have_count(24)
    kept = [float(text.removesuffix(" %")) for text in page.locator(".shot b").all_inner_texts()]
    assert kept == sorted(kept)
    shots.last.click()
    expect(shots.last).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".kin img")).to_have_count(20)
    assert page.locator(".kin .same").count() == 2 * round(kept[-1] / 10)
    for image in page.locator(".kin img").all()[:3]:
        page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=image.element_handle())
    heat = page.locator(".heat tbody td")
    expect(heat).to_have_count(3 * 6)
    assert all(
        re.search(r"A block \d, B block \d: -?\d\.\d\d$", cell.get_attribute("title") or "") for cell in heat.all()
    )
    with page.expect_download() as download:
        page.locator(".probe").get_by_role("button", name="CSV").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text())))
    assert [float(row["kept"]) * 100 for row in rows] == kept
    expect(page.locator(".cmd code:visible")).to_contain_text("--probe drawn")
    squares = page.locator(f"{TRAY} .pics button:not(.add)")
    there = squares.count()
    page.get_by_role("button", name="See its maps").click()
    expect(squares).to_have_count(there + 1)
    settled(page)
    expect(page.locator(".measures b").first).to_have_text(value)  # the results stay


def test_over_a_probe_set_a_model_is_like_itself(tab: Visit):
    page = tab().page
    choose(page, own_source(page))
    settled(page)
    page.get_by_label("Probe set", exact=True).select_option(index=1)
    page.get_by_role("button", name=re.compile(r"Compare on \d+ pictures")).click()
    expect(page.locator(".measures b")).to_have_text(["1.00", "100 %"], timeout=PROBE_MS)
    corner = [page.locator(".heat tbody tr").nth(2 - i).locator("td").nth(i).inner_text() for i in range(3)]
    assert corner == ["1.00"] * 3


def test_a_link_restores_the_view(tab: Visit):
    asked = {"img": "coffee", "other": SEED, "layer": "1", "head": "2", "layer_b": "4", "head_b": "max", "patch": "37"}
    asked |= {"mode": "slider", "split": "30", "opacity": "60", "scale": "own", "probe": "drawn"}
    page = tab("&" + "&".join(f"{name}={value}" for name, value in asked.items())).page
    for _ in range(2):
        expect(page.locator(".measures b")).to_have_count(2, timeout=PROBE_MS)
        settled(page, "a")
        expect(live(page)).to_have_text(
            re.compile("A · Block 2 · head 3 · from patch 2, 5.*B · Block 5 · max · from patch")
        )
        expect(page.get_by_role("slider", name="Divider")).to_have_value("30")
        expect(page.get_by_role("slider", name="Opacity")).to_have_value("60")
        expect(page.get_by_role("switch", name="Same scale for both")).not_to_be_checked()
        told = link(page)
        assert {name: told.get(name) for name in asked} == asked
        page.reload()


def test_the_table_holds_both_maps(tab: Visit):
    page = tab(f"&other={OTHER}&img=flower").page
    settled(page)
    with page.expect_download() as download:
        page.locator(TRAY).get_by_role("button", name="CSV").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text())))
    width, height = decode_image(examples()["flower"].read()).size
    assert {(row["side"], row["block"], row["head"]) for row in rows} == {("A", "2", "mean"), ("B", "5", "mean")}
    assert all(
        0 < float(row["x_px"]) < width and 0 < float(row["y_px"]) < height and float(row["weight"]) >= 0 for row in rows
    )
    finer = [row for row in rows if row["side"] == "A"]
    best = max(finer, key=lambda row: float(row["weight"]))
    expect(stage(page, "a")).to_have_attribute("aria-label", re.compile(f"row {best['row']}, column {best['column']},"))


def test_an_answer_that_fails_is_told_on_its_own_side(tab: Visit):
    page = (watched := tab("&img=coffee")).page
    page.route("**/api/attention/**", lambda route: route.fulfill(status=410, json={"error": "Choose it again."}))
    choose(page, OTHER)
    expect(page.locator(".maps2 .state .note")).to_have_count(2, timeout=30_000)
    expect(page.locator(".maps2 .state .note").first).to_have_text("The maps did not arrive. Choose it again.")
    page.unroute("**/api/attention/**")
    page.locator(f"{TRAY} [aria-label='lion.jpg']").click()
    settled(page)
    watched.complaints.clear()  # the console tells of the answers that failed


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_accessible_steady_and_within_a_phone(tab: Visit, theme: str, width: int):
    page = tab(f"&__theme={theme}", width=width, height=844, has_touch=width < 500).page
    expect(page.locator(".offers .row").first).to_be_visible()
    assert_accessible(page)
    choose(page, OTHER)
    settled(page)
    watch_jumps(page)
    page.get_by_role("button", name="Compare on 256 pictures").click()
    expect(page.locator(".measures b")).to_have_count(2, timeout=PROBE_MS)
    first, second = (page.locator(".maps2 .stage").nth(i).bounding_box() for i in range(2))
    assert first and second
    assert (second["y"] > first["y"] + first["height"]) == (width < 500)  # one below the other on a phone
    (stage(page, "a").tap if width < 500 else stage(page, "a").click)(position={"x": 60, "y": 60})
    expect(live(page)).to_have_text(re.compile("B .* from patch"))
    page.get_by_role("button", name="Under a slider").click()
    page.locator(f"{TRAY} [aria-label='lion.jpg']").click()
    settled(page, "a")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.mouse.move(5, 5)
    assert_accessible(page)
    assert page.evaluate("window.jumps") < 0.02
