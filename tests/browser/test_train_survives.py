"""A training that outlives browser and server: started from photographs, killed around, stopped, resumed, opened."""

from __future__ import annotations

import io
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser.conftest import Watched, watch
from browser.server import Server
from browser.small_bundle import write_small_bundle
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from memssl_core.jobs import JobFolder
from ui.examples import examples

NAME, SIDE_PX, STEPS = "first", 96, 300
TRAIN_MS = 120_000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """With 64 squares cut from photographs under a declared root."""
    photos = tmp_path / "photos" / "squares"
    photos.mkdir(parents=True)
    pictures = [Image.open(io.BytesIO(one.read())).convert("RGB") for one in list(examples().values())[:4]]
    for i in range(64):
        picture, place = pictures[i % 4], i // 4
        x, y = (place % 4) * (picture.width - SIDE_PX) // 3, (place // 4) * (picture.height - SIDE_PX) // 3
        picture.crop((x, y, x + SIDE_PX, y + SIDE_PX)).save(photos / f"{i:02d}.jpg")
    bundle = write_small_bundle(tmp_path / "small")
    roots = ["--root", f"photos={photos.parent}", "--runs", str(tmp_path / "runs")]
    server = Server(tmp_path, ["--model", f"bundle:{bundle}", *roots])
    try:
        server.start()
        yield server
    finally:
        server.stop(signal.SIGKILL)
        run = JobFolder(tmp_path / "runs" / NAME)
        if (run.status() or {}).get("state") in ("waiting", "running"):
            run.kill()


def open_page(browser: Browser, server: Server, query: str) -> Watched:
    watched = watch(browser.new_context(viewport={"width": 1280, "height": 900}).new_page())
    watched.page.goto(server.url + query)
    return watched


def row(page: Page):
    return page.locator(".runlist li").filter(has_text=NAME)


def test_a_run_outlives_the_browser_and_the_server(browser: Browser, server: Server, tmp_path: Path):
    page = (first := open_page(browser, server, "?tab=train&new=1")).page
    page.get_by_role("button", name="squares", exact=True).click()
    page.get_by_role("radio", name=re.compile("smoke", re.IGNORECASE)).check()
    page.get_by_label("Steps", exact=True).fill(str(STEPS))
    page.get_by_label("Name", exact=True).fill(NAME)
    page.get_by_role("button", name="Plan the run").click()
    page.get_by_role("button", name="Start training").click()
    expect(row(page)).to_contain_text("Running", timeout=TRAIN_MS)
    first.assert_quiet()
    page.context.close()

    server.stop(signal.SIGKILL)
    assert (JobFolder(tmp_path / "runs" / NAME).status() or {})["state"] == "running"
    server.start()
    page = (second := open_page(browser, server, f"?tab=train&run={NAME}")).page
    expect(row(page)).to_contain_text("Running")
    page.get_by_role("button", name="Stop and save").click()
    expect(page.locator(".run").get_by_role("status").first).to_contain_text("Stopped at step", timeout=TRAIN_MS)
    stopped_at = int((JobFolder(tmp_path / "runs" / NAME).status() or {})["step"])
    assert 0 < stopped_at < STEPS
    assert (tmp_path / "runs" / NAME / "bundle" / "model.safetensors").is_file()

    page.get_by_role("button", name="Resume").click()
    expect(row(page)).to_contain_text("Finished", timeout=TRAIN_MS)
    expect(page.locator(".figures")).to_contain_text(f"{STEPS} / {STEPS}")
    page.get_by_role("button", name="Open in Attention").click()
    expect(page.locator("button.model")).to_contain_text(NAME, timeout=30_000)
    expect(page.locator(".att:not(.empty) .tag")).to_contain_text("from class token")
    page.get_by_role("tab", name="Memory").click()
    expect(page.locator(".tile:not(.skel)")).to_have_count(20)
    second.assert_quiet()
    page.context.close()
