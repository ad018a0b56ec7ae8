"""The Map panel among people: two who start a fit at once, one whose machine lacks libraries, one with a phone."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
from browser.conftest import Watched
from browser.map_board import PAD_PX
from browser.pictures import photo, upload
from browser.server import Server
from browser.small_bundle import write_small_bundle
from browser.test_map import find, link
from browser.test_map_moves import touch
from browser.test_page import LEAKS, add, click_at, settled
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from memssl_core import jobs
from memssl_core.jobs import JobFolder

JOB_MS = 120_000  # a job imports torch first, at a low priority
MAP, SHOWN = "?tab=memory&panel=map", ".mapstage > p.meta"
UNDER_WAY = "A UMAP is being fitted"
FITTED = re.compile(r"UMAP, 15 neighbours, seed 0")
GONE = ("umap", "numba", "pynndescent", "faiss", "fast_hdbscan")
SITECUSTOMIZE = f"""
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {GONE} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""
Enter = Callable[..., Watched]


@contextmanager
def serving(folder: Path, **environment: str) -> Iterator[Server]:
    """A server with a small bundle of its own; its jobs, which would outlive it, end with it."""
    bundle = write_small_bundle(folder / "small")
    server = Server(folder, ["--model", f"bundle:{bundle}"], environment=environment)
    try:
        with server:
            yield server
    finally:
        for status in [job.status() or {} for job in jobs.find(server.home / "jobs")]:
            if status.get("state") in jobs.LIVE:
                with suppress(ProcessLookupError):
                    os.kill(status["pid"], signal.SIGKILL)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("shared")) as server:
        yield server


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Where the libraries that fit maps and search memories are not installed, for the server and for its jobs."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "path").mkdir()
    (folder / "path" / "sitecustomize.py").write_text(SITECUSTOMIZE)
    with serving(folder, PYTHONPATH=str(folder / "path")) as server:
        yield server


@pytest.fixture
def enter(guest: Callable[..., Watched]) -> Enter:
    """Opens a server's page as a new visitor."""

    def open_page(server: Server, query: str = "", *, ready: str) -> Watched:
        watched = guest(server.url + query)
        watched.page.locator(ready).wait_for(timeout=30_000)
        return watched

    return open_page


def fits(server: Server, space: str) -> list[JobFolder]:
    """The jobs that were ever started to fit the map of this space."""
    told = [(job, job.status() or {}) for job in jobs.find(server.home / "jobs")]
    return [job for job, status in told if (status["kind"], status["space"]) == ("map", space)]


def drawn(page: Page) -> str:
    """The points as they are on the screen."""
    page.evaluate("async () => { for (let i = 0; i < 3; i++) await new Promise(requestAnimationFrame); }")
    return page.locator(".mapbox canvas").first.evaluate("canvas => canvas.toDataURL()")


def csv_of(page: Page, press: Callable[[Locator], None] = Locator.click) -> list[dict[str, str]]:
    """The rows of the selection's file."""
    with page.expect_download() as download:
        press(page.get_by_role("region", name="Selection").get_by_role("button", name="CSV"))
    return list(csv.DictReader(io.StringIO(download.value.path().read_text())))


def press_at_once(pages: list[Page], name: str) -> None:
    press = """([name, at]) => {
      const button = [...document.querySelectorAll('.fitting button')].find(one => one.textContent === name);
      setTimeout(() => button.click(), at - Date.now());
    }"""
    at_ms = (time.time() + 1) * 1000
    for page in pages:
        expect(page.get_by_role("button", name=name)).to_be_visible()
        page.evaluate(press, [name, at_ms])


def ask_at_once(server: Server, body: dict, people: int = 8) -> set[str]:
    """The answers to as many questions for a fit as there are people, on the wire at the same moment."""
    ready, answers = threading.Barrier(people), []

    def ask() -> None:
        line = HTTPConnection("127.0.0.1", server.port)
        line.connect()
        ready.wait()
        line.request("POST", "/api/map/fit", json.dumps(body), {"Content-Type": "application/json"})
        answers.append(line.getresponse().read().decode())

    threads = [threading.Thread(target=ask) for _ in range(people)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == people
    return set(answers)


def test_two_start_a_fit_and_nobody_waits(shared: Server, enter: Enter):
    ready = f"{SHOWN}:has-text('first two principal')"
    first, second = (enter(shared, MAP, ready=ready).page for _ in range(2))
    third = enter(shared, ready=".att:not(.empty)").page
    unfitted = drawn(second)
    assert drawn(first) == unfitted
    first.get_by_role("button", name="Zoom in").click()
    assert drawn(first) != unfitted
    find(second, "FISH")
    picks, pinned = (second.get_by_role("region", name=name) for name in ("Selection", "Pinned slot"))
    expect(picks.locator("h2")).to_have_text("7 slots for “FISH”")
    picks.locator(".mini").nth(2).click()
    expect(pinned).to_contain_text("memory space")
    slot = pinned.locator("h3").first.inner_text()

    press_at_once([first, second], "Fit with UMAP")
    for page in (first, second):
        expect(page.locator(".fitting")).to_contain_text(UNDER_WAY)
        expect(page.locator("button.jobs")).to_contain_text("1 job")  # where it can be stopped
    (job,) = fits(shared, "memory")

    third.locator(".overlay").focus()
    third.keyboard.press(",")
    expect(third.locator(".tag")).to_contain_text("Block 2 · mean · from class token")
    third.locator(".heads button").nth(2).click()
    expect(third.locator(".tag")).to_contain_text("Block 2 · head 1")
    click_at(third, 0.3, 0.3)
    expect(third.locator(".tag")).to_contain_text("from patch 4, 4")
    add(third, upload(photo(120, 80), "mine.png", "PNG"))
    settled(third, "120×80 PNG")
    assert (job.status() or {})["state"] in jobs.LIVE  # all of this came while the map was being fitted

    for page in (first, second):
        expect(page.locator(SHOWN)).to_contain_text(FITTED, timeout=JOB_MS)
        expect(page.locator(".fitting")).to_be_empty()
        expect(page.locator(".load:visible")).to_have_count(0)
    assert (job.status() or {})["state"] == "finished"
    assert fits(shared, "memory") == [job]

    expect(pinned.locator("h3").first).to_have_text(slot)
    expect(picks.locator("h2")).to_have_text("7 slots for “FISH”")  # what was chosen stays chosen
    assert {row["class_name"] for row in csv_of(second)} == {"fish"}
    greyed = drawn(second)
    picks.get_by_role("button", name="Clear").click()
    fitted = drawn(second)
    assert fitted != greyed
    assert fitted != unfitted and drawn(first) != fitted
    second.get_by_role("button", name="Zoom in").click()
    assert drawn(first) == drawn(second)  # so the first is still zoomed in by one step


def test_of_many_who_ask_at_once_one_starts_a_fit(shared: Server, enter: Enter):
    page = enter(shared, f"{MAP}&space=embedding", ready=f"{SHOWN}:has-text('first two principal')").page
    model = page.evaluate("async () => (await (await fetch('api/facts')).json()).model.handle")
    answers = ask_at_once(shared, {"model": model, "space": "embedding"})
    (job,) = fits(shared, "embedding")
    assert [json.loads(answer) for answer in answers] == [{"job": job.path.name}]
    page.reload()
    expect(page.locator(".fitting")).to_contain_text(UNDER_WAY)  # who comes later sees it too


def seen(page: Page, words: str) -> Locator:
    return page.get_by_text(words).filter(visible=True)


def assert_no_leak(page: Page) -> None:
    page.locator(".cmd").evaluate_all("all => all.forEach(line => line.remove())")  # names the bundle's folder
    assert not LEAKS.search(page.locator("body").inner_text())


def test_without_the_libraries_the_page_works_and_says_what_to_install(bare: Server, enter: Enter):
    install = "pip install"
    page = enter(bare, ready=".att:not(.empty)").page
    add(page, upload(photo(120, 80), "mine.png", "PNG"))
    settled(page, "120×80 PNG")
    click_at(page, 0.3, 0.3)
    expect(page.locator(".tag")).to_contain_text("from patch")
    expect(seen(page, install)).to_have_count(0)
    page.get_by_role("tab", name="Memory").click()
    expect(page.locator("#tray-memory .note")).to_contain_text("pip install faiss-cpu")
    assert_no_leak(page)

    page = enter(bare, MAP, ready=f"{SHOWN}:has-text('first two principal')").page
    expect(page.locator(SHOWN)).to_contain_text("the cross is the picture above")
    count = "c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size"
    assert page.locator(".mapbox canvas").first.evaluate(count) > 10
    heading = page.get_by_role("region", name="Colours").locator("h2")
    for name in page.get_by_label("Colour by").locator("option").all_inner_texts():
        page.get_by_label("Colour by").select_option(label=name)
        expect(heading.filter(has_text=name).or_(seen(page, install)).first).to_be_visible()
    page.reload()
    expect(page.locator(SHOWN)).to_contain_text("the cross is the picture above")
    expect(seen(page, install)).to_have_count(0)
    page.get_by_role("button", name="Fit with UMAP").click()
    expect(page.locator(".fitting")).to_contain_text(UNDER_WAY)
    expect(page.get_by_role("button", name="Fit with UMAP")).to_be_visible(timeout=JOB_MS)  # the job has ended
    expect(seen(page, install).first).to_be_visible()
    find(page, "37")
    expect(page.get_by_role("region", name="Pinned slot")).to_contain_text("pip install faiss-cpu")
    assert_no_leak(page)


def extent(page: Page) -> np.ndarray:
    """(left, top, right, bottom) of what is drawn of the points, px of the page."""
    picture = Image.open(io.BytesIO(base64.b64decode(drawn(page).split(",")[1])))
    return np.array(picture.getchannel("A").getbbox()) / page.evaluate("devicePixelRatio")


def places(page: Page) -> tuple[np.ndarray, np.ndarray]:
    """The slots of the map and where they lie on the screen while all are shown, [M] and [M, 2] px."""
    found = page.evaluate(
        """async () => {
          const { unpack } = await import('/ui/wire.js');
          const { handle } = (await (await fetch('api/facts')).json()).model;
          const path = `api/map/${handle}/memory`;
          const { key } = await (await fetch(path)).json();
          const { arrays: { x, y, has } } = unpack(await (await fetch(`${path}/${key}/points`)).arrayBuffer());
          return [[...x], [...y], [...has]];
        }"""
    )
    at, has = np.array(found[:2], float).T, np.array(found[2], np.uint8)
    box = page.locator(".mapbox .overlay").bounding_box()
    assert box
    size = np.array([box["width"], box["height"]])
    scale = ((size - 2 * PAD_PX) / (at.max(0) - at.min(0))).min()
    middle = np.array([box["x"], box["y"]]) + size / 2
    return np.flatnonzero(np.unpackbits(has, bitorder="little")), (at - (at.max(0) + at.min(0)) / 2) * scale + middle


def test_the_whole_panel_by_touch(visit: Callable[..., Watched]):
    size = {"width": 390, "height": 844, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
    page = visit("?tab=memory", ready=".tile >> nth=0", **size).page
    page.get_by_role("button", name="Map", exact=True).tap()
    expect(page.locator(SHOWN)).to_contain_text("the cross is the picture above")
    pinned, picks, colours = (page.get_by_role("region", name=one) for one in ("Pinned slot", "Selection", "Colours"))
    overlay, session = page.locator(".mapbox .overlay"), page.context.new_cdp_session(page)

    def assert_fits() -> None:
        """The page is neither wider than the phone, nor zoomed or moved aside."""
        told = "[document.documentElement.scrollWidth, visualViewport.scale, scrollX]"
        assert page.evaluate(told) == [390, 1, 0]

    def assert_still(top: float) -> None:
        """What was done on the map has not scrolled the page either."""
        assert_fits()
        assert page.evaluate("scrollY") == top

    def button(name: str) -> Locator:
        return page.locator("#map").get_by_role("button", name=name, exact=True)

    targets = page.locator(".mapv").locator(
        ".toolbar :is(.btn, select, input[type=text]), .legendrow, .mapbox .zoom .btn"
    )
    low = targets.evaluate_all("all => all.filter(one => one.offsetHeight < 44).map(one => one.outerHTML)")
    assert targets.count() > 10 and not low, low
    assert_fits()

    overlay.evaluate("map => map.scrollIntoView({ block: 'center' })")
    top = page.evaluate("scrollY")
    slots, at = places(page)
    box = overlay.bounding_box()
    assert box
    apart = np.hypot(*(at[:, None] - at).T) + np.diag(np.full(len(at), np.inf))
    alone = np.where(at[:, 0] < box["x"] + 80, 0, apart.min(0)).argmax()  # and not below the zoom's buttons
    assert apart[alone].min() > 16
    page.touchscreen.tap(*(at[alone] + 5))
    expect(pinned.locator("h3").first).to_have_text(f"Slot {slots[alone]}")
    assert_still(top)

    whole, middle = extent(page), np.array([box["x"] + box["width"] / 2, box["y"] + box["height"] / 2])
    touch(session, "Start", tuple(middle - [80, 0]))
    touch(session, "Start", tuple(middle - [80, 0]), tuple(middle + [80, 0]))
    for away in (70, 60, 50, 40):
        touch(session, "Move", tuple(middle - [away, 0]), tuple(middle + [away, 0]))
    touch(session, "End")
    near = extent(page)
    assert (near[2:] - near[:2]) / (whole[2:] - whole[:2]) == pytest.approx([0.5, 0.5], abs=0.04)
    expect(pinned.locator("h3").first).to_have_text(f"Slot {slots[alone]}")
    assert_still(top)
    button("Show all").tap()
    assert extent(page).tolist() == whole.tolist()
    pinned.get_by_role("button", name="Unpin").tap()
    expect(pinned).to_be_empty()

    button("Lasso").tap()
    overlay.evaluate("map => map.scrollIntoView({ block: 'center' })")
    top = page.evaluate("scrollY")
    slots, at = places(page)
    across = np.sort(at[:, 0])[10:-10]
    gap = np.diff(across).argmax()
    right = across[gap : gap + 2].mean()
    inside = slots[at[:, 0] < right]
    corners = np.array([at.min(0), at.max(0)]) + [[-8, -8], [8, 8]]
    (left, above), below = corners[0], corners[1, 1]
    touch(session, "Start", (right, above))
    for spot in ((right, (above + below) / 2), (right, below), (left, below), (left, above)):
        touch(session, "Move", spot)
    page.wait_for_timeout(300)  # a finger lifted while it moves flings, and the browser takes the next tap for its end
    touch(session, "End")
    expect(picks.locator("h2")).to_have_text(f"{len(inside)} slots inside")
    assert_still(top)
    assert [int(row["slot"]) for row in csv_of(page, Locator.tap)] == inside.tolist()
    picks.locator(".mini").nth(3).tap()
    expect(pinned.locator("h3").first).to_have_text(f"Slot {inside[3]}")
    greyed = drawn(page)
    picks.get_by_role("button", name="Clear").tap()
    assert drawn(page) != greyed

    before = drawn(page)
    row = colours.locator(".legendrow").nth(1)
    row.tap()
    expect(row).to_have_attribute("aria-pressed", "false")
    assert drawn(page) != before
    page.get_by_label("Colour by").select_option("age")
    expect(colours.locator("h2")).to_have_text("Age")
    assert_fits()

    page.get_by_label("Find slots").tap()
    page.keyboard.type("drawn:0:16#5")
    button("Find").tap()
    expect(picks.locator("h2")).to_have_text("4 slots for “drawn:0:16#5”")
    picks.locator(".mini").first.tap()
    expect(pinned.locator("h3").first).to_have_text("Slot 5")
    pinned.locator(".mini").first.tap()
    expect(pinned.locator("h3").first).not_to_have_text("Slot 5")
    expect(pinned.locator("h3").first).to_have_text(f"Slot {link(page)['slot']}")
    assert_fits()
    button("Embedding").tap()
    expect(page.locator(".cmd:visible code")).to_contain_text("--space embedding")
    expect(pinned).to_be_empty()
    expect(picks).to_be_empty()
    assert_fits()
