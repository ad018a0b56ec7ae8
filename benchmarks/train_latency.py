"""How much longer do the other tabs take beside a run? `python benchmarks/app_latency.py --parts train` runs this.

The embedded model in an app of its own: five things a person waits for, first with the machine idle, then while a run
of the preset `demo` trains, started by the page as it starts them all: at lower priority and with limited threads.
The pictures are new in each round, so nothing was computed before. Printed beside each other, with the ratio.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from urllib.request import Request, urlopen

import numpy as np
from page_timing import UNTIL_TOLD, serving, settle
from PIL import Image
from playwright.sync_api import Browser, FilePayload, Page

BUDGET = 2.5  # times the idle latency
START_S = 120
PRESS = "() => document.querySelector(%r).click()"


def picture(seed: int) -> FilePayload:
    """Colour patches, of a width that no other seed has."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((224 + seed, 224), Image.Resampling.BICUBIC).save(file, "PNG")
    return FilePayload(name=f"{seed}.png", mimeType="image/png", buffer=file.getvalue())


def show(page: Page, tab: str) -> None:
    page.get_by_role("tab", name=tab, exact=True).click()
    settle(page)


def uploaded_ms(page: Page, tray: str, seed: int, read: str) -> float:
    """From the choice of a file until `read` says something else."""
    page.evaluate("read => { window.before = eval(read)(); window.began = performance.now(); }", read)
    page.locator(f"{tray} input[type=file]").set_input_files(picture(seed))
    page.wait_for_function("read => { const told = eval(read)(); return told && told !== window.before; }", arg=read)
    taken = page.evaluate("() => performance.now() - window.began")
    settle(page)
    return taken


def attention_ms(page: Page, seed: int) -> float:
    show(page, "Attention")
    return uploaded_ms(page, "#tray-attention", seed, "() => document.querySelector('.att .under span').textContent")


def patch_ms(page: Page, seed: int) -> float:
    show(page, "Attention")
    x, y = 0.1 + 0.8 * (seed * 7 % 10) / 10, 0.1 + 0.8 * (seed * 3 % 10) / 10
    click = f"""() => {{
      const overlay = document.querySelector('.att .overlay'), box = overlay.getBoundingClientRect();
      const at = {{ clientX: box.left + {x} * box.width, clientY: box.top + {y} * box.height }};
      overlay.dispatchEvent(new MouseEvent('click', {{ ...at, bubbles: true }}));
    }}"""
    taken = page.evaluate(UNTIL_TOLD, [click, "() => document.querySelector('.att .tag').textContent"])
    settle(page)
    return taken


def neighbours_ms(page: Page, seed: int) -> float:
    show(page, "Memory")
    read = "() => [...document.querySelectorAll('.tile:not(.skel)')].map(tile => tile.textContent).join()"
    return uploaded_ms(page, "#tray-memory", seed, read)


def matches_ms(page: Page, seed: int) -> float:
    show(page, "Correspondence")
    return uploaded_ms(page, "#tray-correspondence", seed, "() => document.querySelector('.settings p').textContent")


def card_ms(page: Page, seed: int) -> float:
    """The model's list and card, as they open behind the chip."""
    read = "() => document.querySelector('#models .list li') && document.querySelector('#models').open"
    page.evaluate("() => document.querySelector('#models .list')?.replaceChildren()")
    taken = page.evaluate(UNTIL_TOLD, [PRESS % "button.model", read])
    page.keyboard.press("Escape")
    return taken


WAITS: dict[str, Callable[[Page, int], float]] = {
    "picture until its attention maps": attention_ms,
    "click on a patch until its maps": patch_ms,
    "picture until its memories": neighbours_ms,
    "picture until its matches": matches_ms,
    "list of models": card_ms,
}


def ask(url: str, path: str, body: dict | None = None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    request = Request(f"{url}api/{path}", data, {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as answer:
        return json.load(answer)


def start_run(url: str) -> str:
    """A run of the preset demo; its name, once it has told of some steps."""
    data = {"kind": "drawn", "count": 4096}
    answer = ask(url, "train/start", {"data": data, "preset": "demo", "changes": {}, "name": "beside", "processes": 1})
    end = time.monotonic() + START_S
    while len(ask(url, f"runs/{answer['run']}/events?since=0")["steps"]["columns"].get("step", [])) < 3:
        if time.monotonic() > end:
            raise TimeoutError(f"the run told of no steps within {START_S} s")
        time.sleep(1)
    return answer["run"]


def rounds_of(page: Page, first: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds by what is waited for; the first round is left out."""
    found = {name: [wait(page, first + i) for i in range(rounds + 1)][1:] for name, wait in WAITS.items()}
    return found


def measure_beside_a_run(browser: Browser, folder: Path, rounds: int) -> None:
    with serving(folder, "embedded") as url:
        page = browser.new_context(viewport={"width": 1440, "height": 1000}).new_page()
        page.goto(url)
        page.locator(".att:not(.empty)").wait_for(timeout=60_000)
        show(page, "Correspondence")
        idle = rounds_of(page, 0, rounds)
        run = start_run(url)
        try:
            busy = rounds_of(page, 100, rounds)
        finally:
            ask(url, f"runs/{run}/stop", {"rev": ""})
        print("beside a run:")
        for name, times in idle.items():
            ratio = median(busy[name]) / median(times)
            word = "within" if ratio <= BUDGET else "OVER"
            print(f"  {name}: {median(times):.0f} ms idle, {median(busy[name]):.0f} ms, {ratio:.2f}×, {word} {BUDGET}×")
        page.context.close()
