"""The Correspondence tab in a browser: real photographs, every control, by pointer and by keyboard."""

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
from playwright.sync_api import Page, Route, expect

from analysis.matches import COLUMNS
from memssl_core.data.images import decode_image
from ui.examples import examples

TRAY = "#tray-correspondence"
COUNTED = re.compile(r"^(\d+) of (\d+) mutual matches$")


@pytest.fixture
def pair(visit: Callable[..., Watched]) -> Callable[..., Watched]:
    """Opens the tab, at the state that the query names, and waits for the matches."""

    def open_tab(query: str = "", **options) -> Watched:
        return visit(f"?tab=correspondence{query}", ready=".pairs:not(.empty)", **options)

    return open_tab


def photograph(name: str, size: tuple[int, int]) -> Upload:
    picture = decode_image(examples()[name].read())
    return upload(
        picture.crop((0, 0, min(picture.width, size[0]), min(picture.height, size[1]))), f"{name}.jpg", "JPEG"
    )


def counted(page: Page) -> tuple[int, int]:
    expect(page.locator(".legend")).to_contain_text("mutual matches")
    found = COUNTED.match(page.locator(".legend span").last.inner_text())
    assert found
    return int(found[1]), int(found[2])


def link(page: Page) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def click_patch(page: Page, side: str, x: float, y: float) -> None:
    overlay = page.locator(f".stage.{side} .overlay").first
    box = overlay.bounding_box()
    assert box
    overlay.click(position={"x": x * box["width"], "y": y * box["height"]})


def settled(page: Page) -> None:
    expect(page.locator(".load:visible")).to_have_count(0)
    expect(page.locator(".pairs.old")).to_have_count(0)


def test_two_photographs_of_different_shape_are_matched(pair):
    page = pair().page
    page.get_by_role("group", name="The tray fills").get_by_role("button", name="A").click()
    add(page, photograph("astronaut", (512, 300)), TRAY)
    page.get_by_role("group", name="The tray fills").get_by_role("button", name="B").click()
    add(page, photograph("coffee", (200, 400)), TRAY)
    expect(page.locator(".stage.a .tag").first).to_have_text("A · astronaut.jpg")
    expect(page.locator(".stage.b .tag").first).to_have_text("B · coffee.jpg")
    expect(page.locator(f"{TRAY} .badge:visible")).to_have_text(["A", "B"])
    settled(page)
    expect(page.locator(".settings p")).to_contain_text("A 512×300 px, 9×16 patches; B 200×400 px, 16×8 patches")
    a, b = (page.locator(f".stage.{side}").first.bounding_box() for side in "ab")
    assert a and b
    assert a["width"] / a["height"] == pytest.approx(512 / 300, rel=0.02)
    assert b["width"] / b["height"] == pytest.approx(200 / 400, rel=0.02)
    shown, every = counted(page)
    assert 0 < shown <= 40 and shown <= every


def test_forty_lines_at_first_and_one_under_the_pointer(pair):
    """A line for each of 256 patches would be spaghetti (UX pitfall 8)."""
    page = (watched := pair("&img=motorcycle_left&img_b=motorcycle_left")).page  # as many matches as patches
    shown, every = counted(page)
    assert (shown, every) == (40, 11 * 16)
    before = len(watched.requests)
    lines = page.get_by_role("slider", name="Lines")
    for _ in range(3):
        lines.press("ArrowLeft")
    assert counted(page)[0] == 37
    page.get_by_role("slider", name="Smallest score").press("End")
    expect(page.locator(".legend span").last).to_contain_text("of 176 mutual matches")
    page.get_by_role("slider", name="Smallest score").press("Home")
    row = page.locator("section[aria-label='Strongest matches'] tbody tr").nth(3)
    row.hover()
    expect(row).to_have_attribute("aria-selected", "true")
    words = row.locator("td").all_inner_texts()
    page.mouse.move(5, 5)
    expect(row).to_have_attribute("aria-selected", "false")
    row.focus()
    live = page.locator(".corr .quiet-live")
    expect(live).to_contain_text(f"{words[1]} in A matches {words[2]} in B, cosine {words[3]}")
    row.blur()
    # on the pictures: the end of that line
    column, line = (int(part) for part in reversed(words[1].split(", ")))
    box = page.locator(".stage.a .overlay").first.bounding_box()
    assert box
    page.mouse.move(box["x"] + (column + 0.5) / 16 * box["width"], box["y"] + (line + 0.5) / 11 * box["height"])
    expect(page.locator("section[aria-label='Strongest matches'] tbody tr[aria-selected=true]")).to_have_count(1)
    assert [url for url in watched.requests[before:] if "heartbeat" not in url] == []


def test_what_is_hot_makes_no_request(pair):
    page = (watched := pair()).page
    page.wait_for_timeout(500)
    before = len(watched.requests)
    for group, name in (
        ("Rule", "One way"),
        ("Foreground", "Attended"),
        ("Foreground", "1st component"),
        ("Rule", "Mutual"),
    ):
        page.get_by_role("group", name=group).get_by_role("button", name=name).click()
    page.get_by_role("button", name="Heat map on hover").click()
    overlay = page.locator(".stage.a .overlay").first
    for x in range(20, 200, 30):
        overlay.hover(position={"x": x, "y": 60})
    expect(page.get_by_role("heading", name="Nearest patches in B")).to_be_visible()
    page.locator(".stage.b .overlay").first.hover(position={"x": 90, "y": 90})
    expect(page.get_by_role("heading", name="Nearest patches in A")).to_be_visible()
    assert [url for url in watched.requests[before:] if "heartbeat" not in url] == []


def test_a_click_shows_where_the_patch_is_found_and_what_is_remembered(pair):
    page = pair().page
    click_patch(page, "a", 0.5, 0.5)
    expect(page.get_by_role("heading", name="Nearest patches in B")).to_be_visible()
    expect(page.locator(".legend span").last).to_have_text("patch 5, 8 of A")
    best = page.locator("section[aria-label='Scores'] tbody tr").first.locator("td").all_inner_texts()
    label = page.locator(".stage.b .overlay").first.get_attribute("aria-label") or ""
    assert f"nearest in B at {best[1]}, cosine {best[2]}" in label
    expect(page.locator(".memory img")).to_have_count(8)
    for image in page.locator(".memory img").all():
        assert image.get_attribute("alt", timeout=1000)
    heat = "canvas => new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size"
    assert page.locator(".stage.b .overlay").first.evaluate(heat) > 20
    click_patch(page, "b", 0.2, 0.8)
    expect(page.get_by_role("heading", name="Nearest patches in A")).to_be_visible()
    assert (link(page)["side"], link(page)["patch"]) == ("b", str(8 * 16 + 3))


def test_of_a_picture_with_itself_the_neighbourhood_is_left_out(pair):
    page = pair("&img=chelsea&img_b=chelsea").page
    click_patch(page, "a", 0.55, 0.45)
    words = page.locator(".legend span").last
    row, column = map(int, re.findall(r"\d+", words.inner_text()))
    places = page.locator("section[aria-label='Scores'] tbody tr td:nth-child(2)")
    away = [
        max(abs(int(r) - row), abs(int(c) - column)) for r, c in (text.split(", ") for text in places.all_inner_texts())
    ]
    assert len(away) == 10 and min(away) > 2
    slider = page.get_by_role("slider", name="Left out around the click")
    slider.press("Home")
    expect(places.first).not_to_have_text(f"{row}, {column}")  # radius 0 leaves out the patch itself
    slider.press("End")  # on a grid of 11 rows and 16 columns
    expect(page.get_by_text("lower it")).to_be_visible()


def test_pictures_of_other_size_swap_with_their_lanes(pair):
    """Each end belongs to its own picture and its own grid (UX pitfall 9)."""
    page = pair("&img=chelsea&img_b=flower").page
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV").click()
    one = list(csv.DictReader(io.StringIO(download.value.path().read_text())))
    page.get_by_role("button", name="Swap").click()
    expect(page.locator(".stage.a .tag").first).to_have_text("A · flower.jpg")
    settled(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV").click()
    other = list(csv.DictReader(io.StringIO(download.value.path().read_text())))
    assert tuple(one[0]) == COLUMNS and len(one) == len(other) > 0
    ends = lambda row, *sides: [row[name.format(side)] for side in sides for name in ("row_{}", "column_{}", "x_{}_px")]
    assert sorted(ends(row, "a", "b") for row in one) == sorted(ends(row, "b", "a") for row in other)
    sizes = [decode_image(examples()[name].read()).size for name in ("chelsea", "flower")]
    for row in one:
        assert 0 <= float(row["x_a_px"]) < sizes[0][0] and 0 <= float(row["y_b_px"]) < sizes[1][1]


@pytest.mark.parametrize("name", ["Crops of A", "Tilted A", "Mirrored A"])
def test_checks_with_known_answers(pair, name: str):
    page = pair("&img=coffee").page
    page.get_by_role("button", name=name).click()
    known = page.get_by_role("region", name="Checked against the known answer")
    expect(known).to_be_visible()
    settled(page)
    figures = [
        [float(cell.removesuffix(" %")) for cell in row.locator("td").all_inner_texts()[1:]]
        for row in known.locator("tbody tr").all()
    ]
    assert len(figures) == 4 and all(0 <= a <= b <= c <= 100 for a, b, c in figures)
    assert 0 < figures[3][0] < 10  # chance
    head = page.locator("section[aria-label='Strongest matches'] th")
    expect(head.last).to_have_text("Off by")
    if name == "Mirrored A":
        expect(page.get_by_role("button", name="Another draw")).not_to_be_visible()
    else:
        page.get_by_role("button", name="Another draw").click()
        assert link(page)["seed"] == "2"
        settled(page)
    expect(page.locator(".cmd code").last).to_contain_text(f"--check {link(page)['check']}")


def test_features_size_and_position_are_asked_anew(pair):
    page = pair("&img=chelsea&img_b=lion").page
    seen = set()
    for change in (
        lambda: page.get_by_label("Facet").select_option("value"),
        lambda: page.get_by_label("Layer").select_option(label="Block 2"),
        lambda: page.get_by_label("Input size", exact=True).last.select_option("64"),
        lambda: page.get_by_text("Take position out").click(),
    ):
        change()
        settled(page)
        page.wait_for_timeout(300)
        settled(page)
        seen.add(page.locator("section[aria-label='Strongest matches'] tbody").inner_text())
    assert len(seen) == 4
    told = link(page)
    assert (told["facet"], told["layer"], told["size"], told["position"]) == ("value", "-2", "64", "out")
    expect(page.locator(".cmd code").last).to_contain_text("--facet value --layer 1 --size 64")
    expect(page.locator(".cmd code").last).to_contain_text("--no-position")


def test_a_link_restores_the_view(pair):
    page = pair(
        "&img=chelsea&img_b=lion&rule=argmax&facet=query&layer=-2&size=64&n=12&front=pca&position=out&mode=heat&side=b&patch=21"
    ).page
    expect(page.locator(".memory img")).to_have_count(8)
    expect(page.locator(".legend span").last).to_have_text(re.compile("patch 2, 5 of B|patch 2, 5"))
    for group, name in (("Rule", "One way"), ("Foreground", "1st component"), ("Show", "Heat map on hover")):
        expect(page.get_by_role("group", name=group).get_by_role("button", name=name)).to_have_attribute(
            "aria-pressed", "true"
        )
    for label, value in (("Facet", "query"), ("Layer", "-2")):
        expect(page.get_by_label(label)).to_have_value(value)
    expect(page.get_by_role("switch", name="Take position out")).to_be_checked()
    before, table = link(page), page.locator("section[aria-label='Scores'] tbody").inner_text()
    page.reload()
    page.locator(".memory img").nth(7).wait_for()
    assert link(page) == before
    assert page.locator("section[aria-label='Scores'] tbody").inner_text() == table


def test_a_link_to_an_upload_says_that_it_is_gone(pair):
    page = pair("&img=chelsea&img_b=somebodys-upload").page
    expect(page.locator(f"{TRAY} .note")).to_contain_text("A picture of this link is not here")


def test_the_whole_flow_by_keyboard(pair):
    page = pair().page
    stage = page.locator(".stage.a .overlay").first
    stage.focus()
    page.keyboard.press("Enter")
    words = page.locator(".legend span").last
    expect(words).to_contain_text("of A")
    row, column = map(int, re.findall(r"\d+", words.inner_text()))
    page.keyboard.press("ArrowDown" if row < 10 else "ArrowUp")
    expect(words).to_have_text(f"patch {row + 1 if row < 10 else row - 1}, {column} of A")
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    expect(words).to_contain_text(", 15 of A")
    expect(page.locator(".memories:not(.old) img")).to_have_count(8)
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Top matches")).to_have_attribute("aria-pressed", "true")
    assert "patch" not in link(page)
    page.keyboard.press("Tab")
    expect(page.locator(".stage.b .overlay").first).to_be_focused()


def test_two_models_side_by_side(pair):
    page = pair("&img=chelsea&img_b=lion").page
    page.get_by_label("Compare with").fill("random:vit_tiny_patch16_224")
    page.get_by_label("Compare with").press("Enter")
    captions = page.locator(".pairs .caption")
    expect(captions.nth(1)).to_contain_text("vit_tiny_patch16_224", timeout=20_000)
    expect(captions.nth(0)).to_contain_text("small")
    assert link(page)["other"] == "random:vit_tiny_patch16_224"
    boxes = [page.locator(".pair").nth(i).bounding_box() for i in range(2)]
    assert boxes[0] and boxes[1] and abs(boxes[0]["y"] - boxes[1]["y"]) < 2 and boxes[1]["x"] > boxes[0]["x"]
    click_patch(page, "a", 0.4, 0.4)
    expect(page.get_by_role("heading", name="Nearest patches in B")).to_be_visible()
    page.get_by_label("Compare with").fill("random:no_such_model")
    page.get_by_label("Compare with").press("Enter")
    expect(page.locator(".settings .note")).to_contain_text("timm has no model named")
    page.get_by_label("Compare with").fill("")
    page.get_by_label("Compare with").press("Enter")
    expect(page.locator(".pair:visible")).to_have_count(1)


def test_a_pin_goes_with_its_picture_and_to_its_place_on_another_grid(pair):
    page = pair("&img=chelsea&img_b=lion").page
    click_patch(page, "b", 0.6, 0.3)
    expect(page.locator(".memories:not(.old) img")).to_have_count(8)
    before = [image.get_attribute("src") for image in page.locator(".memory img").all()]
    page.get_by_label("Input size", exact=True).last.select_option("64")  # 8×8 patches in place of 16×16
    expect(page.locator(".legend span").last).to_have_text("patch 2, 4 of B")
    page.get_by_role("button", name="Swap").click()
    expect(page.locator(".stage.a .tag").first).to_have_text("A · lion.jpg")
    expect(page.locator(".legend span").last).to_have_text("patch 2, 4 of A")
    page.locator(f"{TRAY} .pics button[title='chelsea.png']").click()  # the tray fills B, which holds it already
    page.get_by_role("group", name="The tray fills").get_by_role("button", name="A").click()
    page.locator(f"{TRAY} .pics button[title='coffee.png']").click()
    expect(page.locator(".stage.a .tag").first).to_have_text("A · coffee.png")
    expect(page.get_by_text("Click a patch: the part of the picture")).to_be_visible()
    assert "patch" not in link(page) and len(before) == 8


def test_two_models_that_both_refuse_are_not_asked_again(pair):
    page = (watched := pair("&model=random:resnet10t&img=chelsea&img_b=lion&size=704&layer=-1")).page
    page.get_by_label("Compare with").fill("random:resnet18")
    page.get_by_label("Compare with").press("Enter")
    expect(page.locator(".pairs .caption").nth(1)).to_contain_text("resnet18", timeout=30_000)
    page.get_by_label("Layer").select_option(label="Stage 1")
    expect(page.locator(f"{TRAY} .note")).to_contain_text("cells here")
    page.wait_for_timeout(1500)
    before = len(watched.requests)
    page.wait_for_timeout(2000)
    asked = [url for url in watched.requests[before:] if "heartbeat" not in url]
    assert asked == []


def test_a_link_waits_for_the_model_it_names(pair):
    page = pair(
        "&model=random:vit_base_patch14_dinov2@5&img=chelsea&img_b=lion&layer=-11&facet=value&side=b&patch=21"
    ).page
    expect(page.locator("button.model")).to_contain_text("vit_base_patch14_dinov2", timeout=60_000)
    expect(page.get_by_label("Layer")).to_have_value("-11")
    expect(page.get_by_label("Facet")).to_have_value("value")
    assert (link(page)["side"], link(page)["patch"]) == ("b", "21")


def test_a_link_keeps_the_second_model_while_it_is_on_its_way(pair):
    held: list[Route] = []
    other = "random:vit_tiny_patch16_224"
    page = pair(f"&img=chelsea&img_b=lion&other={other}", routes={"**/api/open": lambda route: held.append(route)}).page
    settled(page)
    page.get_by_role("button", name="One way").click()
    assert held and link(page)["other"] == other
    held[0].continue_()
    expect(page.locator(".pairs .caption").nth(1)).to_contain_text("vit_tiny_patch16_224", timeout=20_000)
    assert (link(page)["other"], link(page)["rule"]) == (other, "argmax")


ODD = ("layer=99", "layer=3.7", "check=crops&seed=-1", "check=constructor", "rule=toString", "front=constructor")
ODD += ("n=-5", "mode=heat&side=a&patch=2.5", "size=1e9", "min=NaN")


@pytest.mark.parametrize("odd", ODD)
def test_odd_links_show_the_ordinary_view(pair, odd: str):
    page = pair(f"&img=chelsea&img_b=lion&{odd}").page
    settled(page)
    if "heat" not in odd:
        assert counted(page)[0] > 0
    assert page.locator(f"{TRAY} .note").count() == 0


def test_a_model_of_feature_maps_matches_its_cells(pair):
    page = pair("&model=random:resnet10t&img=chelsea&img_b=lion").page
    expect(page.locator("button.model")).to_contain_text("resnet10t", timeout=20_000)
    settled(page)
    expect(page.get_by_label("Facet").locator("option")).to_have_text(["Tokens (default)"])
    expect(page.get_by_label("Layer").locator("option").first).to_have_text("Stage 5")
    expect(page.get_by_role("group", name="Foreground").get_by_role("button", name="Attended")).to_be_disabled()
    click_patch(page, "a", 0.5, 0.5)
    expect(page.get_by_text("This model has no memory.")).to_be_visible()


def test_the_picture_that_is_taken_away_holds_both(pair):
    page = pair().page
    with page.expect_download() as download:
        page.get_by_role("button", name="PNG", exact=True).click()
    saved = np.asarray(decode_image(download.value.path()))
    box = page.locator(".pair").first.bounding_box()
    assert box and saved.shape[1] == pytest.approx(2 * box["width"], abs=2) and len(np.unique(saved)) > 100
    with page.expect_download() as download:
        page.get_by_role("link", name="NPZ").click()
    assert {"a", "b", "mutual", "mutual_scores", "argmax", "grid_a", "grid_b"} <= set(np.load(download.value.path()))


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width, height", [(390, 844), (1440, 900)])
def test_accessible_without_jumps_at_any_width(pair, theme: str, width: int, height: int):
    page = pair(width=width, height=height, color_scheme=theme, has_touch=width < 500).page
    settled(page)
    watch_jumps(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    first, second = (page.locator(".pair .stage").nth(i).bounding_box() for i in range(2))
    assert first and second
    assert (second["y"] > first["y"] + first["height"]) == (width < 500)  # one below the other on a phone
    assert counted(page)[0] == (20 if width < 500 else 40)
    overlay = page.locator(".stage.a .overlay").first
    (overlay.tap if width < 500 else overlay.click)(position={"x": 60, "y": 60})
    expect(page.locator(".memory img")).to_have_count(8)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.mouse.move(5, 5)
    assert_accessible(page)
    assert page.evaluate("window.jumps") < 0.02
