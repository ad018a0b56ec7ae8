"""The page in a browser: what a person sees and does, with no word to any other machine."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from browser.conftest import Watched, assert_accessible, watch
from browser.pictures import Upload, hostile, photo, turned, upload
from playwright.sync_api import Page, expect

Visit = Callable[..., Watched]
# a server's path, a Python type's name, a traceback: nothing a person should read
LEAKS = re.compile(r"(/tmp/|/home/|\.py\b|Traceback|Error\b|Exception|PIL\.|NoneType|<class)")


def add(page: Page, file: Upload, tray: str = "#tray-attention") -> None:
    """Put a file into the tray and wait until it is chosen or refused."""
    squares = page.locator(f"{tray} .pics button:not(.add)")
    before = squares.count()
    page.locator(f"{tray} input[type=file]").set_input_files(file)
    page.wait_for_function(
        "([tray, before]) => document.querySelectorAll(`${tray} .pics button:not(.add)`).length > before"
        " || document.querySelector(`${tray} .note`)",
        arg=[tray, before],
    )


def meta(page: Page) -> str:
    return page.locator(".att .under > span").first.inner_text()


def settled(page: Page, text: str | re.Pattern) -> None:
    """Wait until the maps on the stage belong to the picture whose meta line holds `text`."""
    expect(page.locator(".att .under > span").first).to_contain_text(text)
    expect(page.locator(".att .load:visible")).to_have_count(0)


def click_at(page: Page, x: float, y: float) -> None:
    """Click the picture at fractions of its width and height."""
    box = page.locator(".att .overlay").bounding_box()
    assert box
    page.locator(".att .overlay").click(position={"x": x * box["width"], "y": y * box["height"]})


def test_a_photograph_brings_maps_and_memories(visit: Visit):
    page = (watched := visit()).page
    add(page, upload(photo(), "holiday.jpg", "JPEG"))
    settled(page, "320×240 JPEG")
    expect(page.locator(".blocks button")).to_have_count(3)
    expect(page.locator(".heads button")).to_have_count(6)  # mean, max, three heads, rollout
    expect(page.locator(".tag")).to_have_text("Block 3 · mean · from class token")
    colours = "canvas => new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size"
    assert page.locator(".heads canvas").first.evaluate(colours) > 20  # a map is drawn, not one flat colour
    page.get_by_role("tab", name="Memory").click()
    tiles = page.locator(".tile")
    expect(tiles).to_have_count(20)
    expect(page.locator(".found h2")).to_have_text("20 nearest memories")
    tiles.nth(2).click()
    expect(page.locator(".nb .card")).to_contain_text("Rank 3")
    page.get_by_role("button", name="Embedding").click()
    expect(page.locator(".found .head .meta")).to_contain_text("embedding space")
    page.get_by_role("group", name="How many").get_by_role("button", name="50").click()
    expect(tiles).to_have_count(50)
    for image in tiles.locator("img").all()[:5]:
        image.scroll_into_view_if_needed()
        page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=image.element_handle())
    page.get_by_role("tab", name="About").click()
    expect(page.get_by_role("heading", name="What is computed")).to_be_visible()
    watched.assert_quiet()


def test_what_is_hot_makes_no_request(visit: Visit):
    page = (watched := visit()).page
    expect(page.locator(".heads button").last).to_contain_text("bit")  # the rollout, brought when nobody asks
    before = -1
    while before != len(watched.requests):  # until the tray's pictures are there; Gradio's heartbeat never ends
        before = len(watched.requests)
        page.wait_for_timeout(500)
    for tile in page.locator(".heads button").all():
        tile.click()
    for i in range(3):
        page.locator(".blocks button").nth(i).click()
    for name in ("Opacity", "Keep top mass"):
        control = page.get_by_role("slider", name=name)
        for _ in range(20):
            control.press("ArrowLeft")
    for name in ("Same scale for all heads", "Clip at 99.5 %"):
        page.get_by_role("switch", name=name).click()
    page.locator(".att .overlay").hover(position={"x": 40, "y": 40})
    page.get_by_text("Show as table").click()
    expect(page.locator("#attention .tbl tbody tr")).to_have_count(20)
    expect(page.locator(".tag")).to_have_text("Block 3 · rollout from block 1 · from class token")
    assert watched.requests[before:] == []
    before = len(watched.requests)
    click_at(page, 0.5, 0.5)
    expect(page.locator(".tag")).to_contain_text("from patch")
    kinds = [kind for url in watched.requests[before:] for kind in re.findall("/api/(attention|rollout)/", url)]
    assert kinds == ["attention", "rollout"]  # all blocks and heads in one fetch, and the rollout as it was on screen


@pytest.mark.parametrize("make", [lambda: upload(photo(), "plain.jpg", "JPEG"), lambda: turned(photo(240, 320))])
def test_a_click_finds_the_same_patch_at_any_window_size(visit: Visit, make: Callable[[], Upload]):
    page = visit().page
    add(page, make())
    settled(page, re.compile("320×240|240×320"))
    found = re.search(r"(\d+)×(\d+) patches", meta(page))
    assert found
    rows, columns = map(int, found.groups())
    assert (rows, columns) in {(6, 8), (12, 16)}  # upright landscape in both cases: the EXIF turn is applied
    for width, height, row, column in ((1440, 900, 0.3, 0.7), (800, 700, 0.3, 0.7), (390, 844, 0.3, 0.7)):
        page.set_viewport_size({"width": width, "height": height})
        click_at(page, 0.02, 0.02)
        expect(page.locator(".tag")).to_contain_text("from patch 0, 0")
        click_at(page, column, row)
        expect(page.locator(".tag")).to_contain_text(f"from patch {int(row * rows)}, {int(column * columns)}")


def test_the_attention_flow_by_keyboard_alone(visit: Visit):
    page = visit().page
    tag = page.locator(".tag")
    page.locator(".att .overlay").focus()
    page.keyboard.press(",")
    expect(tag).to_contain_text("Block 2 · mean")
    page.keyboard.press("]")
    expect(tag).to_contain_text("Block 2 · max")
    page.keyboard.press("]")
    expect(tag).to_contain_text("Block 2 · head 1")
    page.get_by_role("button", name="Patch", exact=True).press("Enter")
    expect(tag).to_contain_text("from patch")
    words = tag.inner_text()
    page.locator(".att .overlay").focus()
    row, column = map(int, words.rsplit("patch ")[-1].split(", "))
    page.keyboard.press("ArrowLeft" if column else "ArrowRight")
    expect(tag).to_contain_text(f"from patch {row}, {column - 1 if column else 1}")
    for _ in range(9):  # faster than answers come
        page.keyboard.press("ArrowDown")
    expect(tag).to_contain_text(f"from patch {min(row + 9, 15)}, {column - 1 if column else 1}")
    page.keyboard.press("o")
    expect(page.get_by_role("slider", name="Opacity")).to_be_focused()
    page.keyboard.press("t")
    expect(page.get_by_role("slider", name="Keep top mass")).to_be_focused()
    page.keyboard.press("c")
    expect(tag).to_contain_text("from class token")
    page.keyboard.press("Escape")
    expect(tag).to_contain_text("Block 2 · mean")
    assert "weight" in (page.locator(".att .overlay").get_attribute("aria-label") or "")


def test_pictures_come_in_by_paste_and_drop_too(visit: Visit):
    page = visit().page
    hand_over = """([kind, bytes, name]) => {
      const files = new DataTransfer();
      files.items.add(new File([Uint8Array.from(bytes)], name, {type: 'image/png'}));
      const event = kind === 'paste' ? new ClipboardEvent('paste', {clipboardData: files, bubbles: true})
                                     : new DragEvent('drop', {dataTransfer: files, bubbles: true, cancelable: true});
      document.body.dispatchEvent(event);
    }"""
    for kind, size in (("paste", 120), ("drop", 136)):
        file = upload(photo(size, 80), f"{kind}.png", "PNG")
        page.evaluate(hand_over, [kind, list(file["buffer"]), file["name"]])
        settled(page, f"{size}×80 PNG")


def test_of_many_uploads_the_tray_keeps_twelve(visit: Visit):
    page = visit().page
    squares = page.locator("#tray-attention .pics button:not(.add)")
    before = squares.count()
    page.locator("#tray-attention input[type=file]").set_input_files(
        [upload(photo(40, 40, seed), f"{seed}.png", "PNG") for seed in range(12)]
    )
    expect(squares).to_have_count(before + 12, timeout=20_000)
    page.locator("#tray-attention input[type=file]").set_input_files(upload(photo(48, 40), "last.png", "PNG"))
    settled(page, "48×40 PNG")
    expect(squares).to_have_count(before + 12)
    expect(page.get_by_role("button", name="0.png", exact=True)).to_have_count(0)


@pytest.mark.parametrize("state", ["starting", "failed"])
def test_the_page_waits_for_the_model_and_says_why_there_is_none(page: Page, server: str, state: str):
    watched = watch(page)
    told = {"title": "The model could not be opened.", "text": "There is no bundle folder named mine."}
    answers = [{"state": state, "source": "mine", "offline": True, "pictures": [], "pair": []} | told]
    page.route("**/api/facts", lambda route: route.fulfill(json=answers.pop()) if answers else route.continue_())
    page.goto(server)
    if state == "failed":
        expect(page.locator(".state .note")).to_contain_text(told["text"])
        page.get_by_role("tab", name="Memory").click()
        expect(page.locator(".blank .note")).to_contain_text(told["text"])
    else:
        expect(page.locator(".tag")).to_contain_text("Block 3")  # by itself, once healthz says ready
    watched.assert_quiet()


def test_two_visitors_with_models_of_their_own_never_see_each_other(visit: Visit):
    one, two = visit().page, visit("?model=embedded", ready=".tag:has-text('Block 6')").page
    add(one, upload(photo(seed=1), "mine.jpg", "JPEG"))
    add(two, upload(photo(200, 200, seed=2), "yours.png", "PNG"))
    settled(one, "320×240 JPEG")
    settled(two, "200×200 PNG")
    click_at(one, 0.1, 0.1)
    expect(one.locator(".tag")).to_have_text("Block 3 · mean · from patch 1, 1")
    expect(two.locator(".tag")).to_have_text("Block 6 · mean · from class token")
    expect(one.locator(".att .blocks button")).to_have_count(3)
    expect(two.locator(".att .blocks button")).to_have_count(6)
    assert "yours" not in one.locator("body").inner_html() and "mine.jpg" not in two.locator("body").inner_html()
    assert "embedded" not in one.url and "model=embedded" in two.url


def test_every_hostile_file_is_shown_or_answered_in_a_sentence(visit: Visit):
    page = visit().page
    page.on("dialog", lambda dialog: pytest.fail("a file's content ran as a script"))
    for file, can_be_shown in hostile():
        add(page, file)
        notes = page.locator("#tray-attention .note")
        if can_be_shown:
            expect(page.locator("#tray-attention .pics button[aria-pressed=true]")).to_have_attribute(
                "aria-label", file["name"]
            )
            assert notes.count() == 0, (file["name"], notes.all_inner_texts())
        else:
            sentence = notes.inner_text()
            assert 30 < len(sentence) < 300, (file["name"], sentence)
            assert not LEAKS.search(sentence.replace(file["name"], "")), (file["name"], sentence)
            page.evaluate("document.querySelector('#tray-attention .note').remove()")
    settled(page, "rotated by EXIF")
    # command lines name the model's folder, as the operator wrote it
    page.locator(".cmd").evaluate_all("lines => lines.forEach(line => line.remove())")
    assert not LEAKS.search(page.locator("main").inner_text())


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_accessible_and_within_a_phone(visit: Visit, theme: str):
    page = visit(width=390, height=844, color_scheme=theme).page
    for tab in ("Attention", "Memory", "About"):
        page.get_by_role("tab", name=tab).click()
        if tab == "Memory":
            expect(page.locator(".tile")).to_have_count(20)
        assert page.evaluate("document.documentElement.scrollWidth") == 390, tab
        assert_accessible(page)


def test_theme_switch_and_model_card(visit: Visit):
    page = visit(color_scheme="light").page
    page.get_by_role("button", name="Dark theme").click()
    expect(page.locator("body")).to_have_class(re.compile(r"\bdark\b"))
    assert "__theme=dark" in page.url
    page.locator("button.model").click()
    card = page.get_by_role("dialog")
    for words in ("Architecture", "Parameters", "drawn:0:16", "62 of 64 slots filled", "Apache-2.0", "Model", "Bundle"):
        expect(card).to_contain_text(words)
    page.keyboard.press("Escape")
    expect(card).not_to_be_visible()


def test_exports_hold_the_numbers_on_screen(visit: Visit):
    page = visit().page
    exports = page.locator("#tray-attention")
    with page.expect_download() as download:
        exports.get_by_role("button", name="CSV").click()
    lines = download.value.path().read_text().splitlines()
    assert lines[0] == "row,column,x_px,y_px,mean,max,head_0,head_1,head_2"
    assert len(lines) == 1 + 16 * 16
    values = [list(map(float, line.split(","))) for line in lines[1:]]
    assert all(one[4] == pytest.approx(sum(one[6:]) / 3, rel=1e-4) and one[5] == max(one[6:]) for one in values)
    strongest = max(values, key=lambda one: one[4])
    expect(page.locator(".att .under > span").nth(1)).to_contain_text(
        f"row {strongest[0]:.0f}, column {strongest[1]:.0f}"
    )
    with page.expect_download() as download:
        exports.get_by_role("button", name="PNG", exact=True).click()
    assert download.value.path().read_bytes().startswith(b"\x89PNG")
    with page.expect_download() as download:
        exports.get_by_role("link", name="NPZ").click()
    assert download.value.path().read_bytes().startswith(b"PK")


@pytest.mark.parametrize(("panel", "card"), [("neighbours", ".nb .card"), ("map", ".mapgrid .card")])
def test_a_memory_is_searched_with_from_where_it_is_shown(visit: Visit, panel: str, card: str):
    link = "?tab=memory&panel=map&slot=5" if panel == "map" else "?tab=memory"
    page = (watched := visit(link, ready=card)).page
    slot = page.locator(f"{card} dd").first.inner_text()
    page.locator(card).get_by_role("button", name="Search with this").click()
    expect(page.get_by_role("group", name="Query", exact=True).locator(".qchip")).to_have_count(1)
    first = page.locator(".results .hits .tile").first
    expect(first).to_contain_text("1.000")
    expect(first.locator("img")).to_have_attribute("src", re.compile(rf"/{slot}(\?|$)"))
    watched.assert_quiet()
