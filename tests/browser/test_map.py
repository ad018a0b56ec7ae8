"""The Map panel in a browser: colours, pin, lasso, search, files, the picture's place, links; on a phone too."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import pytest
from browser.conftest import SHOWN, assert_accessible, watch_jumps
from browser.pictures import photo, upload
from browser.test_page import add
from playwright.sync_api import Page, expect


def link(page: Page) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def frames(page: Page) -> None:
    """Until what was asked for is drawn."""
    page.evaluate("async () => { for (let i = 0; i < 3; i++) await new Promise(requestAnimationFrame); }")


def until(page: Page, is_so: Callable[[], object], seconds: float = 15) -> None:
    for _ in range(int(seconds * 20)):
        if is_so():
            return
        page.wait_for_timeout(50)
    raise AssertionError("It did not come to this.")


def find(page: Page, words: str) -> None:
    page.get_by_label("Find slots").fill(words)
    page.get_by_label("Find slots").press("Enter")


def test_the_whole_memory_is_shown_and_what_it_is(panel):
    page = panel().page
    expect(page.locator(SHOWN)).to_contain_text("62 of 64 slots shown · snapshot at step 611 · first two principal")
    drawn = "c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size"
    assert page.locator(".mapbox canvas").first.evaluate(drawn) > 10
    rows = page.locator(".legendrow")
    expect(rows).to_have_count(8)
    assert [row.get_attribute("aria-pressed") for row in rows.all()] == ["true"] * 7 + ["false"]
    rows.nth(7).click()  # an eighth colour: the first gives way
    assert [row.get_attribute("aria-pressed") for row in rows.all()] == ["false"] + ["true"] * 7
    rows.nth(3).click()
    expect(rows.nth(3)).to_have_attribute("aria-pressed", "false")
    for by, words in (("age", "steps since it was written"), ("similarity", "cosine to the picture")):
        page.get_by_label("Colour by").select_option(by)
        expect(page.locator(".mapgrid aside")).to_contain_text(words)


def test_a_slot_is_found_pinned_and_told(panel):
    page = panel().page
    find(page, "37")
    card = page.get_by_role("region", name="Pinned slot")
    expect(card).to_contain_text("Slot 37")
    for words in ("drawn:0:16#5", "step 370, 240 steps ago", "memory space, exact", "in 40 keys"):
        expect(card).to_contain_text(words)
    expect(card.locator(".mini")).to_have_count(12)
    assert link(page)["slot"] == "37"
    slot = (card.locator(".mini").nth(2).get_attribute("aria-label") or "").split()[1].rstrip(",")
    card.locator(".mini").nth(2).click()
    expect(card.locator("h3").first).to_have_text(f"Slot {slot}")
    page.reload()
    expect(page.get_by_role("region", name="Pinned slot")).to_contain_text(f"Slot {slot}")
    page.get_by_role("button", name="Unpin").click()
    expect(page.get_by_role("region", name="Pinned slot")).to_be_empty()


def test_a_lasso_and_its_file_hold_the_same_slots(panel):
    page = panel().page
    box = page.locator(".mapbox .overlay").bounding_box()
    assert box
    page.get_by_role("button", name="Box").click()
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 60, steps=4)
    page.mouse.up()
    picks = page.get_by_role("region", name="Selection")
    expect(picks.locator("h2")).to_contain_text("slots inside")
    count = int(picks.locator("h2").inner_text().split()[0])
    assert 0 < count < 62
    expect(picks.locator(".mini")).to_have_count(min(count, 60))
    with page.expect_download() as download:
        picks.get_by_role("button", name="CSV").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text())))
    labels = picks.locator(".mini").evaluate_all("all => all.map(tile => tile.getAttribute('aria-label'))")
    shown = [int(label.split()[1]) for label in labels]
    assert [int(row["slot"]) for row in rows][:60] == shown and len(rows) == count
    for kind, start in (("PARQUET", b"PAR1"), ("ZIP", b"PK")):
        with page.expect_download() as download:
            picks.get_by_role("button", name=kind).click()
        assert download.value.path().read_bytes().startswith(start)
    page.locator(".mapbox .overlay").focus()
    page.keyboard.press("Escape")
    expect(picks).to_be_empty()


def test_words_find_classes_and_a_wrong_word_nothing(panel):
    page = panel().page
    find(page, "FISH")
    picks = page.get_by_role("region", name="Selection")
    expect(picks.locator("h2")).to_have_text("7 slots for “FISH”")
    find(page, "<img src=x onerror=alert(1)>")
    expect(picks.locator("h2")).to_have_text("0 slots for “<img src=x onerror=alert(1)>”")
    expect(picks.get_by_role("button", name="CSV")).to_be_disabled()


def test_hover_shows_the_slot_under_the_pointer(panel):
    page = panel().page
    find(page, "37")
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_role("region", name="Pinned slot")).to_contain_text("Slot 37")
    frames(page)
    box = page.locator(".mapbox .overlay").bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 2 + 1, box["y"] + box["height"] / 2)  # `find` goes there
    card = page.locator(".hovercard")
    expect(card).to_be_visible()
    expect(card).to_contain_text("37")
    inner = card.bounding_box()
    assert inner and inner["x"] >= box["x"] and inner["x"] + inner["width"] <= box["x"] + box["width"] + 1


def test_an_upload_is_placed_and_leaving_the_tab_resets_nothing(panel):
    page = (watched := panel()).page
    with page.expect_response("**/api/placed/*"):  # of this picture; that of the first has come
        add(page, upload(photo(200, 160, 5), "mine.png", "PNG"), "#tray-memory")
    frames(page)
    page.get_by_label("Colour by").select_option("similarity")
    expect(page.locator(".mapgrid aside")).to_contain_text("cosine to the picture")
    page.get_by_role("button", name="Zoom in").click()
    page.wait_for_timeout(400)  # longer than the map moves
    frames(page)
    picture = "() => document.querySelector('.mapbox canvas').toDataURL()"
    before, asked = page.evaluate(picture), len(watched.requests)
    page.get_by_role("tab", name="About").click()
    page.get_by_role("tab", name="Memory").click()
    page.get_by_role("button", name="Neighbours", exact=True).click()
    expect(page.locator(".tile")).to_have_count(20)
    page.get_by_role("button", name="Map", exact=True).click()
    page.wait_for_function(f"before => ({picture})() === before", arg=before)
    assert not [url for url in watched.requests[asked:] if "/points" in url]


def test_a_link_restores_space_colour_and_slot(panel):
    page = panel("&space=embedding&by=age&slot=9").page
    expect(page.get_by_role("region", name="Pinned slot")).to_contain_text("embedding space")
    expect(page.get_by_label("Colour by")).to_have_value("age")
    assert [link(page).get(name) for name in ("space", "by", "slot")] == ["embedding", "age", "9"]


@pytest.mark.parametrize("odd", ["slot=99", "slot=-1", "slot=x", "space=dreams", "by=toString"])
def test_odd_links_show_the_map(panel, odd: str):
    page = panel(f"&{odd}").page
    expect(page.locator(".legendrow")).to_have_count(8)


def test_a_model_without_memory_says_so(visit):
    page = visit("?tab=memory&panel=map&model=random:resnet10t", ready="#map .blank").page
    expect(page.locator("#map .blank")).to_contain_text("has no memory, so there is no map of it", timeout=20_000)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width, height", [(390, 844), (1440, 900)])
def test_accessible_without_jumps_at_any_width(panel, theme: str, width: int, height: int):
    page = panel(width=width, height=height, color_scheme=theme, has_touch=width < 500).page
    watch_jumps(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    overlay = page.locator(".mapbox .overlay")
    if width < 500:
        find(page, "37")  # which goes there
        page.get_by_role("button", name="Unpin").click()
        box = overlay.bounding_box()
        assert box
        overlay.tap(position={"x": box["width"] / 2, "y": box["height"] / 2})
    else:
        overlay.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
    expect(page.get_by_role("region", name="Pinned slot")).to_contain_text("Nearest")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert_accessible(page)
    assert page.evaluate("window.jumps") < 0.02
