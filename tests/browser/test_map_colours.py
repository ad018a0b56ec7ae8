"""What colours the map, what stands beside it, and whose words these are: hostile ones, missing ones, stale ones."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from browser.conftest import SHOWN, assert_accessible
from browser.small_bundle import write_small_bundle
from browser.test_map import find, frames, link, until
from PIL import Image
from playwright.sync_api import Page, Route, expect

from memssl_core.bundle.layout import open_bundle

HOSTILE = "<img src=x onerror='window.hit=1'>{{7*7}}"
URI = "javascript:window.hit=2//<script>window.hit=3</script>"
UNKEPT = 3
GROUND = "document.querySelector('.mapbox canvas').toDataURL()"


@pytest.fixture(scope="session")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with hostile words, and one slot of which no crop and no picture were kept."""
    folder = write_small_bundle(tmp_path_factory.mktemp("strange") / "strange", seed=2)
    bundle = open_bundle(folder)
    memory = bundle.memory
    assert memory is not None
    box, pictures = memory.box.copy(), memory.thumbnails.to_pylist()
    box[UNKEPT], pictures[UNKEPT] = 0, None
    words = [HOSTILE if slot % 2 else "=cmd|' /C calc'!A0" for slot in range(memory.slots)]
    changed = replace(memory, class_name=words, uri=[URI] * memory.slots, box=box, thumbnails=pictures)
    replace(bundle, memory=changed).save(folder)
    return folder


def colour(page: Page, by: str) -> None:
    page.get_by_label("Colour by").select_option(by)
    expect(page.get_by_role("region", name="Colours").locator("h2")).to_have_text(
        page.get_by_label("Colour by").locator(f"option[value={by}]").inner_text()
    )


def counts(page: Page) -> list[int]:
    return [int(text) for text in page.locator(".legendrow .meta").all_inner_texts()]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width, height", [(390, 844), (1440, 900)])
def test_every_colouring_and_its_legend(panel, theme: str, width: int, height: int):
    page = panel(width=width, height=height, color_scheme=theme).page
    legend = page.get_by_role("region", name="Colours")
    looks = set()
    for by, words in (
        ("class", "slots"),
        ("age", "steps since it was written"),
        ("purity", "share of the 15 nearest slots that are of its class"),
        ("density", "mean cosine to the 15 nearest slots"),
        ("duplicates", "slots in all"),
        ("similarity", "cosine to the picture"),
        ("agreement", "of the 16 nearest of each"),
    ):
        colour(page, by)
        expect(legend).to_contain_text(words)
        assert link(page).get("by") == (None if by == "class" else by)
        fresh = f"looks => {{ const look = {GROUND}; return looks.includes(look) ? null : look; }}"
        looks.add(page.wait_for_function(fresh, arg=list(looks), polling=50).json_value())
    assert_accessible(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_the_threshold_of_near_duplicates(panel):
    page = panel("&by=duplicates").page
    slider = page.get_by_label("Duplicates from cosine")
    expect(slider).to_be_visible()
    first = counts(page)
    slider.focus()
    slider.press("Home")
    expect(slider).to_have_attribute("aria-valuetext", "0.90000")
    expect(page.locator(".legendrow").first).not_to_contain_text(f" {first[0]}")
    assert sum(counts(page)) > sum(first)
    slider.press("End")
    expect(page.get_by_role("region", name="Colours")).to_contain_text("None.")
    colour(page, "class")
    expect(slider).to_be_hidden()


def test_student_and_teacher_follow_the_picture(panel):
    page = panel("&by=agreement").page
    expect(page.get_by_label("Colour by")).to_have_value("agreement")
    both, teacher, student = counts(page)
    assert both + teacher == both + student == 16
    page.locator("#tray-memory .pics button").nth(3).click()
    expect(page.locator(".legendrow .meta").first).not_to_have_text(str(both))
    expect(page.get_by_label("Colour by")).to_have_value("agreement")
    page.get_by_role("button", name="Embedding", exact=True).click()  # where the student has no vectors to compare
    expect(page.locator(SHOWN)).to_contain_text("the cross is the picture above")
    expect(page.get_by_label("Colour by")).to_have_value("class")


def test_what_a_run_has_overwritten_is_marked(panel):
    since = {"steps": 40, "keys": 12, "overwritten": 10, "is_running": True}  # two of them held noise

    def gone_on(route: Route) -> None:
        told = {"is_stale": True} if route.request.url.endswith("/9") else {"since": since}
        route.fulfill(json=route.fetch().json() | told)

    page = panel().page
    for asked in ("**/api/map/*/memory", "**/api/slots/*/memory/9"):
        page.route(asked, gone_on)
    page.reload()
    expect(page.locator(SHOWN)).to_contain_text(
        "snapshot at step 611 · the run has gone on for 40 steps and overwritten 10 of these slots"
    )
    colour(page, "stale")
    expect(page.locator(".legendrow")).to_have_text("overwritten since step 61110")
    for slot, words in ((9, "since this snapshot of step 611"), (20, "in 23 keys")):  # 62, 63, 0, 1, … 9 are gone
        page.goto(re.sub(r"&slot=\d+|$", f"&slot={slot}", page.url, count=1))
        expect(page.get_by_role("region", name="Pinned slot")).to_contain_text(words)


def test_a_run_that_goes_on_leaves_what_was_chosen_and_the_focus(panel):
    since = {"steps": 40, "keys": 12, "overwritten": 10, "is_running": True}
    page = panel().page
    page.route("**/api/map/*/memory", lambda route: route.fulfill(json=route.fetch().json() | {"since": since}))
    page.reload()
    expect(page.locator(SHOWN)).to_contain_text("overwritten 10 of these slots")
    expect(page.locator(SHOWN)).to_contain_text("the cross is the picture above")  # which brings choices of its own
    colour(page, "stale")
    page.evaluate("document.querySelector('.fitting button').id = document.querySelector('#map option').id = 'same'")
    row = page.locator(".legendrow")
    row.click()
    since |= {"steps": 60, "keys": 20, "overwritten": 18}
    expect(row).to_have_text("overwritten since step 61118")
    expect(row).to_have_attribute("aria-pressed", "false")
    expect(row).to_be_focused()
    expect(page.locator("#same")).to_have_count(2)


def test_colours_that_do_not_come_are_told_and_others_stay(panel):
    page = (watched := panel()).page
    page.route("**/colour/density*", lambda route: route.fulfill(status=410, json={"error": "Install faiss."}))
    before = page.evaluate(GROUND)
    page.get_by_label("Colour by").select_option("density")
    expect(page.get_by_role("alert")).to_contain_text("Install faiss.")
    expect(page.get_by_label("Colour by")).to_have_value("class")
    frames(page)
    assert page.evaluate(GROUND) == before
    assert [said for said in watched.complaints if "410" not in said] == []
    watched.complaints.clear()


def test_an_answer_that_breaks_off_is_told_and_others_stay(panel):
    page = (watched := panel()).page
    page.route("**/colour/density*", lambda route: route.abort())
    page.get_by_label("Colour by").select_option("density")
    expect(page.get_by_role("alert")).to_contain_text("The colours did not arrive. The server does not answer")
    expect(page.get_by_label("Colour by")).to_have_value("class")
    legend = page.get_by_role("region", name="Colours")
    expect(legend.locator("h2")).to_have_text("Class")
    legend.locator(".legendrow").first.click()
    expect(legend.locator(".legendrow").first).to_have_attribute("aria-pressed", "false")
    expect(legend.locator(".legendrow").first).to_be_focused()
    assert len(watched.complaints) == 1 and "ERR_FAILED" in watched.complaints.pop()


def test_a_place_that_did_not_come_is_told_and_asked_for_again(panel):
    page = (watched := panel()).page
    page.route("**/api/placed/*", lambda route: route.fulfill(status=500, body="Internal Server Error"))
    pictures = page.locator("#tray-memory .pics button")
    pictures.nth(1).click()
    expect(page.get_by_role("alert")).to_contain_text("The picture's place did not arrive.")
    page.unroute("**/api/placed/*")
    with page.expect_response("**/api/placed/*") as response:
        pictures.nth(1).click()
    assert response.value.ok
    expect(page.get_by_role("alert")).to_have_count(0)
    assert len(watched.complaints) == 1 and "500" in watched.complaints.pop()


def test_of_two_thresholds_the_last_one_counts(panel):
    page = panel("&by=duplicates").page
    legend, slider = page.get_by_role("region", name="Colours"), page.get_by_label("Duplicates from cosine")
    expect(slider).to_be_visible()
    held: list[Route] = []
    page.route(re.compile("threshold="), lambda route: route.continue_() if held else held.append(route))
    slider.press("Home")
    until(page, lambda: held)
    slider.press("End")
    expect(legend).to_contain_text("None.")
    with page.expect_response(re.compile("threshold=0.9000000")):
        held[0].continue_()
    frames(page)
    expect(legend).to_contain_text("None.")
    expect(slider).to_have_attribute("aria-valuetext", "0.99999")
    slider.press("Home")
    page.get_by_label("Colour by").select_option("class")
    page.wait_for_timeout(400)
    expect(page.get_by_label("Colour by")).to_have_value("class")
    expect(slider).to_be_hidden()


def test_the_legend_stays_in_use_while_colours_load(panel):
    page = panel().page
    held: list[Route] = []
    page.route("**/colour/density*", lambda route: held.append(route))
    page.get_by_label("Colour by").select_option("density")
    until(page, lambda: held)
    row = page.locator(".legendrow").first
    row.click()
    expect(row).to_have_attribute("aria-pressed", "false")
    held[0].continue_()
    expect(page.get_by_role("region", name="Colours")).to_contain_text("mean cosine to the 15 nearest slots")
    expect(page.get_by_label("Colour by")).to_have_value("density")


def test_a_link_to_the_colours_of_the_picture(panel):
    page = panel("&by=similarity").page
    expect(page.get_by_label("Colour by")).to_have_value("similarity")
    assert link(page)["by"] == "similarity"
    held: list[Route] = []
    page.route("**/colour/class*", lambda route: held.append(route))
    page.reload()
    until(page, lambda: held)
    page.locator("#tray-memory .pics button").nth(2).click()  # its place is there before the first colours
    expect(page.get_by_label("Colour by")).to_have_value("similarity")
    with page.expect_response("**/colour/class*"):
        held[0].continue_()
    frames(page)
    expect(page.get_by_label("Colour by")).to_have_value("similarity")
    assert link(page)["by"] == "similarity"


def test_a_link_waits_for_its_model(panel, server, strange: Path):
    asked: list[str] = []

    def slowly(route: Route) -> None:
        asked.append(route.request.method)
        answer = {"state": "loading", "ticket": "slow", "words": "reading", "done": 0, "total": None}
        if len(asked) > 3:
            told = page.request.post(f"{server}api/open", data={"source": f"bundle:{strange}"}).json()
            answer = answer if told.get("state") == "loading" else told
        route.fulfill(json=answer)

    page = panel().page
    page.route("**/api/open", slowly)
    page.route("**/api/open/slow", slowly)
    page.goto(f"{server}?tab=memory&panel=map&model=bundle:{strange}&space=embedding&by=age&slot=9")
    expect(page.locator("#map .blank")).to_contain_text("Opening the model")
    card = page.get_by_role("region", name="Pinned slot")
    expect(card).to_contain_text(HOSTILE)
    expect(card).to_contain_text("embedding space")
    assert [link(page).get(name) for name in ("space", "by", "slot")] == ["embedding", "age", "9"]
    assert len(asked) > 3


def test_after_filtering_each_slot_still_has_its_own_picture(panel, server):
    page = panel().page
    find(page, "fish")
    page.locator(".legendrow").nth(2).click()
    tiles = page.get_by_role("region", name="Selection").locator(".mini")
    expect(tiles).to_have_count(7)
    tiles.nth(6).locator("img").scroll_into_view_if_needed()
    slots = [int((tile.get_attribute("aria-label") or "").split()[1]) for tile in tiles.all()]
    for tile, slot in zip(tiles.all(), slots, strict=True):
        assert (tile.locator("img").get_attribute("src") or "").endswith(f"/{slot}")
    tiles.nth(4).click()
    card = page.get_by_role("region", name="Pinned slot")
    expect(card).to_contain_text(f"Slot {slots[4]}")
    expect(card).to_contain_text("fish")
    source = card.locator(".pinhead img").get_attribute("src")
    shown = Image.open(io.BytesIO(page.request.get(f"{server}{source}").body()))
    tile = page.request.get(f"{server}api/thumb/{str(source).split('/')[2]}/{slots[4]}").body()
    assert Image.open(io.BytesIO(tile)) == shown


def test_what_was_not_kept_is_said_and_words_stay_words(panel, strange: Path):
    page = (watched := panel(f"&model=bundle:{strange}&slot={UNKEPT}")).page
    card = page.get_by_role("region", name="Pinned slot")
    expect(card).to_contain_text(HOSTILE)
    expect(card).to_contain_text(URI)
    expect(card.locator(".pinhead")).to_contain_text("picture not kept")
    expect(card.locator("dd").filter(has_text="not kept")).to_be_visible()
    expect(page.locator(".legendrow").first).to_contain_text(HOSTILE)
    expect(page.locator(".legendrow").nth(1)).to_contain_text("=cmd|' /C calc'!A0")
    find(page, "onerror")
    expect(page.get_by_role("region", name="Selection")).to_contain_text("31 slots for “onerror”")
    expect(page.locator(".mini[aria-label='Slot 3']")).to_contain_text("picture not kept")
    assert not [url for url in watched.requests if url.endswith(f"/{UNKEPT}") and "/thumb/" in url]
    page.locator(".mapbox .overlay").focus()
    page.keyboard.press("ArrowRight")
    page.get_by_role("button", name="Neighbours", exact=True).click()
    expect(page.locator(".tile")).to_have_count(20)
    assert page.evaluate("window.hit") is None


def test_pictures_stand_on_the_map_near_in_and_can_be_switched_off(panel):
    page = (watched := panel()).page
    page.get_by_role("button", name="Zoom in").click()
    shown = lambda: len({url for url in watched.requests if "/thumb/" in url})
    covered = """() => {
      const layer = document.querySelector('.mapbox .overlay'), { width, height } = layer;
      const pen = new OffscreenCanvas(width, height).getContext('2d', { willReadFrequently: true });
      pen.drawImage(layer, 0, 0);
      return pen.getImageData(0, 0, width, height).data.filter((value, i) => i % 4 === 3 && value === 255).length;
    }"""
    switch = page.get_by_role("switch", name="Pictures")
    expect(switch).to_be_checked()
    until(page, lambda: shown() > 5)
    switch.uncheck()
    frames(page)
    off = page.evaluate(covered)
    switch.check()
    page.wait_for_function(f"off => ({covered})() > off + 5 * 40 * 40", arg=off, polling=50)
    switch.uncheck()
    page.wait_for_function(f"off => ({covered})() === off", arg=off, polling=50)
    asked = shown()
    page.get_by_role("button", name="Zoom in").click()
    page.wait_for_timeout(500)
    assert shown() == asked
