"""The Compare tab in a browser: another model, another seed, one without attention; memories, a probe set, links."""

from __future__ import annotations

import csv
import io
import json
import re
from urllib.parse import urlencode
from urllib.request import urlopen

import numpy as np
import pytest
from browser.compare_tab import (
    OTHER,
    PROBE_MS,
    RESNET,
    SEED,
    TRAY,
    Visit,
    choose,
    link,
    live,
    overlap,
    own_source,
    quiet_requests,
    settled,
    stage,
)
from browser.conftest import assert_accessible, watch_jumps
from browser.pictures import photo, upload
from browser.test_beside import workbench  # noqa: F401  a fixture
from browser.test_page import add
from playwright.sync_api import Page, Route, expect

from analysis.compare import compare_probe
from analysis.probe import probe, probe_images
from analysis.workbench import Workbench
from memssl_core.sources import open_model


def test_what_to_compare_with_is_one_click_away(tab: Visit):
    def kept(route: Route) -> None:
        route.fulfill(json=[{"source": SEED, "title": "tiny, step 10"}])

    page = tab().page
    offers = page.locator(".offers")
    expect(offers.get_by_role("button", name="vit_tiny_patch16_224, untrained")).to_be_visible()
    expect(page.locator(".both")).not_to_be_visible()
    page.route("**/api/checkpoints", kept)  # those of runs are made by training, which is tested elsewhere
    page.get_by_role("tab", name="About").click()
    page.wait_for_timeout(1100)
    page.get_by_role("tab", name="Compare").click()  # what a run has kept meanwhile is offered too
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
    told = link(page)
    assert told["model"] == SEED and not {"layer", "head", "layer_b", "head_b"} & set(told)
    page.get_by_role("button", name="Clear", exact=True).click()
    expect(offers.get_by_role("button", name="test_vit, seed 2")).to_be_visible()
    assert "other" not in link(page)


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
    expect(page.locator(".maps2 .scale span:last-child")).to_have_text(["2.0 ×"] * 2)  # flat maps stay dark
    expect(page.locator(".memboth").get_by_text("This model has no memory.")).to_have_count(2)


def test_what_changed_most_over_a_probe_set(tab: Visit):
    page = (watched := tab("&other=random:test_vit@7&img=coffee")).page
    settled(page)
    go = page.get_by_role("button", name="Compare on 256 pictures")
    go.click()
    expect(page.locator(".working .meta")).to_have_text(re.compile(r"^\d+ of 256 pictures · \d"))
    expect(page.get_by_role("button", name="Cancel")).to_be_focused()
    page.get_by_role("button", name="Cancel").click()
    expect(go).to_be_focused()
    page.wait_for_timeout(1200)  # what was under way
    before = len(watched.requests)
    page.wait_for_timeout(600)
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
    with page.expect_download() as download:
        page.locator(".probe").get_by_role("button", name="CSV").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text())))
    assert [float(row["kept"]) * 100 for row in rows] == kept
    expect(page.locator(".cmd code:visible")).to_contain_text("--probe drawn")
    squares = page.locator(f"{TRAY} .pics button:not(.add)")
    there = squares.count()
    page.get_by_role("button", name="See its maps").click()
    expect(squares).to_have_count(there + 1)
    expect(stage(page, "a")).to_be_in_viewport(ratio=0.9)  # and the page stays there
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
    assert corner == ["1.0"] * 3


def test_the_table_of_blocks_has_the_numbers_of_the_function(tab: Visit, workbench: Workbench):  # noqa: F811
    page = tab(f"&other={OTHER}").page
    settled(page)
    page.get_by_label("Probe set", exact=True).select_option(index=1)
    page.get_by_role("button", name="Compare on 16 pictures").click()
    grid = page.get_by_role("grid", name="CKA by block: A up, B across")
    expect(grid).to_be_visible(timeout=PROBE_MS)
    pictures = probe_images("memory", memory=workbench.model.memory)
    (a, b), _ = probe([workbench, Workbench(open_model(OTHER))], pictures)
    layers = compare_probe(a, b).layers
    assert layers is not None and layers.shape == (3, 6)
    cells = grid.get_by_role("gridcell")
    told = np.array([float(text) for text in cells.all_inner_texts()]).reshape(3, 6)[::-1]  # A goes up
    np.testing.assert_allclose(told, layers, atol=0.0051)
    labels = [re.fullmatch(r"Block (\d) of A, block (\d) of B: (-?\d\.\d\d)", cell.get_attribute("aria-label") or "")
              for cell in cells.all()]  # fmt: skip
    assert [(int(found[1]), int(found[2]), float(found[3])) for found in labels if found] == [
        (i + 1, j + 1, told[i, j]) for i in (2, 1, 0) for j in range(6)
    ]
    now, said = grid.locator("[tabindex='0']"), page.locator(".heatbox > p")
    now.focus()
    steps = "Up 3 1, Right 3 2, Down 2 2, End 2 6, Right 2 6, Left 2 5, Home 2 1, Left 2 1, Down 1 1"
    for key, i, j in map(str.split, steps.split(", ")):
        page.keyboard.press(key if key in ("Home", "End") else f"Arrow{key}")
        expect(now).to_be_focused()  # and there is one such cell
        expect(said).to_have_text(f"Block {i} of A, block {j} of B: {told[int(i) - 1, int(j) - 1]:.2f}")
        expect(now).to_have_attribute("aria-label", said.inner_text())
    cells.first.hover()
    expect(said).to_have_text(re.compile("^Block 3 of A, block 1 of B: "))
    page.mouse.move(5, 5)
    expect(said).to_have_text(re.compile("^Block 1 of A, block 1 of B: "))
    page.keyboard.press("Tab")
    expect(said).to_have_text("")
    assert grid.locator(":focus").count() == 0


def test_numbers_can_be_read_on_every_colour_and_small_cells_have_none(page: Page, server: str):
    page.goto(f"{server}healthz")
    told = page.evaluate(
        """async () => {
          const { layerTable } = await import('/ui/layertable.js');
          const model = { layer_noun: 'block' };
          const cells = layers => {
            const table = layerTable();
            document.body.replaceChildren(table.node);
            table.show({ layers, models: { a: model, b: model } });
            return [...document.querySelectorAll('td')].map(cell => [cell.textContent, cell.ariaLabel.split(': ')[1],
              ...['backgroundColor', 'color'].map(of => (cell.style[of].match(/\\d+/g) ?? []).map(Number))]);
          };
          const all = Array.from({ length: 111 }, (_, i) => (i - 5) / 100);
          return { shown: all.flatMap(value => cells([[value]])), none: cells([[null]])[0],
                   small: cells(Array.from({ length: 24 }, () => Array(24).fill(.5))) };
        }"""
    )

    def light(channels: list[int]) -> float:
        scaled = np.array(channels) / 255
        linear = np.where(scaled <= 0.04045, scaled / 12.92, ((scaled + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for text, words, ground, ink in told["shown"]:
        assert float(text) == float(words)
        dark, bright = sorted((light(ground), light(ink)))
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, words
    assert told["none"][:2] == ["", "none"] and len(told["small"]) == 24**2
    assert {(text, words) for text, words, *_ in told["small"]} == {("", "0.50")}


def test_a_link_restores_the_view(tab: Visit, server: str):
    asked = {"img": "coffee", "other": SEED, "layer": "1", "head": "2", "layer_b": "4", "head_b": "max", "patch": "37"}
    with urlopen(f"{server}api/facts") as answer:
        memory = f"memory-{json.load(answer)['model']['handle']}"
    asked |= {"mode": "slider", "split": "30", "opacity": "60", "scale": "own", "probe": memory}
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


def test_an_answer_that_fails_is_told_on_its_own_side(tab: Visit):
    page = (watched := tab("&img=coffee")).page
    page.route("**/api/attention/**", lambda route: route.fulfill(status=410, json={"error": "Choose it again."}))
    choose(page, OTHER)
    expect(page.locator(".maps2 .state .note")).to_have_count(2, timeout=30_000)
    expect(page.locator(".maps2 .state .note").first).to_have_text("The maps did not arrive. Choose it again.")
    page.unroute("**/api/attention/**")
    for again in page.locator(".maps2 .state").get_by_role("button", name="Try again").all()[::-1]:
        again.click()
    settled(page)
    expect(page.locator(".maps2 .state:visible")).to_have_count(0)
    watched.complaints.clear()  # the console tells of the answers that failed


HOSTILE = {
    "layer": "200", "head": "200", "layer_b": "-1", "head_b": "1e3", "patch": "65535", "mode": "constructor",
    "split": "1e9", "opacity": "-5", "scale": "<b>", "probe": "memory-../../etc", "img": "<img src=x onerror=alert(1)>",
}  # fmt: skip


def test_a_hostile_link_shows_the_usual_view(tab: Visit):
    page = tab(f"&{urlencode({'other': OTHER} | HOSTILE)}").page
    settled(page)
    expect(page.locator(f"{TRAY} .errslot .note")).to_contain_text("A picture of this link is not here.")
    expect(live(page)).to_have_text(
        re.compile("A · Block 3 · mean · from class token.*B · Block 6 · mean · from class")
    )
    told = link(page)
    assert not (set(HOSTILE) - {"img"}) & set(told) and told["img"] == "astronaut"
    page = tab(f"&{urlencode({'other': 'bundle:/etc', 'img': 'coffee'})}").page
    expect(page.locator(".models .note")).to_contain_text("This model could not be opened.")
    expect(page.locator(".offers .row").first).to_be_visible()
    page.locator(f"{TRAY} [aria-label='lion.jpg']").click()
    told = link(page)
    assert told["img"] == "lion" and "other" not in told


def test_opening_the_other_model_can_be_cancelled(tab: Visit):
    asked = []

    def slow(route: Route) -> None:
        asked.append(route.request.url.rpartition("/api/")[2])
        route.fulfill(json={"state": "loading", "ticket": "t", "words": "1 of 9 MB", "done": 1, "total": 9})

    page = tab(f"&other={SEED}").page
    settled(page)
    page.route("**/api/open**", slow)
    page.route("**/api/open/**", slow)
    choose(page, "timm:large")
    expect(page.locator(".models [role=status]")).to_have_text("Opening it: 1 of 9 MB")
    page.locator(".models").get_by_role("button", name="Cancel").click()
    expect(page.get_by_label("Compare with")).to_have_value(SEED)
    expect(page.locator(".models [role=status]")).to_have_text("")
    page.wait_for_timeout(900)
    count = len(asked)
    assert "open/t/cancel" in asked
    page.wait_for_timeout(900)
    assert len(asked) == count
    expect(page.locator(".side b").nth(1)).to_contain_text("seed 1")


def test_two_visitors_with_other_models_and_pictures(tab: Visit):
    ours, theirs = tab(f"&other={OTHER}").page, tab(f"&model={SEED}&other={RESNET}").page
    settled(ours)
    settled(theirs, "a")
    for page, seed in ((ours, 1), (theirs, 2)):
        add(page, upload(photo(seed=seed), f"mine-{seed}.png", "PNG"), TRAY)
        settled(page, "a")
    handles = [link(page)["img"] for page in (ours, theirs)]
    assert len(set(handles)) == 2
    for page, models, own, other in (
        (ours, ["small", "test_vit, random weights (seed 0)"], "mine-1.png", handles[1]),
        (
            theirs,
            ["test_vit, random weights (seed 1)", "test_resnet, random weights (seed 0)"],
            "mine-2.png",
            handles[0],
        ),
    ):
        expect(page.locator(".side b")).to_have_text(models)
        expect(page.locator(f"{TRAY} [aria-pressed=true]")).to_have_attribute("aria-label", own)
        expect(page.locator(f"{TRAY} [aria-label^=mine]")).to_have_count(1)
        assert other not in page.content()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_accessible_steady_and_within_a_phone(tab: Visit, theme: str, width: int):
    page = tab(f"&img=drawn-4&__theme={theme}", width=width, height=844, has_touch=width < 500).page
    expect(page.locator(".offers .row").first).to_be_visible()
    expect(page.locator(f"{TRAY} [aria-pressed=true]")).to_be_in_viewport(ratio=0.9)  # the last of the row
    assert_accessible(page)
    choose(page, OTHER)
    settled(page)
    watch_jumps(page)
    page.get_by_label("Probe set", exact=True).select_option(index=1)
    page.get_by_role("button", name=re.compile(r"Compare on \d+ pictures")).click()
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
