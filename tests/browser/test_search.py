"""The tab Search: a folder of photographs made into a gallery once, and everything that can be asked of it."""

from __future__ import annotations

import csv
import io
import re
import shlex
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator

import pytest
from browser.conftest import Watched, assert_accessible, watch, watch_jumps
from browser.pictures import photo, upload
from browser.search_tab import (
    HOSTILE,
    PHOTOGRAPHS,
    changed,
    colours,
    field,
    paths,
    searched,
    settled,
    shown,
    tiles,
    write_photographs,
)
from browser.server import Server
from browser.small_bundle import write_small_bundle
from browser.test_page import LEAKS, add
from playwright.sync_api import Browser, expect

JOB_MS = 120_000  # a job imports torch first, at a low priority
TRIP, FOUND = "place=gallery:trip", "**/api/found/*"
Visit = Callable[..., Watched]


@pytest.fixture(scope="module")
def searching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the root `photos`, in which `trip` lies."""
    folder = tmp_path_factory.mktemp("search")
    bundle = write_small_bundle(folder / "small")
    (folder / "photos").mkdir()
    with Server(folder, ["--model", f"bundle:{bundle}", "--root", f"photos={folder / 'photos'}"]) as server:
        yield server


@pytest.fixture
def visit(guest: Callable[..., Watched], searching: Server) -> Visit:
    """Opens the tab as a new visitor."""
    return lambda query="", **options: guest(f"{searching.url}?tab=search&{query}", **{"width": 1440, **options})


@pytest.fixture(scope="module")
def trip(browser: Browser, searching: Server) -> dict[str, str]:
    """Gallery `trip`, made through the page by keyboard; path -> class of its pictures."""
    classes = write_photographs(searching.folder / "photos" / "trip")
    watched = watch(browser.new_page())
    page = watched.page
    page.goto(f"{searching.url}?tab=search&place=gallery:")
    blank = page.locator("#search .blank")
    expect(blank).to_contain_text("There is no gallery yet.")
    blank.get_by_role("button", name="Make a gallery").press("Enter")
    form = page.locator("#galleries")
    form.locator(".folders").get_by_role("button", name="trip", exact=True).press("Enter")
    expect(form.get_by_label("Name of the gallery")).to_have_value("trip")
    names, values = (form.locator(f".need {tag}").all_inner_texts() for tag in ("dt", "dd"))
    need = dict(zip(names, values, strict=True))
    listed = len(classes) + 2
    assert need["Pictures found"] == need["To embed"] == str(listed)
    assert need["Time"].startswith("about") and need["Main memory"].endswith("free") and need["Disk"].endswith("free")
    words = shlex.split(form.locator(".cmd code").inner_text())
    assert words[:5] == ["python", "-m", "analysis", "gallery", "trip"]
    assert words[words.index("--data") + 1] == str(searching.folder / "photos" / "trip")
    form.get_by_role("button", name="Make the gallery").press("Enter")
    expect(blank).to_contain_text("Gallery trip is being made.")
    expect(page.get_by_role("progressbar", name="Embedding")).to_be_visible()
    expect(page.locator(".jobs")).to_contain_text("1 job")
    expect(page.locator(".results .tile").first).to_be_visible(timeout=JOB_MS)
    expect(page.locator(".gstatus")).to_contain_text(f"{len(classes)} pictures · photos/trip")
    page.context.close()
    watched.assert_quiet()
    return classes


def test_a_picture_finds_itself_first_and_its_copies_behind_it(visit: Visit, trip: dict[str, str]):
    page = visit(f"{TRIP}&img=chelsea").page
    settled(page)
    first = tiles(page).first
    expect(first).to_have_attribute("aria-label", "Rank 1, score 1.000, chelsea, chelsea/whole.png")
    expect(page.locator(".results .head .meta")).to_contain_text(re.compile(rf"of {len(trip) - 1} · .*folded, .*exact"))
    fold = page.get_by_role("button", name="1 nearly the same as result 1")
    expect(fold).to_have_text("+1 alike")
    count = tiles(page).count()
    fold.press("Enter")
    expect(tiles(page)).to_have_count(count + 1)
    assert paths(page)[1] == "chelsea/saved again.jpg"
    expect(fold).to_be_focused()
    page.get_by_role("switch", name="Fold near-duplicates").click()
    expect(page.locator(".alike")).to_have_count(0)
    expect(tiles(page)).to_have_count(20)

    first.press("Enter")
    expect(shown(page)).to_contain_text("chelsea/whole.png")  # every path of the same content
    expect(shown(page)).to_contain_text("coffee/the cat again.png")
    expect(shown(page)).to_contain_text("451×300 px")
    page.keyboard.press("Escape")
    expect(shown(page)).to_have_count(0)
    expect(first).to_be_focused()


@pytest.mark.parametrize(("place", "ratio"), [("0", "landscape"), ("1", "portrait")])
def test_what_of_a_result_is_like_the_query_is_shown_on_it(visit: Visit, trip: dict[str, str], place: str, ratio: str):
    page = visit(f"{TRIP}&img=astronaut&path=astronaut/{place}.").page
    settled(page, "The only one")
    watch_jumps(page)
    tiles(page).first.press("Enter")
    detail = shown(page)
    image = detail.locator(".inner img").last
    page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=image.element_handle())
    box = image.bounding_box()
    assert box and (box["width"] > box["height"]) == (ratio == "landscape")
    detail.get_by_role("button", name="Explain").click()
    heat = detail.get_by_role("img", name="What of the result is like the query")
    expect(heat).to_have_attribute("aria-label", re.compile(r"strongest in row \d+, column \d+ of \d+×\d+ patches"))
    assert heat.bounding_box() == box  # the canvas lies on the picture
    assert colours(heat) > 20
    low, high = (float(text) for text in detail.locator(".scale .meta").all_inner_texts())
    assert -1 <= low < high <= 1
    detail.get_by_role("button", name="Explain").click()
    expect(heat).to_have_count(0)
    assert page.evaluate("window.jumps") < 1e-3


def test_results_lead_on_to_more_like_them_less_like_them_and_between(visit: Visit, trip: dict[str, str]):
    page = visit(f"{TRIP}&img=coffee&fold=0").page
    settled(page)
    query = page.get_by_role("group", name="Query")
    chosen = paths(page)[4]
    tiles(page).nth(4).click()
    searched(page, shown(page).get_by_role("button", name="Search with this").click)
    assert paths(page)[0] == chosen and tiles(page).first.inner_text().startswith("1.000")
    expect(query.locator(".qchip")).to_have_text(chosen.rpartition("/")[2])
    assert re.search(r"with=gallery%3Atrip%3A\d+", page.url)
    tiles(page).first.click()
    expect(shown(page).get_by_role("button", name="Search with this")).to_be_disabled()  # it already is
    order = paths(page)

    tiles(page).nth(6).click()
    searched(page, shown(page).get_by_role("button", name="More like both").click)
    expect(query.locator(".qchip")).to_have_count(2)
    expect(page.locator(".queries")).to_contain_text("Their mean is searched with.")
    assert "--mean" in page.locator(".search > .cmd code").inner_text()
    tiles(page).nth(8).click()
    unlike = paths(page)[8]
    searched(page, shown(page).get_by_role("button", name="Less like this").click)
    assert unlike not in paths(page)[:8]
    expect(page.get_by_role("group", name="Less like").locator(".qchip")).to_have_count(1)
    both = paths(page)
    page.reload()  # all of it is in the address
    settled(page)
    assert paths(page) == both
    searched(page, page.get_by_role("button", name="Clear", exact=True).click)
    searched(page, query.get_by_role("button", name=re.compile("Leave out")).last.click)
    assert paths(page) == order


def test_a_walk_leads_from_one_picture_to_another(visit: Visit, trip: dict[str, str]):
    page = visit(f"{TRIP}&with=rocket,flower").page
    settled(page)
    page.get_by_role("button", name="Walk between").click()
    walk = page.get_by_role("region", name="Walk")
    steps = walk.locator(".tile")
    expect(steps).to_have_count(8)
    expect(walk.locator(".head .meta")).to_contain_text(re.compile(r"8 steps over \d+°, gallery trip"))
    assert len({step.get_attribute("title") for step in steps.all()}) == 8
    expect(walk.get_by_role("heading", name="Walk")).to_be_focused()
    walk.get_by_role("slider", name="Steps").press("Home")
    expect(steps).to_have_count(3)
    steps.nth(1).press("Enter")
    expect(walk.locator(".detail")).to_contain_text("Step 2 of 3")
    walk.get_by_role("button", name="Close the walk").press("Enter")
    expect(walk).to_be_hidden()


def test_filters_counts_and_files(visit: Visit, trip: dict[str, str]):
    page = visit(f"{TRIP}&img=rocket&fold=0").page
    settled(page)
    searched(page, lambda: page.get_by_role("group", name="How many").get_by_role("button", name="50").click())
    expect(tiles(page)).to_have_count(50)
    classes = page.locator("#search-classes option")
    assert [one.get_attribute("value") for one in classes.all()] == sorted({*PHOTOGRAPHS})
    searched(page, lambda: field(page, "Class").fill("flower"))
    assert {trip[path] for path in paths(page)} == {"flower"}
    of = sum(name == "flower" for name in trip.values())
    expect(page.locator(".results .head .meta")).to_contain_text(f"of {of} that pass the filters")
    searched(page, lambda: field(page, "Path holds").fill("R/1."))
    assert paths(page) == ["flower/1.png"]
    before = page.url
    assert {"k=50", "class=flower", "path=R%2F1."} <= {*before.partition("?")[2].split("&")}
    page.reload()
    settled(page, "The only one")
    assert page.url == before and field(page, "Class").input_value() == "flower"
    field(page, "Path holds").fill("nowhere")
    expect(page.locator(".search > .slot .note")).to_contain_text("Nothing passes the filters.")
    searched(page, page.get_by_role("button", name="Clear the filters").click)

    with page.expect_download() as download:
        page.get_by_role("button", name="CSV").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text())))
    assert [row["uri"] for row in rows] == paths(page) and len(rows) == 50
    with page.expect_download() as download:
        page.get_by_role("button", name="ZIP").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert len(archive.namelist()) == len(rows) + 1 and "found.csv" in archive.namelist()


def test_hostile_names_stay_words_and_what_was_skipped_is_named(visit: Visit, trip: dict[str, str]):
    page = visit(f"{TRIP}&img=drawn-1&path=onerror").page
    settled(page, "The only one")
    tiles(page).first.click()
    expect(shown(page)).to_contain_text(f"rocket/{HOSTILE}")
    fold = page.locator(".gstatus").get_by_role("button", name="2 skipped")
    fold.press("Enter")
    table = page.get_by_role("region", name="Skipped files")
    expect(table.locator("tbody tr")).to_have_count(2)
    expect(table).to_contain_text("coffee/<b>words<b>.png")
    expect(table).to_contain_text("The file ends early")
    expect(page.locator("#search b").filter(has_text=re.compile("^words$"))).to_have_count(0)
    searched(page, shown(page).get_by_role("button", name="Search with this").click)
    expect(page.get_by_role("group", name="Query")).to_contain_text(HOSTILE)


def test_several_pictures_at_once_are_searched_with_together(visit: Visit, trip: dict[str, str]):
    page = visit(TRIP).page
    settled(page)
    expect(page.get_by_role("textbox", name="Address of a picture")).to_have_count(0)  # this server is offline
    wide, tall = upload(photo(320, 200, 5), "wide.jpg", "JPEG"), upload(photo(200, 320, 6), "tall.png", "PNG")
    page.locator("#tray-search input[type=file]").set_input_files([wide, tall])
    chips = page.get_by_role("group", name="Query").locator(".qchip")
    expect(chips).to_have_text(["wide.jpg", "tall.png"])
    pressed = page.locator("#tray-search .pics button[aria-pressed=true]")
    expect(pressed).to_have_count(2)
    page.get_by_role("button", name="Combine").click()
    searched(page, page.locator("#tray-search .pics button").nth(2).click)
    expect(chips).to_have_count(3)
    searched(page, chips.first.get_by_role("button").click)
    page.get_by_role("button", name="Combine").click()
    searched(page, page.locator("#tray-search .pics button").nth(1).click)
    expect(chips).to_have_text(["chelsea.png"])
    page.get_by_role("tab", name="Attention").click()
    expect(page.locator("#tray-attention .pics button").nth(1)).to_have_attribute("aria-pressed", "true")
    add(page, upload(photo(64, 64, 7), "alone.png", "PNG"))  # one tray for all tabs
    page.get_by_role("tab", name="Search").click()
    expect(chips).to_have_text(["alone.png"])


def test_the_memory_is_searched_in_both_its_spaces(visit: Visit, trip: dict[str, str]):
    page = visit("fold=0&k=50").page
    settled(page)
    expect(tiles(page)).to_have_count(50)
    expect(page.locator(".results .head .meta")).to_contain_text("of 62 · memory space · exact")
    tiles(page).first.click()
    expect(shown(page)).to_contain_text("Slot")
    expect(shown(page)).to_contain_text("drawn:0:16#")
    shown(page).get_by_role("button", name="Explain").click()
    expect(shown(page).get_by_role("img", name="What of the result is like the query")).to_be_visible()
    name = shown(page).get_attribute("aria-label")
    searched(page, page.get_by_role("button", name="Embedding space").click)
    expect(page.locator(".results .head .meta")).to_contain_text("embedding space")
    tiles(page).nth(3).click()
    searched(page, shown(page).get_by_role("button", name="Search with this").click)
    searched(page, page.get_by_role("button", name="Gallery", exact=True).click)  # the memory's picture, in the gallery
    expect(page.locator(".results .head .meta")).to_contain_text("gallery trip")
    assert name and "with=slot%3A" in page.url


def test_odd_pictures_come_first(visit: Visit, trip: dict[str, str]):
    page = visit(TRIP).page
    settled(page)
    searched(page, page.get_by_role("button", name="Oddest").click)
    expect(tiles(page)).to_have_count(60)
    scores = [float(text) for text in page.locator(".results .sc").all_inner_texts()]
    assert scores == sorted(scores)
    expect(page.get_by_role("button", name="CSV")).to_be_disabled()
    page.reload()
    settled(page, "Oddest first")
    searched(page, page.get_by_role("button", name="Most alike").click)


def test_an_index_says_how_well_it_was_measured_and_can_be_left_out(visit: Visit, trip: dict[str, str]):
    by_index = {"**/api/galleries?**": changed(index={"recall": 0.97}), FOUND: changed(exact=False, recall=0.971)}
    page = visit(TRIP, routes=by_index).page
    settled(page)
    expect(page.locator(".results .head .meta")).to_contain_text("index, recall@10 0.97 measured")
    expect(page.locator(".gstatus")).to_contain_text("index, recall@10 0.97 measured")
    page.unroute(FOUND)
    searched(page, page.get_by_role("switch", name="Exact").click)
    expect(page.locator(".results .head .meta")).to_contain_text("· exact ·")
    assert "--exact" in page.locator(".search > .cmd code").inner_text() and "exact=1" in page.url


def test_a_gallery_of_another_model_says_so_and_offers_to_embed_it_again(visit: Visit, trip: dict[str, str]):
    page = visit(TRIP, routes={"**/api/galleries?**": changed(fits=False, model="timm:other")}).page
    blank = page.locator("#search .blank")
    expect(blank).to_contain_text("Gallery trip was embedded by timm:other, so small cannot search in it.")
    expect(tiles(page)).to_have_count(0)
    blank.get_by_role("button", name="Embed it again").press("Enter")
    form = page.locator("#galleries")
    expect(form.get_by_role("heading")).to_have_text("Embed again: trip")
    expect(form.locator(".need")).to_contain_text(f"To embed{len(trip) + 2}")
    form.get_by_role("button", name="Back").press("Enter")
    expect(form.locator(".galleries .pill")).to_have_text("Another model")


def test_visitors_from_elsewhere_search_and_change_nothing(visit: Visit, trip: dict[str, str]):
    page = visit(TRIP, routes={"**/api/facts": changed(public=True)}).page
    settled(page)
    expect(field(page, "Path holds")).to_be_hidden()
    expect(page.locator(".gstatus button:visible")).to_have_count(0)
    page.get_by_role("button", name="Galleries…").click()
    expect(page.locator("#galleries button:visible")).to_have_text(["", "Search in it"])


def test_an_address_is_asked_for_where_that_is_allowed(visit: Visit):
    page = visit("fold=0", routes={"**/api/facts": changed(offline=False)}).page
    settled(page)
    page.get_by_role("textbox", name="Address of a picture").fill("https://example.org/cat.jpg")
    page.get_by_role("button", name="Fetch").press("Enter")
    expect(page.locator("#tray-search .note")).to_contain_text("The page was started with --offline")


def test_the_old_result_stays_dimmed_until_the_new_one_is_there(visit: Visit, trip: dict[str, str]):
    page = visit(f"{TRIP}&k=100&fold=0").page
    settled(page)
    expect(tiles(page)).to_have_count(60)
    page.get_by_role("button", name=f"Show {len(trip) - 61} more").press("Enter")
    expect(tiles(page)).to_have_count(len(trip) - 1)
    page.route(FOUND, lambda route: (time.sleep(1), route.continue_()))
    page.get_by_role("group", name="How many").get_by_role("button", name="50").click()
    expect(page.locator(".results.old .tile")).to_have_count(len(trip) - 1)
    expect(page.locator(".results .load")).to_contain_text("The previous result stays")
    expect(tiles(page)).to_have_count(50)
    expect(page.locator(".results .load")).to_be_hidden()


def test_what_has_changed_is_found_and_nothing_else_embedded(visit: Visit, trip: dict[str, str], searching: Server):
    folder = searching.folder / "photos" / "trip"
    page = visit(f"{TRIP}&img=rocket&fold=0").page
    settled(page)
    photo(90, 60, 9).save(folder / "rocket" / "new.png")
    (folder / "flower" / "3.png").rename(folder / "flower" / "moved.png")
    (folder / "flower" / "5.png").unlink()
    status = page.locator(".gstatus")
    status.get_by_role("button", name="Look for changes").press("Enter")
    expect(status).to_contain_text("1 new · 1 moved · 1 gone")
    status.get_by_role("button", name="Update").press("Enter")
    expect(status.get_by_role("button", name="Stop")).to_be_visible()
    expect(tiles(page)).to_have_count(20)  # the old state answers meanwhile
    expect(status.get_by_role("button", name="Look for changes")).to_be_visible(timeout=JOB_MS)
    field(page, "Path holds").fill("flower")
    expect(page.locator(".results .tile[aria-label*='rocket/']")).to_have_count(0)
    assert "flower/moved.png" in paths(page) and not {"flower/3.png", "flower/5.png"} & {*paths(page)}


def test_archives_and_uploads_are_looked_at_before_they_are_taken(visit: Visit, trip: dict[str, str]):
    page = visit(TRIP).page
    settled(page)
    page.get_by_role("button", name="Galleries…").click()
    form = page.locator("#galleries")
    form.get_by_role("button", name="Make a gallery").click()
    form.get_by_role("button", name="Zip file").click()
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("day 1/one.png", upload(photo(64, 48), "", "PNG")["buffer"])
        archive.writestr("../../outside.png", upload(photo(64, 48, 2), "", "PNG")["buffer"])
    hostile = {"name": "holiday.zip", "mimeType": "application/zip", "buffer": sink.getvalue()}
    form.locator("input[accept*=zip]").set_input_files(hostile)  # type: ignore[arg-type]
    expect(form.locator(".need")).to_contain_text("To embed1, 1 will be skipped")
    expect(form.get_by_label("Name of the gallery")).to_have_value("holiday")
    form.get_by_label("Name of the gallery").fill("../up")
    expect(form.locator(".note")).to_be_visible()
    form.get_by_label("Name of the gallery").fill("trip")
    expect(form.locator(".note")).to_contain_text("There is a gallery of this name already.")
    form.get_by_role("button", name="Upload", exact=True).click()
    two = [upload(photo(64, 64, n), f"{n}.png", "PNG") for n in (1, 2)]
    form.locator("input[accept='image/*']").set_input_files(two)
    form.get_by_label("Name of the gallery").fill("mine")
    expect(form.locator(".need")).to_contain_text("Pictures found2")
    assert not LEAKS.search(form.inner_text().replace(form.locator(".cmd").inner_text(), ""))


def test_a_gallery_is_deleted_when_that_was_meant(visit: Visit, trip: dict[str, str], searching: Server):
    galleries = searching.home / "galleries"
    shutil.copytree(galleries / "trip", galleries / "spare")
    page = visit(TRIP).page
    settled(page)
    page.get_by_role("button", name="Galleries…").click()
    box = page.locator("#galleries")
    box.get_by_role("button", name="Delete gallery spare").press("Enter")
    expect(box.get_by_role("button", name="Delete it")).to_be_focused()
    box.get_by_role("button", name="Keep it").press("Enter")
    assert (galleries / "spare").exists()
    box.get_by_role("button", name="Delete gallery spare").press("Enter")
    box.get_by_role("button", name="Delete it").press("Enter")
    expect(box.locator(".galleries > li")).to_have_count(1)
    assert not (galleries / "spare").exists()
    assert (searching.folder / "photos" / "trip" / "chelsea" / "whole.png").exists()


@pytest.mark.parametrize(("theme", "width"), [("light", 1440), ("dark", 390)])
def test_accessible_and_within_the_screen(visit: Visit, trip: dict[str, str], theme: str, width: int):
    page = visit(f"{TRIP}&img=astronaut&less=coffee&__theme={theme}", width=width, height=844).page
    settled(page)
    watch_jumps(page)
    tiles(page).nth(2).click()
    shown(page).get_by_role("button", name="Explain").click()
    expect(shown(page).locator(".scale.on")).to_be_visible()
    shown(page).get_by_role("button", name="Walk to this").click()
    expect(page.locator(".walk .tile")).to_have_count(8)
    assert page.evaluate("window.jumps") == 0
    page.locator(".gstatus").get_by_role("button", name="2 skipped").click()
    expect(page.locator(".skipped tbody tr").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert_accessible(page)
    page.get_by_role("button", name="Galleries…").click()
    assert_accessible(page)
    page.locator("#galleries").get_by_role("button", name="Make a gallery").click()
    expect(page.locator("#galleries .need")).not_to_contain_text("–")
    assert_accessible(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width
