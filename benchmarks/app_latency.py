"""How long does a person wait on the page? In headless Chromium without a GPU, against the budgets of the design.

python benchmarks/app_latency.py [--rounds N] [--parts attention correspondence …] [--points N N]

The Correspondence tab with the embedded model and with a ViT-S/16 of random weights: two pictures of 224 px until their
matches are drawn, at the input size nearest to that; a click until the heat map is painted, and until the memories of
its crop are there; 60 pointer moves, each with its heat map. The panel Map with 131 072 and with 1 000 000 points, see
map_latency.py. The tab Attention, and the memory that uploads take, see attention_latency.py. The tabs beside a run
that trains, see train_latency.py. Medians and the slowest; the pictures are new in each round, so nothing was computed
before.
"""

from __future__ import annotations

import io
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import tyro
from attention_latency import measure_attention, measure_uploads
from map_latency import measure_map
from page_timing import chromium, line, serving, settle
from playwright.sync_api import Browser, FilePayload, Page, sync_playwright
from timing import machine
from train_latency import measure_beside_a_run

from memssl_core.data.images import decode_image
from ui.examples import PAIR, examples

SIDE_PX = 224
TRAY = "#tray-correspondence"
# milliseconds from the call to the frame after the change that `isDone` waits for
UNTIL = """async ([call, isDone]) => {
  const [act, done] = [eval(call), eval(isDone)];
  const began = performance.now();
  act();
  while (!done()) await new Promise(requestAnimationFrame);
  await new Promise(requestAnimationFrame);
  return performance.now() - began;
}"""
CHANGE = """() => {
  const select = [...document.querySelectorAll("select[aria-label='Input size']")].at(-1);
  select.value = '%d';
  select.dispatchEvent(new Event('change'));
}"""
CLICK = """() => {
  const overlay = document.querySelector('.stage.a .overlay'), box = overlay.getBoundingClientRect();
  const at = { clientX: box.left + %f * box.width, clientY: box.top + %f * box.height };
  overlay.dispatchEvent(new MouseEvent('click', { ...at, bubbles: true }));
}"""
MOVES = """async () => {
  const overlay = document.querySelector('.stage.a .overlay'), other = document.querySelector('.stage.b .overlay');
  const box = overlay.getBoundingClientRect(), times = [];
  for (let i = 0; i < 60; i++) {
    const [x, y] = [0.1 + 0.8 * (i * 7 % 60) / 60, 0.1 + 0.8 * i / 60];
    const at = { clientX: box.left + box.width * x, clientY: box.top + box.height * y };
    await new Promise(requestAnimationFrame);
    const began = performance.now();
    overlay.dispatchEvent(new PointerEvent('pointermove', { ...at, bubbles: true, pointerType: 'mouse' }));
    other.getContext('2d').getImageData(0, 0, 1, 1);  // drawn, not only asked for
    times.push(performance.now() - began);
  }
  return times;
}"""


Part = Literal["attention", "uploads", "correspondence", "map", "train"]


@dataclass(frozen=True)
class Setting:
    parts: tuple[Part, ...] = get_args(Part)
    rounds: int = 7
    models: tuple[str, ...] = ("embedded", "random:vit_small_patch16_224")
    """of the parts attention and correspondence"""
    points: tuple[int, ...] = (131_072, 1_000_000)
    """of the part map"""
    starts: int = 3
    """how many servers show each map for the first time"""
    device_scale: float = 1
    """pixels of the screen per pixel of the page"""


def files(seed: int) -> list[FilePayload]:
    """Two different crops of photographs, PNG."""
    rng, found = np.random.default_rng(seed), []
    for name in PAIR:
        picture = decode_image(examples()[name].read())
        x, y = (int(rng.integers(0, side - SIDE_PX)) for side in picture.size)
        data = io.BytesIO()
        picture.crop((x, y, x + SIDE_PX, y + SIDE_PX)).save(data, "PNG")
        found.append(FilePayload(name=f"{seed}-{name}.png", mimeType="image/png", buffer=data.getvalue()))
    return found


def add(page: Page, file: FilePayload) -> None:
    page.locator(f"{TRAY} input[type=file]").set_input_files(file)
    page.get_by_role("button", name=file["name"], exact=True).and_(page.locator(f"{TRAY} .pics button")).wait_for()
    settle(page)


def fill(page: Page, side: str) -> None:
    page.get_by_role("group", name="The tray fills").get_by_role("button", name=side).click()


def match_ms(page: Page, seed: int) -> float:
    """Two new pictures, first matched at another input size, then, while the clock runs, at the one next to 224 px."""
    sizes = page.get_by_label("Input size", exact=True).last
    options = sizes.locator("option").evaluate_all("all => all.map(o => Number(o.value))")
    wanted = min(options, key=lambda px: (abs(px - SIDE_PX), -px))
    sizes.select_option(str(min(px for px in options if px != wanted)))
    settle(page)
    for side, file in zip("AB", files(seed), strict=True):
        fill(page, side)
        add(page, file)
    before = page.locator(".settings p").inner_text()
    return page.evaluate(
        UNTIL, [CHANGE % wanted, f"() => document.querySelector('.settings p').textContent !== {before!r}"]
    )


def click_ms(page: Page, x: float, y: float, done: str) -> float:
    return page.evaluate(UNTIL, [CLICK % (x, y), done])


def measure(page: Page, url: str, model: str, rounds: int) -> None:
    page.goto(f"{url}?tab=correspondence&model={model}")
    page.locator(".pairs:not(.empty)").wait_for(timeout=60_000)
    settle(page)
    print(f"{model}:")
    match = [match_ms(page, seed) for seed in range(rounds + 1)][1:]
    line("both pictures read, matched and drawn", match, 600 if model == "embedded" else 2000)
    heat, memories = [], []
    has_memory = model == "embedded"
    for i in range(rounds):
        x, y = 0.15 + 0.7 * i / rounds, 0.2 + 0.6 * ((3 * i) % rounds) / rounds
        title = "() => document.querySelector('section[aria-label=Scores] h2').textContent === 'Nearest patches in B'"
        heat.append(click_ms(page, x, y, title))
        settle(page)
        if has_memory:
            shown = "() => document.querySelectorAll('.memories:not(.old) img').length === 8"
            memories.append(click_ms(page, 1 - x, 1 - y, shown))
            settle(page)
    line("click to heat map", heat, 150)
    if has_memory:
        line("click to the memories of its crop", memories, 150)
    line("pointer move to heat map, no request", page.evaluate(MOVES), 16)


def measure_correspondence(browser: Browser, folder: Path, setting: Setting) -> None:
    with serving(folder, "embedded") as url:
        page = browser.new_context(
            viewport={"width": 1440, "height": 1000}, device_scale_factor=setting.device_scale
        ).new_page()
        for model in setting.models:
            measure(page, url, model, setting.rounds)
        page.context.close()


def main(setting: Setting) -> None:
    print(f"{setting} ({machine()}; load before: {os.getloadavg()[0]:.1f})")
    with sync_playwright() as playwright, chromium(playwright) as browser:
        if "attention" in setting.parts:
            with tempfile.TemporaryDirectory() as folder:
                measure_attention(browser, Path(folder), setting.models, setting.rounds)
        if "uploads" in setting.parts:
            with tempfile.TemporaryDirectory() as folder:
                measure_uploads(browser, Path(folder))
        if "correspondence" in setting.parts:
            with tempfile.TemporaryDirectory() as folder:
                measure_correspondence(browser, Path(folder), setting)
        for points in setting.points if "map" in setting.parts else ():
            with tempfile.TemporaryDirectory() as folder:
                measure_map(browser, Path(folder), points, setting.rounds, setting.starts, setting.device_scale)
        if "train" in setting.parts:
            with tempfile.TemporaryDirectory() as folder:
                measure_beside_a_run(browser, Path(folder), setting.rounds)


if __name__ == "__main__":
    main(tyro.cli(Setting, description=__doc__))
