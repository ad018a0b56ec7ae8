"""What stands beside the attention view: all heads in one picture, patch norms, PCA colours."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from browser.conftest import Watched, assert_accessible, watch_jumps
from browser.pictures import photo, upload
from browser.small_bundle import write_small_bundle
from browser.test_attention import head_tile, slide, tag
from browser.test_correspondence import photograph
from browser.test_page import add, click_at, settled
from playwright.sync_api import Locator, Page, Route, expect

from analysis import cli
from analysis.matches import holding
from analysis.models import open_model
from analysis.workbench import Workbench
from memssl_core.data.images import decode_image
from ui import wire
from ui.examples import examples

Visit = Callable[..., Watched]
COLOURED, NORMS, PCA = "All heads coloured", "Patch norms", "PCA colours"
OKABE_ITO = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#f0e442"]
GREY = {"light": "#a9b0bc", "dark": "#59636f"}
SHOWN = "async name => (await import('/ui/looking.js')).looking.shown[name]"
# of each patch the colour in its middle, [patches, 4]; a cell of `ours` that is given, else a patch of the view
PIXELS = """async (canvas, frame) => {
  const { framed } = await import('/ui/frame.js');
  const { looking } = await import('/ui/looking.js');
  const places = frame ? framed(frame) : looking.shown.frame;
  const context = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', { willReadFrequently: true });
  context.drawImage(canvas, 0, 0);
  return Array.from({ length: places.rows * places.columns }, (_, patch) => {
    const [x0, y0, x1, y1] = places.box(patch);
    return [...context.getImageData((x0 + x1) / 2 * canvas.width, (y0 + y1) / 2 * canvas.height, 1, 1).data];
  });
}"""
COLOURS = """canvas => [...new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data)]"""


@pytest.fixture(scope="module")
def workbench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """The server's bundle once more, in this process."""
    folder: Path = write_small_bundle(tmp_path_factory.mktemp("beside") / "small")
    return Workbench(open_model(f"bundle:{folder}"))


def figure(page: Page, name: str) -> Locator:
    """The panel, on screen and drawn."""
    found = page.get_by_role("figure", name=name, exact=True)
    found.scroll_into_view_if_needed()
    expect(found.locator(".told")).not_to_be_empty()
    expect(found.locator(".told")).not_to_contain_text("Running")
    return found


def strongest_colours(page: Page) -> None:
    page.get_by_role("slider", name="Strength of the colours").press("End")


def drawn(page: Page, panel: Locator, nth: int = 0, frame: dict | None = None) -> np.ndarray:
    """[patches, 4] of a stage, after the next frame."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return np.array(panel.locator("canvas.sideover").nth(nth).evaluate(PIXELS, frame))


def rgb(colours: list[str]) -> np.ndarray:
    return np.array([[int(hex[i : i + 2], 16) for i in (1, 3, 5)] for hex in colours])


def rows_on_screen(page: Page) -> tuple[dict[str, np.ndarray], dict]:
    answer = page.request.get(f"{page.url.split('?')[0]}api/attention/{page.evaluate(SHOWN, 'key')}")
    return wire.unpack(answer.body())


def owners_by_the_rule(heads: np.ndarray, mass: float) -> np.ndarray:
    """Weights [H, patches] -> [patches] the head with the largest weight among those that keep the patch, else -1."""
    kept = np.stack([holding(row, mass) if mass < 1 else np.ones(len(row), bool) for row in heads])
    return np.where(kept.any(0), np.where(kept, heads, -1).argmax(0), -1)


@pytest.mark.parametrize("seed", range(4))
def test_whose_patch_it_is(functions: Page, seed: int):
    rng = np.random.default_rng(seed)
    heads = rng.dirichlet(np.full(40, 0.3), 9).astype(np.float32) * rng.uniform(0.5, 1, (9, 1)).astype(np.float32)
    heads[3] = heads[2]  # of two that are the same the first has the patch
    call = """async ([heads, mass]) => { const { owners, ranked } = await import('/ui/owners.js');
              return [...owners(ranked(heads.map(row => Float32Array.from(row))), mass)]; }"""
    for mass in (0.05, 0.6, 0.95, 1):
        assert functions.evaluate(call, [heads.tolist(), mass]) == owners_by_the_rule(heads, mass).tolist()


def test_colours_are_given_up_and_taken(functions: Page):
    run = "async ([name, ...given]) => (await import('/ui/owners.js'))[name](...given)"
    call = lambda name, *given: functions.evaluate(run, [name, *given])
    first = call("firstColours", 9, 7)
    assert first == [0, 1, 2, 3, 4, 5, 6, None, None]
    without = call("pickColour", first, 2, 7)
    assert without == [0, 1, None, 3, 4, 5, 6, None, None]
    other = call("pickColour", without, 8, 7)
    assert other == [0, 1, None, 3, 4, 5, 6, None, 2]  # the free colour; the others keep theirs
    assert call("pickColour", other, 7, 7) == other  # none is free
    assert [call("headWords", one, 7) for one in (first, without, other)] == [
        "0,1,2,3,4,5,6",
        "0,1,-,3,4,5,6",
        "0,1,8,3,4,5,6",
    ]
    assert call("headWords", call("firstColours", 3, 7), 7) == "0,1,2"


def test_outliers_are_told_by_the_median(functions: Page):
    norms = np.array([1, 2, 8.5, 2, 9, 1.9, 8], np.float32)
    run = "async norms => (await import('/ui/norms.js')).outliers(Float32Array.from(norms))"
    assert functions.evaluate(run, norms.tolist()) == {"median": 2, "patches": [4, 2]}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("shape", [(200, 400), (512, 300)])
def test_each_patch_has_the_colour_of_its_head(visit: Visit, theme: str, shape: tuple[int, int]):
    page = (watched := visit(color_scheme=theme, width=1440)).page
    add(page, photograph("astronaut", shape))
    expect(page.locator(".under > span").first).to_contain_text(f"{shape[0]}×{shape[1]}")
    panel = figure(page, COLOURED)
    strongest_colours(page)
    rows, facts = rows_on_screen(page)
    heads = rows["rows"][2, :, facts["n_prefix"] :]
    palette = rgb(OKABE_ITO[:3])

    def assert_coloured(mass: float, palette: np.ndarray) -> None:
        owners = owners_by_the_rule(heads, mass)
        found = drawn(page, panel)
        assert (found[owners >= 0, :3] == palette[owners[owners >= 0]]).all()
        assert (found[owners < 0, 3] < 255).all()  # these show the photograph
        kept = round(100 * (owners >= 0).mean())
        assert abs(int(panel.locator(".told").inner_text().split(" ")[0]) - kept) <= 1

    before = len(watched.requests)
    assert_coloured(0.6, palette)
    keep = panel.get_by_role("slider", name="Each head keeps")
    for _ in range(25):
        keep.press("ArrowLeft")
    assert_coloured(0.35, palette)
    chip = panel.get_by_role("button", name=re.compile("^Head 2 "))
    chip.click()
    expect(chip).to_have_attribute("aria-pressed", "false")
    assert_coloured(0.35, np.stack([palette[0], rgb([GREY[theme]])[0], palette[2]]))
    expect(panel.locator("code")).to_contain_text("--show coloured --mass 0.35 --heads 0,-,2 --out coloured.png")
    keep.press("End")
    chip.click()
    assert_coloured(1, palette)
    expect(panel.locator("code")).to_contain_text("--show coloured --mass 1 --out coloured.png")
    page.locator(".blocks button").first.click()  # another block: its own heads
    heads = rows["rows"][0, :, facts["n_prefix"] :]
    panel.scroll_into_view_if_needed()
    assert_coloured(1, palette)
    assert [url for url in watched.requests[before:] if "/api/attention/" in url] == []


def test_norms_and_their_outliers(visit: Visit):
    page = visit("?img=chelsea", width=1440).page
    panel = figure(page, NORMS)
    rows, _ = rows_on_screen(page)
    norms = rows["norms"][2]
    expect(panel.locator(".told")).to_have_text(f"No patch is over 4 times the median of {np.median(norms):#.3g}")
    ends = panel.locator(".scale span")
    expect(ends.nth(1)).to_have_text(f"{np.quantile(norms, 0.995):#.3g} (99.5 %)")
    panel.get_by_role("switch", name="Clip long ones").click()
    expect(ends.nth(1)).to_have_text(f"{norms.max():#.3g}")
    expect(panel.locator("code")).to_contain_text("--layer 2 --query cls --size 128 --show norms --out norms.png")
    panel.locator("canvas.sideover").hover(position={"x": 10, "y": 10})
    expect(panel.locator(".told")).to_contain_text("row 0, column 0")

    def with_outliers(route: Route) -> None:
        arrays, facts = wire.unpack(route.fetch().body())
        arrays = {name: values.copy() for name, values in arrays.items()}
        arrays["norms"][:, [5, 77]] *= 9
        route.fulfill(body=wire.pack(arrays, facts), content_type="application/octet-stream")

    page.route("**/api/attention/*", with_outliers)
    panel.locator("canvas.sideover").click(position={"x": 200, "y": 100})
    page.mouse.move(5, 5)
    figure(page, NORMS)
    expect(panel.locator(".told")).to_contain_text("2 patches are over 4 times the median")
    page.unroute("**/api/attention/*")


def test_pca_colours_are_those_of_the_function(visit: Visit, workbench: Workbench):
    page = visit("?img=chelsea", width=1440).page
    strongest_colours(page)
    panel = figure(page, PCA)
    chelsea, coffee = (decode_image(examples()[name].read()) for name in ("chelsea", "coffee"))

    def assert_colours(**asked) -> None:
        found = workbench.pca(size=128, **asked)
        expect(panel.locator(".told")).to_contain_text(", ".join(f"{100 * share:.0f}" for share in found.explained))
        expect(panel.locator(".told")).not_to_contain_text("Running")
        for nth, (colours, front, frame) in enumerate(
            ((found.colours_a, found.front_a, found.frame_a), (found.colours_b, found.front_b, found.frame_b))
        ):
            if colours is None:
                expect(panel.locator("canvas.sideover").nth(nth)).not_to_be_visible()
                continue
            assert front is not None and frame is not None
            places = {name: getattr(frame, name) for name in frame.__dataclass_fields__}
            pixels, shown = drawn(page, panel, nth, places), front.ravel()
            assert np.abs(pixels[shown, :3] - colours.reshape(-1, 3)[shown].astype(int)).max() <= 2
            assert (pixels[~shown, 3] < 255).all()

    assert_colours(image_a=chelsea)
    panel.get_by_role("combobox", name="Together with").select_option(label="coffee.png")
    assert_colours(image_a=chelsea, image_b=coffee)
    panel.get_by_text("Foreground only").click()
    assert_colours(image_a=chelsea, image_b=coffee, foreground=True)
    panel.get_by_role("combobox", name="Kind of features").select_option("key")
    panel.get_by_role("combobox", name="Features after").select_option(label="Block 2")
    assert_colours(image_a=chelsea, image_b=coffee, foreground=True, facet="key", layer=1)
    expect(panel.locator("code")).to_contain_text(
        "analysis pca chelsea.png coffee.png --model bundle:", use_inner_text=True
    )
    expect(panel.locator("code")).to_contain_text("--facet key --layer 1 --size 128 --foreground --out pca.png")
    with page.expect_download() as download:
        panel.get_by_role("link", name="NPZ of PCA colours").click()
    assert {"components_a", "front_b", "grid_a"} <= set(np.load(download.value.path()))
    with page.expect_download() as download:
        panel.get_by_role("button", name="PNG of PCA colours").click()
    both = decode_image(download.value.path())
    assert both.height == 400 and both.width == 600 + round(451 * 400 / 300)
    panel.get_by_role("combobox", name="Together with").select_option(label="None")
    panel.get_by_text("Foreground only").click()
    assert_colours(image_a=chelsea, facet="key", layer=1)


def assert_drawn_alike(page: Page, button: Locator, line: Locator) -> None:
    """The PNG behind a button and what the command beside it draws: as large, and almost the same everywhere."""
    with page.expect_download() as download:
        button.click()
    words = shlex.split(line.inner_text())
    assert words[:3] == ["python", "-m", "analysis"] and cli.main(words[3:]) == 0
    theirs, ours = (np.asarray(decode_image(path)).astype(int) for path in (download.value.path(), words[-1]))
    assert theirs.shape == ours.shape
    apart = np.abs(theirs - ours).max(-1)
    assert apart.mean() < 2 and np.quantile(apart, 0.99) < 20


def test_commands_draw_what_the_page_saves(visit: Visit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chelsea.png").write_bytes(examples()["chelsea"].read())
    page = visit("?img=chelsea", width=1440).page
    png, line = (
        page.locator("#tray-attention").get_by_role("button", name="PNG", exact=True),
        page.locator("#attention .cmd code"),
    )
    expect(tag(page)).to_have_text("Block 3 · mean · from class token")
    assert_drawn_alike(page, png, line)
    click_at(page, 0.3, 0.4)
    expect(tag(page)).to_contain_text("from patch")
    head_tile(page, "Head 2").click()
    assert_drawn_alike(page, png, line)
    slide(page, "Keep top mass", 60)
    assert_drawn_alike(page, png, line)
    for name in (COLOURED, NORMS):
        panel = figure(page, name)
        assert_drawn_alike(page, panel.get_by_role("button", name=f"PNG of {name}"), panel.locator("code"))
    large = upload(photo(2560, 1600), "large.jpg", "JPEG")
    (tmp_path / "large.jpg").write_bytes(large["buffer"])
    add(page, large)
    settled(page, "2560×1600")
    assert_drawn_alike(page, png, line)


@pytest.mark.parametrize("name", [COLOURED, NORMS, PCA])
def test_a_click_on_a_panel_asks_from_that_patch(visit: Visit, name: str):
    page = visit("?img=astronaut", width=1440).page
    overlay = figure(page, name).locator("canvas.sideover").first
    box = overlay.bounding_box()
    assert box
    overlay.click(position={"x": 0.53 * box["width"], "y": 0.28 * box["height"]})
    tag = page.locator(".tag").first
    expect(tag).to_contain_text("from patch 4, 8")
    expect(page.locator(".besidehead .meta")).to_contain_text("from patch 4, 8")
    overlay.focus()
    page.keyboard.press("ArrowDown")
    expect(tag).to_contain_text("from patch 5, 8")
    page.keyboard.press("ArrowRight")
    expect(tag).to_contain_text("from patch 5, 9")
    assert "Arrow keys move the query patch" in (overlay.get_attribute("aria-label") or "")


def test_what_is_not_on_screen_asks_nothing(visit: Visit):
    page = (watched := visit(width=1440, height=700)).page
    page.wait_for_timeout(1000)
    asked = lambda: [url for url in watched.requests if "/api/pca/" in url]
    assert asked() == []
    figure(page, PCA)
    assert len(asked()) == 1
    page.locator(".blocks button").first.click()
    figure(page, PCA)
    page.wait_for_timeout(500)
    assert len(asked()) == 1  # another block of the view is not another question


def test_a_picture_that_is_chosen_later_is_drawn(visit: Visit):
    page = visit("?img=astronaut", width=1440).page
    panel = figure(page, PCA)
    page.locator("#tray-attention .pics button[title='rocket.jpg']").click()
    expect(page.locator(".under > span").first).to_contain_text("640×427")
    for name in (COLOURED, NORMS, PCA):
        expect(figure(page, name).locator("img").first).to_have_attribute("src", re.compile("/rocket$"))
    expect(panel.locator("code")).to_contain_text("analysis pca rocket.jpg")
    for name in (COLOURED, NORMS):
        with page.expect_download() as download:
            figure(page, name).get_by_role("button", name=f"PNG of {name}").click()
        assert decode_image(download.value.path()).size == (640, 427)
        assert download.value.suggested_filename.startswith("rocket-")


def test_a_model_of_feature_maps_has_pca_colours_of_any_picture(visit: Visit):
    page = visit("?model=random:resnet10t&img=chelsea", ready=".besides", width=1440).page
    expect(page.locator("button.model")).to_contain_text("resnet10t", timeout=20_000)
    for name in (COLOURED, NORMS):
        expect(page.get_by_role("figure", name=name, exact=True)).to_have_count(0)
    expect(page.locator(".headtable")).not_to_be_visible()
    panel = figure(page, PCA)
    expect(panel.locator(".told")).to_contain_text("of the variance")
    first = panel.locator("canvas.sideover").first
    assert len(first.evaluate(COLOURS)) > 20
    panel.get_by_role("combobox", name="Features after").select_option(label="Stage 3")
    expect(panel.locator("code")).to_contain_text("--layer 2")
    page.locator("#tray-attention .pics button[title='coffee.png']").click()
    expect(panel.locator("code")).to_contain_text("analysis pca coffee.png")
    page.wait_for_url("**img=coffee*")
    expect(page.get_by_text("no attention over patches")).to_have_count(1)  # it is said once


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width, height", [(390, 844), (1440, 900)])
def test_accessible_without_jumps_at_any_width(visit: Visit, theme: str, width: int, height: int):
    page = visit("?img=coffee", width=width, height=height, color_scheme=theme, has_touch=width < 500).page
    expect(page.locator(".headgrid td")).to_have_count(9)
    watch_jumps(page)
    for name in (COLOURED, NORMS, PCA):
        overlay = figure(page, name).locator("canvas.sideover").first
        (overlay.tap if width < 500 else overlay.click)(position={"x": 60, "y": 60})
        expect(page.locator(".besidehead .meta")).to_contain_text("from patch")
    page.get_by_role("button", name="Measure 3 × 3 heads").click()
    expect(page.locator(".headgrid td.none")).to_have_count(0)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.mouse.move(5, 5)
    assert_accessible(page)
    assert page.evaluate("window.jumps") < 0.02
