"""The maps of two models in a browser: beside each other, under a divider, in numbers."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tyro
from browser.compare_tab import (
    OTHER,
    PROBE_MS,
    RESNET,
    TRAY,
    Visit,
    choose,
    link,
    live,
    overlap,
    photograph,
    pixels,
    quiet_requests,
    settled,
    stage,
    tag,
)
from browser.test_page import add
from PIL import Image
from playwright.sync_api import Page, Route, expect

from analysis.cli_compare import compare
from analysis.compare import map_overlap
from memssl_core.data.images import decode_image
from tests.ui.test_attention import card
from ui import wire
from ui.examples import examples
from ui.facts import attention_sizes, can_read, first_size


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
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_contain_text("Move the query patch")
    page.keyboard.press("Escape")
    expect(stage(page, "a")).to_be_focused()
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
    expect(page.locator(".maps2 .under:visible")).to_have_text(re.compile(r"A: \d.*; B: \d.*A: .*row.*; B: .*row"))
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
    page.get_by_label("Probe set", exact=True).select_option(index=1)
    page.get_by_role("button", name="Compare on 16 pictures").click()
    expect(page.locator(".measures b")).to_have_count(2, timeout=PROBE_MS)
    expect(page.locator(".changed .shot")).to_have_count(16)
    expect(page.locator(".heatbox")).to_contain_text("layers of these two are not compared")
    page.get_by_role("button", name="Swap").click()
    expect(page.locator("button.model")).to_contain_text("test_resnet")
    settled(page, "b")
    expect(page.locator(".maps2 .stage.a .state")).to_contain_text("feature map and no attention")
    page.reload()  # without a map of the picture on this side before
    settled(page, "b")
    with page.expect_download() as download:
        page.locator(TRAY).get_by_role("button", name="PNG", exact=True).click()
    assert Image.open(download.value.path()).size == decode_image(examples()["coffee"].read()).size


def test_both_read_the_picture_at_one_size(tab: Visit, tmp_path: Path, capsys: pytest.CaptureFixture):
    page = tab(f"&other={OTHER}&img=coffee").page
    settled(page)
    size, command = page.get_by_label("Input size of both"), page.locator(".cmd code:visible")
    grids = page.locator(".maps2 .under span:first-child")
    own = overlap(page)
    assert size.input_value() == "" and "size" not in link(page)
    expect(size.locator("option:checked")).to_have_text("Own: A 128 px, 11×16; B 320 px, 13×20")
    box = stage(page, "a").bounding_box()
    assert box
    stage(page, "a").click(position={"x": 0.62 * box["width"], "y": 0.35 * box["height"]})
    expect(live(page)).to_have_text(re.compile(r"A .* from patch 3, 9: .* B .* from patch"))
    size.select_option("192")  # which the tab Attention offers for A only
    words = size.locator("option:checked").inner_text()
    shapes = re.fullmatch(r"192 px: A (\d+×\d+), B (\d+×\d+)", words)
    assert shapes and shapes.groups() == ("16×24", "8×12")
    for _ in range(2):
        expect(grids).to_have_text([re.compile(f"^{shape} patches") for shape in shapes.groups()])
        expect(live(page)).to_have_text(re.compile(r"A .* from patch 5, 14: .* B .* from patch 2, 7"))
        settled(page)
        told = link(page)
        assert (told["size"], told["patch"]) == ("192", str(5 * 24 + 14))
        expect(command).to_have_text(re.compile("--size 192 (?!.*--other-size)"))
        page.reload()
    expect(live(page)).to_have_text(re.compile("A .* from patch 5, 14: "))
    settled(page)
    expect(size).to_have_value("192")
    picture = tmp_path / "coffee.png"
    picture.write_bytes(examples()["coffee"].read())
    words = shlex.split(command.inner_text().replace("coffee.png", str(picture)))
    tyro.cli(compare, args=[*words[4 : words.index("--out")], "--json"])
    maps = json.loads(capsys.readouterr().out)["maps"]
    assert f"{100 * maps['overlap']:.0f} %" == overlap(page)
    page.get_by_role("group", name="Query").get_by_role("button", name="Class token").click()
    size.select_option("")
    expect(grids).to_have_text([re.compile("^11×16 patches"), re.compile("^13×20 patches")])
    expect(page.locator(".common b")).to_have_text(own)
    assert not {"size", "patch"} & set(link(page))
    choose(page, RESNET)
    expect(size).not_to_be_visible()


def test_a_patch_of_b_is_the_one_that_link_and_command_lead_to(
    tab: Visit, tmp_path: Path, capsys: pytest.CaptureFixture
):
    page = tab(f"&other={OTHER}&img=coffee").page
    settled(page)
    box = stage(page, "b").bounding_box()
    assert box
    stage(page, "b").click(position={"x": 7.5 / 20 * box["width"], "y": 5.5 / 13 * box["height"]})
    picture = tmp_path / "coffee.png"
    picture.write_bytes(examples()["coffee"].read())
    for _ in range(2):  # the middle of A's patch lies in another patch of B
        expect(live(page)).to_have_text(re.compile(r"A .* from patch 4, 6: .* B .* from patch 5, 7:"))
        settled(page)
        told = link(page)
        assert (told["side"], told["patch"]) == ("b", str(5 * 20 + 7))
        words = shlex.split(page.locator(".cmd code:visible").inner_text().replace("coffee.png", str(picture)))
        tyro.cli(compare, args=[*words[4 : words.index("--out")], "--json"])
        assert overlap(page) == f"{100 * json.loads(capsys.readouterr().out)['maps']['overlap']:.0f} %"
        page.reload()
    page.get_by_role("button", name="Swap").click()
    expect(live(page)).to_have_text(re.compile(r"A .* from patch 5, 7: .* B .* from patch 4, 6:"))
    assert "side" not in link(page) and link(page)["patch"] == str(5 * 20 + 7)


CARDS = [card(px, patch) for px, patch in ((224, 16), (256, 16), (518, 14), (384, 14), (32, 8))]


def test_sizes_of_both_are_whole_patches_of_both(page: Page, server: str):
    page.goto(f"{server}healthz")
    offered = [[px for px, _, _ in attention_sizes(of)] for of in CARDS]
    call = """async models => {
      const { sizeChoice, sizesOfBoth } = await import('/ui/comparesize.js');
      const choice = sizeChoice();
      choice.show(models, [null, null], null);
      const [select, none] = choice.node.querySelectorAll('select, .meta');
      return { sizes: sizesOfBoth(...models), none: select.disabled && !none.hidden };
    }"""
    for a, b in itertools.product(range(len(CARDS)), repeat=2):
        models = [{"size": first_size(of), "attention_sizes": attention_sizes(of)} for of in (CARDS[a], CARDS[b])]
        told = page.evaluate(call, models)
        both = {px for px in offered[a] + offered[b] if can_read(CARDS[a], px) and can_read(CARDS[b], px)}
        assert told["sizes"] == sorted(both) and told["none"] == (not both)
        assert bool(both) == ({a, b} != {2, 4})  # 512 px at most for one, 518 at least for the other
        assert a != b or told["sizes"] == offered[a]


def test_both_are_asked_the_same_for_the_picture_as_a_whole(tab: Visit):
    page = tab("&other=random:test_vit2&img=coffee").page  # which has no class token
    settled(page)
    expect(live(page)).to_have_text(re.compile("A .* from mean over patches: .*B .* from mean over patches:"))
    expect(page.locator(".cmd code:visible")).to_contain_text("--query mean")
    choose(page, OTHER)
    expect(live(page)).to_have_text(re.compile("A .* from class token: .*B .* from class token:"))
    expect(page.get_by_role("group", name="Query")).to_contain_text("Class token")


def test_maps_of_two_pictures_are_not_taken_for_those_of_one(tab: Visit):
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    def let_go(page: Page, nth: int) -> None:
        for _ in range(200):
            if len(held) > nth:
                break
            page.wait_for_timeout(50)
        held[nth].continue_()

    def shapes(page: Page) -> list[float]:
        boxes = [page.locator(f".maps2 .stage.{side}").bounding_box() for side in "ab"]
        return [box["width"] / box["height"] for box in boxes if box]

    page = tab(f"&other={OTHER}&img=coffee").page
    settled(page)
    before = overlap(page)
    wide, tall = (np.divide(*decode_image(examples()[name].read()).size) for name in ("coffee", "lion"))
    page.route("**/api/attention/**", hold)
    page.locator(f"{TRAY} [aria-label='lion.jpg']").click()
    let_go(page, 0)  # A's come first
    expect(page.locator(".maps2 .stage.a img")).to_have_attribute("src", "api/picture/lion")
    assert shapes(page) == pytest.approx([tall, wide], rel=0.03)  # each photograph in its own shape
    assert overlap(page) == before
    let_go(page, 1)
    expect(page.locator(".maps2 .stage.b img")).to_have_attribute("src", "api/picture/lion")
    expect(page.locator(".common b")).not_to_have_text(before)
    assert shapes(page) == pytest.approx([tall, tall], rel=0.03)


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
