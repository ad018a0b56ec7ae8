"""The attention view: every control with real photographs, models with registers, the link back."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from browser.conftest import Watched, assert_accessible
from browser.pictures import Upload, upload
from browser.search_tab import example
from browser.small_bundle import write_small_bundle
from browser.test_page import add, click_at, settled
from PIL import Image
from playwright.sync_api import Locator, Page, Route, expect

Visit = Callable[..., Watched]
NO_CLASS_TOKEN = "random:vit_wee_patch16_reg1_gap_256"
GPS = 0x8825
CHANGED = "() => document.querySelector('.att .overlay').toDataURL()"


@pytest.fixture(scope="module")
def registers(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of a model with a class token and two registers."""
    return f"bundle:{write_small_bundle(tmp_path_factory.mktemp('registers') / 'model', seed=3, registers=2)}"


def landscape() -> Upload:
    return upload(example("coffee"), "coffee.jpg", "JPEG", quality=95)


def portrait() -> Upload:
    exif = Image.Exif()
    exif[GPS] = {1: "N", 2: (48.0, 51.0, 29.0)}
    return upload(example("coffee").crop((150, 0, 450, 400)), "cup.jpg", "JPEG", quality=95, exif=exif)


def tag(page: Page) -> Locator:
    return page.locator(".att .tag")


def head_tile(page: Page, name: str) -> Locator:
    tiles = page.get_by_role("group", name="Attention head", exact=True)
    return tiles.get_by_role("button", name=re.compile(f"^{name}"))


def slide(page: Page, name: str, value: float) -> None:
    """As a pointer that lets go at `value`."""
    page.get_by_role("slider", name=name).evaluate(
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input', {bubbles: true})); }", value
    )


def command(page: Page) -> str:
    return page.locator("#attention .cmd code").inner_text()


def link_of(page: Page) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def saved(page: Page, name: str) -> tuple[str, bytes]:
    with page.expect_download() as download:
        page.locator("#tray-attention").get_by_role("button", name=name, exact=True).click()
    return download.value.suggested_filename, download.value.path().read_bytes()


def table_of(page: Page) -> tuple[list[str], list[list[float]]]:
    """The CSV of the block on screen: names of its columns, and rows."""
    lines = saved(page, "CSV")[1].decode().splitlines()
    return lines[0].split(","), [list(map(float, line.split(","))) for line in lines[1:]]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_photographs_of_either_shape_move_nothing_on_the_page(visit: Visit, theme: str):
    page = (watched := visit(width=1440, color_scheme=theme)).page
    expect(head_tile(page, "Rollout")).to_contain_text("bit")
    parts = (".att .stage", ".att .scale", ".att .prefix", ".att .under", ".insp", "#attention .cmd", "#beside")
    boxes = lambda: [
        page.locator(part).evaluate("({ offsetTop, clientWidth }) => [offsetTop, clientWidth]") for part in parts
    ]
    before = boxes()
    for file, grid in ((landscape(), "11×16"), (portrait(), "16×12")):
        add(page, file)
        settled(page, f"{grid} patches of 8 px")
        picture = page.locator(".att .overlay").bounding_box()
        assert picture and boxes() == before
        with Image.open(io.BytesIO(file["buffer"])) as told:
            assert picture["width"] / picture["height"] == pytest.approx(told.width / told.height, rel=0.01)
        rows, columns = map(int, grid.split("×"))
        for x, y in ((0.05, 0.9), (0.7, 0.3)):
            click_at(page, x, y)
            expect(tag(page)).to_contain_text(f"from patch {int(y * rows)}, {int(x * columns)}")
        page.get_by_role("button", name="Class token", exact=True).click()
        expect(tag(page)).to_contain_text("from class token")
    assert boxes() == before
    assert_accessible(page)
    watched.assert_quiet()


def test_each_head_their_mean_and_largest(visit: Visit):
    page = (watched := visit("?img=coffee", width=1440)).page
    names, rows = table_of(page)
    assert names == ["row", "column", "x_px", "y_px", "mean", "max", "head_0", "head_1", "head_2"]
    assert len(rows) == 11 * 16 and rows[17][:2] == [1, 1]
    assert rows[17][2] == pytest.approx(1.5 * 600 / 16 - 0.5, abs=0.01)
    seen = {page.evaluate(CHANGED)}
    for column, (tile, head) in enumerate([("Max", "max"), ("Head 1", "0"), ("Head 2", "1"), ("Head 3", "2")], start=5):
        head_tile(page, tile).hover()
        expect(tag(page)).to_have_text(f"Block 3 · {tile.lower()} · from class token")  # before it is chosen
        expect(head_tile(page, tile)).to_have_attribute("aria-pressed", "false")
        head_tile(page, tile).click()
        expect(head_tile(page, tile)).to_have_attribute("aria-pressed", "true")
        best = max(rows, key=lambda row: row[column])
        expect(page.locator(".att .under > span").last).to_contain_text(f"row {best[0]:.0f}, column {best[1]:.0f}:")
        assert f"--layer 2 --query cls --size 128 --show {head} --out" in command(page)
        seen.add(page.evaluate(CHANGED))
    assert len(seen) == 5
    head_tile(page, "Mean").hover()
    expect(tag(page)).to_contain_text("mean")
    page.locator(".att .under").hover()
    expect(tag(page)).to_contain_text("head 3")  # what was only passed over is gone
    for block in (1, 3):
        page.get_by_role("button", name=f"Block {block}", exact=True).click()
        expect(tag(page)).to_contain_text(f"Block {block} · head 3")
    watched.assert_quiet()


def test_a_rollout_comes_when_it_is_asked_for(visit: Visit):
    page = visit("?img=coffee").page
    head_tile(page, "Rollout").click()
    expect(tag(page)).to_have_text("Block 3 · rollout from block 1 · from class token")
    assert "--show rollout --out" in command(page)
    first = page.evaluate(CHANGED)
    slide(page, "Rollout from block", 3)
    expect(tag(page)).to_have_text("Block 3 · rollout from block 3 · from class token")
    assert "--show rollout --start 2 --out" in command(page)
    assert page.evaluate(CHANGED) != first
    page.get_by_role("button", name="Block 2", exact=True).click()
    expect(page.locator(".att .under > span").last).to_have_text("the rollout begins in a later block: 0")
    page.get_by_role("button", name="Block 3", exact=True).click()
    click_at(page, 0.9, 0.9)  # another query, and its rollout with it
    expect(tag(page)).to_have_text("Block 3 · rollout from block 3 · from patch 9, 14")
    page.locator("#tray-attention .pics button").nth(1).click()
    expect(tag(page)).to_have_text("Block 3 · rollout from block 3 · from class token")


def test_tokens_without_a_place_stand_beside_the_map(visit: Visit, registers: str):
    page = (watched := visit(f"?img=coffee&model={quote(registers)}")).page
    cells = page.get_by_role("group", name="Tokens without a place").get_by_role("button")
    expect(cells).to_have_count(3)
    expect(cells.first).to_have_attribute("aria-pressed", "true")
    numbers = [float(cell.inner_text().split()[-1]) for cell in cells.all()]
    _, rows = table_of(page)
    assert sum(numbers) + sum(row[4] for row in rows) == pytest.approx(1, abs=2e-4)
    expect(page.locator(".prefix > .meta")).to_have_text(f"{100 * sum(numbers):.1f} % of the weight lies on them")
    cells.nth(2).click()
    expect(tag(page)).to_have_text("Block 3 · mean · from register 2")
    expect(cells.nth(2)).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("button", name="Patch", exact=True)).to_have_attribute("aria-pressed", "false")
    assert "--query register:1 " in command(page)
    page.wait_for_url("**query=register*")
    page.get_by_role("group", name="Query", exact=True).get_by_role("button", name="Mean").click()
    expect(tag(page)).to_have_text("Block 3 · mean · from mean over patches")
    expect(page.locator(".prefix [aria-pressed=true]")).to_have_count(0)
    watched.assert_quiet()


def test_a_model_without_class_token_is_asked_from_its_patches(visit: Visit):
    page = (watched := visit(f"?model={NO_CLASS_TOKEN}&img=coffee&patch=3")).page
    expect(tag(page)).to_have_text("Block 14 · mean · from patch 0, 3")
    expect(page.get_by_role("button", name="Class token", exact=True)).to_have_count(0)
    page.get_by_role("button", name="Register 1").click()
    expect(tag(page)).to_have_text("Block 14 · mean · from register 1")
    page.keyboard.press("c")
    expect(tag(page)).to_have_text("Block 14 · mean · from mean over patches")
    page.wait_for_function("!location.search.includes('query=')")  # where such a model begins
    watched.assert_quiet()


def test_the_input_size_keeps_the_place_of_the_query(visit: Visit):
    page = visit("?img=coffee").page
    sizes = page.get_by_role("slider", name="Input size")
    expect(sizes).to_have_attribute("aria-valuetext", re.compile(r"^128 px · 11×16 patches · about \d"))
    click_at(page, 0.66, 0.3)
    expect(tag(page)).to_contain_text("from patch 3, 10")
    for _ in range(4):
        sizes.press("ArrowRight")
    expect(sizes).to_have_attribute(
        "aria-valuetext", re.compile("^256 px · 21×32 patches · about")
    )  # before they are there
    settled(page, "21×32 patches")
    expect(tag(page)).to_contain_text("from patch 6, 21")
    assert "--size 256" in command(page)
    sizes.press("Home")
    settled(page, "3×4 patches")
    expect(tag(page)).to_contain_text("from patch 0, 2")


def test_mass_opacity_and_scales(visit: Visit):
    page = visit("?img=coffee").page
    head_tile(page, "Head 2").click()
    high, before = page.locator(".att .scale span").nth(1), page.evaluate(CHANGED)
    slide(page, "Keep top mass", 55)
    assert "--mass 0.55" in command(page)
    cut = page.evaluate(CHANGED)
    slide(page, "Opacity", 0)
    assert len({before, cut, page.evaluate(CHANGED)}) == 3
    names, rows = table_of(page)
    heads = [[row[names.index(f"head_{i}")] for row in rows] for i in range(3)]
    told = lambda: float(high.inner_text().split()[0])
    page.get_by_role("switch", name="Clip at 99.5 %").click()
    assert told() == pytest.approx(max(map(max, heads)), rel=1e-2)
    page.get_by_role("switch", name="Same scale for all heads").click()
    assert told() == pytest.approx(max(heads[1]), rel=1e-2)
    page.keyboard.press("Escape")
    expect(page.get_by_role("slider", name="Keep top mass")).to_have_value("100")
    expect(tag(page)).to_contain_text("mean")


def test_the_link_leads_back_after_a_reload(visit: Visit, registers: str):
    page = visit(f"?tab=attention&model={quote(registers)}").page
    page.locator("#tray-attention").get_by_role("button", name="coffee.png").click()
    settled(page, "600×400")
    expect(head_tile(page, "Rollout")).to_contain_text("bit")
    slide(page, "Rollout from block", 2)
    expect(tag(page)).to_contain_text("rollout from block 2")
    page.get_by_role("slider", name="Input size").press("ArrowRight")
    settled(page, "patches")
    expect(page.locator(".att .under")).not_to_contain_text("11×16")
    click_at(page, 0.7, 0.4)
    expect(tag(page)).to_contain_text("from patch")
    page.get_by_role("button", name="Block 2", exact=True).click()
    slide(page, "Keep top mass", 60)
    slide(page, "Opacity", 40)
    for name in ("Same scale for all heads", "Clip at 99.5 %"):
        page.get_by_role("switch", name=name).click()
    page.wait_for_url("**clip=0*")
    named = link_of(page)
    wanted = {"tab": "attention", "img": "coffee", "model": registers, "layer": "1", "head": "rollout", "start": "1"}
    wanted |= {"size": "160", "opacity": "0.4", "mass": "0.6", "scale": "own", "clip": "0"}
    assert wanted.items() <= named.items() and "query" not in named and int(named["patch"]) > 0

    def on_screen() -> list[object]:
        controls = page.locator("#attention input").evaluate_all("all => all.map(it => [it.value, it.checked])")
        return [
            tag(page).inner_text(),
            command(page),
            controls,
            page.evaluate(CHANGED),
            page.locator(".att .scale").inner_text(),
        ]

    before = on_screen()
    page.reload()
    page.locator(".att:not(.empty)").wait_for()
    assert on_screen() == before
    page.wait_for_timeout(500)
    assert link_of(page) == named
    head_tile(page, "Head 3").click()
    page.get_by_role("button", name="Register 2").click()
    page.wait_for_url("**query=register*")
    page.reload()
    expect(tag(page)).to_have_text("Block 2 · head 3 · from register 2")


def test_a_link_to_what_is_not_there_shows_what_is(visit: Visit):
    page = visit("?tab=attention&layer=99&head=17&size=5&mass=7&query=register:4&img=gone&patch=9999&start=x").page
    expect(tag(page)).to_have_text("Block 3 · mean · from class token")
    expect(page.locator("#tray-attention .note")).to_contain_text("A picture of this link is not here.")
    page = visit("?tab=attention&patch=9999").page
    expect(tag(page)).to_have_text("Block 3 · mean · from class token")


@pytest.mark.parametrize("name", ["Keep top mass", "Opacity", "head"])
def test_sixty_changes_ask_for_nothing(visit: Visit, name: str):
    page = (watched := visit("?img=coffee")).page
    expect(head_tile(page, "Rollout")).to_contain_text("bit")
    page.wait_for_timeout(500)
    tiles, before = page.locator(".heads button"), len(watched.requests)
    for i in range(60):
        if name == "head":
            tiles.nth(i % 6).evaluate("tile => tile.click()")
        else:
            slide(page, name, 30 + i)
    page.wait_for_timeout(500)
    assert [url for url in watched.requests[before:] if "heartbeat" not in url] == []


def test_files_taken_away(visit: Visit):
    page = visit().page
    file = portrait()
    add(page, file)
    settled(page, "300×400")
    head_tile(page, "Head 1").click()
    slide(page, "Keep top mass", 50)
    name, data = saved(page, "PNG")
    assert name == "cup-block3-head1.png"
    with Image.open(io.BytesIO(data)) as drawn:
        assert drawn.size == (300, 400) and not drawn.getexif() and "exif" not in drawn.info
    assert b"Exif" not in data and b"eXIf" not in data
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#tray-attention").get_by_role("button", name="Copy link").click()
    expect(page.locator("#tray-attention").get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == page.url
    assert {"head": "0", "mass": "0.5"}.items() <= link_of(page).items()


def test_how_a_patch_becomes_pixels_is_told_with_this_picture(visit: Visit):
    page = visit("?img=coffee").page
    page.get_by_text("How does a patch become pixels?").click()
    words = page.locator(".explains")
    for told in (
        "600×400 pixels",
        "resized to 128×88",
        "11 rows and 16 columns of 8×8 pixels",
        "176 patches",
        "37.5×36.4",
    ):
        expect(words).to_contain_text(told)
    expect(words).to_contain_text("177 weights that sum to 1")
    _, rows = table_of(page)
    best = max(rows, key=lambda row: row[4])
    expect(words).to_contain_text(f"row {best[0]:.0f}, column {best[1]:.0f}, with weight")
    left = best[1] * 37.5
    expect(words).to_contain_text(f"is pixels {left:g} to {left + 37.5:g} from the left")
    head_tile(page, "Max").click()
    expect(words).to_contain_text("The largest weight of the 3 attention heads")


def test_the_old_maps_stay_dimmed_until_the_new_ones_come(visit: Visit):
    page = visit("?img=coffee").page
    held: list[Route] = []
    page.route("**/api/attention/*", lambda route: held.append(route))
    click_at(page, 0.2, 0.2)
    card = page.locator(".att .load")
    expect(card).to_contain_text("The previous result stays")
    expect(page.locator(".att.old")).to_have_count(1)
    expect(tag(page)).to_contain_text("from class token")
    head_tile(page, "Head 2").click()  # what is on screen can still be looked at
    expect(tag(page)).to_have_text("Block 3 · head 2 · from class token")
    card.get_by_role("button", name="Cancel").click()
    expect(card).to_be_hidden()
    expect(page.locator(".att.old")).to_have_count(0)
    for route in held:
        route.continue_()
    page.unroute("**/api/attention/*")
    click_at(page, 0.9, 0.9)
    expect(tag(page)).to_contain_text("from patch 9, 14")


def test_what_goes_wrong_is_said_in_a_sentence(visit: Visit):
    routes = {"**/api/attention/*": lambda route: route.fulfill(body="another form of bytes")}
    page = visit("?img=coffee", ready="#tray-attention .note", routes=routes).page
    expect(page.locator("#tray-attention .note")).to_contain_text("Load the page again.")
    expect(page.locator(".att.empty")).to_have_count(1)
    expect(page.locator("#tray-attention").get_by_role("button", name="Copy link")).to_be_disabled()
    page.unroute("**/api/attention/*")
    page.locator("#tray-attention").get_by_role("button", name="chelsea.png").click()
    expect(tag(page)).to_have_text("Block 3 · mean · from class token")
    expect(page.locator("#tray-attention .note")).to_have_count(0)


def test_the_whole_view_by_keyboard(visit: Visit, registers: str):
    page = visit(f"?img=coffee&model={quote(registers)}").page
    page.keyboard.press("?")
    keys = page.get_by_role("dialog", name="Keys")
    expect(keys).to_contain_text("transformer block before, next")
    assert_accessible(page)
    page.keyboard.press("]")  # no key acts behind the list
    page.keyboard.press("Escape")
    expect(keys).to_be_hidden()
    expect(tag(page)).to_contain_text("Block 3 · mean")

    def reach(wanted: Locator) -> None:
        for _ in range(80):
            if wanted.evaluate("node => node === document.activeElement"):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"Tab does not reach {wanted}")

    reach(page.locator(".att .overlay"))
    page.keyboard.press("ArrowRight")
    expect(tag(page)).to_contain_text("from patch")
    reach(page.get_by_role("button", name="Register 1"))
    page.keyboard.press("Enter")
    expect(tag(page)).to_contain_text("from register 1")
    reach(page.get_by_role("button", name="Block 1", exact=True))
    page.keyboard.press("Space")
    expect(tag(page)).to_contain_text("Block 1")
    reach(head_tile(page, "Rollout"))
    page.keyboard.press("Enter")
    expect(tag(page)).to_contain_text("rollout from block 1")
    reach(page.get_by_role("slider", name="Input size"))
    page.keyboard.press("ArrowRight")
    settled(page, re.compile("14×20 patches|13×20 patches"))
    for _ in range(7):
        page.keyboard.press("[")
    expect(tag(page)).to_contain_text("Block 1 · mean")
    reach(page.get_by_role("button", name=re.compile("^Keys")))
    page.keyboard.press("Enter")
    expect(keys).to_be_visible()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everything_is_reached_on_a_phone(visit: Visit, registers: str, theme: str):
    page = visit(f"?img=coffee&model={quote(registers)}", width=390, height=844, color_scheme=theme).page
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    for part in (head_tile(page, "Rollout"), page.get_by_role("button", name="Register 2")):
        part.scroll_into_view_if_needed()
        part.click()
    expect(tag(page)).to_have_text("Block 3 · rollout from block 1 · from register 2")
    for name in ("Input size", "Rollout from block", "Opacity", "Keep top mass"):
        page.get_by_role("slider", name=name).scroll_into_view_if_needed()
        expect(page.get_by_role("slider", name=name)).to_be_in_viewport()
        expect(page.locator(".att .stage")).to_be_in_viewport(ratio=0.6)  # it stays while its controls scroll
    for name in ("Copy link", "PNG", "CSV"):
        page.locator("#attention .exports").get_by_role("button", name=name, exact=True).scroll_into_view_if_needed()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert_accessible(page)


def test_panels_beside_can_choose_what_is_shown(visit: Visit):
    page = visit("?img=coffee").page
    page.evaluate(
        """async () => { window.it = (await import('./ui/looking.js')).looking; window.told = [];
           it.hear(() => { const { layer, head, query, maps } = it.shown;
             told.push([layer, head, query, maps.norms(0).length]); }); }"""
    )
    assert page.evaluate("told") == [[2, "mean", "cls", 176]]
    page.evaluate("it.choose({layer: 1, head: 2})")
    expect(tag(page)).to_have_text("Block 2 · head 3 · from class token")
    page.evaluate("it.choose({query: 20})")
    expect(tag(page)).to_have_text("Block 2 · head 3 · from patch 1, 4")
    assert page.evaluate("told.at(-1)") == [1, 2, 20, 176]
    page.evaluate("it.choose({handle: 'chelsea', query: 5})")
    expect(tag(page)).to_have_text("Block 2 · head 3 · from patch 0, 5")
    assert page.evaluate("it.shown.handle") == "chelsea"
