"""How long does a person wait on the tab Attention? For `python benchmarks/app_latency.py --parts attention uploads`.

With the embedded model and with a ViT-S/16 of random weights at 224 px: the choice of a file until its maps are drawn;
a block and a patch until theirs are; 60 changes each of head, mass and opacity, drawn and without a request; the table
of all attention heads. And what the server's memory grows by while one person uploads 200 pictures.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import psutil
from page_timing import UNTIL_TOLD, line, serving, settle
from playwright.sync_api import Browser, FilePayload, Page

from memssl_core.data.images import decode_image
from tests.browser.server import Server
from ui.examples import PAIR, examples

SIDE_PX = 224
TRAY = "#tray-attention input[type=file]"
META = "document.querySelector('.att .under span').textContent"
CLICK = """() => {
  const overlay = document.querySelector('.att .overlay'), box = overlay.getBoundingClientRect();
  const at = { clientX: box.left + %f * box.width, clientY: box.top + %f * box.height };
  overlay.dispatchEvent(new MouseEvent('click', { ...at, bubbles: true }));
}"""
TAG = "() => document.querySelector('.att .tag').textContent"
# 60 changes, each until it is drawn, not only asked for
HOT = """async (change) => {
  const act = eval(change), overlay = document.querySelector('.att .overlay'), times = [];
  for (let i = 0; i < 60; i++) {
    await new Promise(requestAnimationFrame);
    const began = performance.now();
    act(i);
    overlay.getContext('2d').getImageData(0, 0, 1, 1);
    times.push(performance.now() - began);
  }
  return times;
}"""
SLIDE = """(i) => {
  const input = document.querySelector('.att input[aria-label="%s"]');
  input.value = 30 + i;
  input.dispatchEvent(new Event('input', { bubbles: true }));
}"""
HEAD = """(i) => {
  const tiles = [...document.querySelectorAll('.att .heads button')].filter(tile => !/^Rollout/.test(tile.textContent));
  tiles[i % tiles.length].click();
}"""
CHANGES = {"head": HEAD, "mass": SLIDE % "Keep top mass", "opacity": SLIDE % "Opacity"}
BUDGET_MS = {"embedded": 400, "random:vit_small_patch16_224": 1000}
TABLE_S = 10
UPLOADS, FROM = 200, 50
GROWTH_MB = 100


def crop(seed: int, width: int, height: int, kind: str = "PNG") -> FilePayload:
    """Another crop of a photograph for each seed."""
    rng = np.random.default_rng(seed)
    picture = decode_image(examples()[PAIR[seed % 2]].read())
    side = int(rng.integers(min(picture.size) // 2, min(picture.size) + 1))
    x, y = (int(rng.integers(0, most - side + 1)) for most in picture.size)
    data = io.BytesIO()
    picture.crop((x, y, x + side, y + side)).resize((width, height)).save(data, kind)
    return FilePayload(name=f"{seed}.{kind.lower()}", mimeType=f"image/{kind.lower()}", buffer=data.getvalue())


def upload_ms(page: Page, file: FilePayload) -> float:
    """From the choice of a file until the line below the picture tells of its maps."""
    page.evaluate(f"() => {{ window.before = {META}; window.began = performance.now(); }}")
    page.locator(TRAY).set_input_files(file)
    taken = page.evaluate(
        f"""async () => {{
          while ({META} === window.before) await new Promise(requestAnimationFrame);
          await new Promise(requestAnimationFrame);
          return performance.now() - window.began;
        }}"""
    )
    settle(page)
    return taken


def measure(page: Page, url: str, model: str, rounds: int) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(f"{url}?tab=attention&model={model}")
    page.locator(".att:not(.empty)").wait_for(timeout=60_000)
    settle(page)
    print(f"{model}:")
    # of a width that no other seed has, so that the line below the picture changes
    first = [upload_ms(page, crop(seed, SIDE_PX, SIDE_PX + seed)) for seed in range(rounds + 1)][1:]
    line("file chosen to maps drawn", first, BUDGET_MS.get(model))
    blocks = page.locator(".att .blocks button").count()
    press = "() => document.querySelectorAll('.att .blocks button')[%d].click()"
    line(
        "another block", [page.evaluate(UNTIL_TOLD, [press % (i % (blocks - 1)), TAG]) for i in range(2 * rounds)], 150
    )
    clicks = []
    for i in range(rounds):
        x, y = 0.1 + 0.8 * (i * 7 % 10) / 10, 0.15 + 0.7 * i / rounds
        clicks.append(page.evaluate(UNTIL_TOLD, [CLICK % (x, y), TAG]))
        settle(page)
    line("click on a patch to its maps", clicks, 150)
    page.wait_for_timeout(1500)  # what is brought when nobody asks
    for what, change in CHANGES.items():
        before = len(requests)
        times = page.evaluate(HOT, change)
        line(f"{what}, {len(requests) - before} requests", times, 16)
    start = "() => [...document.querySelectorAll('button')].find(b => /^Measure /.test(b.textContent)).click()"
    heads = page.locator(".att .heads button").filter(has_text="Head ").count()
    taken = page.evaluate(
        """async ([start, done]) => {
          const act = eval(start), began = performance.now();
          act();
          while (!document.querySelector('#headtable').textContent.includes(done)) {
            if (performance.now() - began > 60_000) return Infinity;
            await new Promise(requestAnimationFrame);
          }
          return performance.now() - began;
        }""",
        [start, f"all {blocks} blocks in"],
    )
    line(f"table of {blocks} × {heads} attention heads", [taken], 1000 * TABLE_S)


def measure_attention(browser: Browser, folder: Path, models: tuple[str, ...], rounds: int) -> None:
    with serving(folder, "embedded") as url:
        for model in models:
            page = browser.new_context(viewport={"width": 1440, "height": 1000}).new_page()
            measure(page, url, model, rounds)
            page.context.close()


def measure_uploads(browser: Browser, folder: Path) -> None:
    """Resident memory of the server after FROM and after UPLOADS different photographs of one visitor."""
    folder.mkdir(parents=True, exist_ok=True)
    with Server(folder, ["--model", "embedded"], threads=2) as server:
        assert server.process
        process, resident_mb = psutil.Process(server.process.pid), {}
        page = browser.new_page()
        page.goto(server.url)
        page.locator(".att:not(.empty)").wait_for(timeout=60_000)
        for seed in range(UPLOADS):
            upload_ms(page, crop(seed, 1200, 800 + seed, "JPEG"))
            if seed + 1 in (FROM, UPLOADS):
                resident_mb[seed + 1] = process.memory_info().rss / 1e6
        page.close()
    grown = resident_mb[UPLOADS] - resident_mb[FROM]
    word = "within" if grown <= GROWTH_MB else "OVER"
    told = ", ".join(f"{megabytes:.0f} MB after {number} uploads" for number, megabytes in resident_mb.items())
    print(f"the server's memory: {told}; grown by {grown:.0f} MB, {word} {GROWTH_MB} MB")
