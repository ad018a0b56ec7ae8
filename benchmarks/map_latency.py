"""How fast is the map of many points? In headless Chromium without a GPU, against the budgets of the design.

python benchmarks/map_latency.py [--points N N] [--rounds N]: the canvas of the map alone in a page, with synthetic
points in 100 clusters. From the arrays until they are drawn; redraws while a real mouse drags; a pointer move until the
nearest point is known; from the end of a real lasso until its points are; another colouring until it is drawn. Medians
and the slowest; the browser's clock ticks every 0.1 ms.
"""

from __future__ import annotations

import math
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import tyro
from playwright.sync_api import Page, Route, sync_playwright
from timing import machine

from tests.conftest import find_chromium

STATIC = Path(__file__).resolve().parents[1] / "ui" / "static"
ORIGIN = "http://map.test/"
PAGE = '<!doctype html><link rel="stylesheet" href="ui.css"><body><div class="ui" id="box"></div>'
DRAG_S = 3
BUDGETS = {  # shown_ms, redraws_per_s, hover_ms, lasso_ms; DESIGN.md 12
    131_072: (500, 45, 2, 50),
    1_000_000: (2000, 20, 2, None),
}
MOUNT = """async () => {
  const { mapCanvas } = await import('/mapcanvas.js');
  window.times = { view: [], select: [] };
  addEventListener('pointerup', () => { window.lifted = performance.now(); }, true);
  window.map = mapCanvas({
    view: () => times.view.push(performance.now()),
    select: found => { times.select.push(performance.now() - lifted); window.found = found.length; },
  });
  document.getElementById('box').append(map.node);
  window.drawn = async act => { // milliseconds until what `act` changes is drawn
    await new Promise(requestAnimationFrame);
    const [began, before] = [performance.now(), map.state.draws];
    act();
    while (map.state.draws === before) await new Promise(requestAnimationFrame);
    return performance.now() - began;
  };
}"""
CLOUD = """n => {
  let state = 1;
  const uniform = () => { state = (Math.imul(state, 1664525) + 1013904223) >>> 0; return (state + 0.5) / 2 ** 32; };
  const normal = () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  const range = () => [6000 + 53000 * uniform(), 400 + 1800 * uniform()];
  const clusters = Array.from({ length: 100 }, () => [range(), range()]);
  const [x, y, values] = [new Uint16Array(n), new Uint16Array(n), new Uint8Array(n)];
  for (let i = 0; i < n; i++) {
    values[i] = Math.floor(i * 100 / n);
    const [a, b] = clusters[values[i]].map(([middle, wide]) => Math.min(65535, Math.max(0, middle + wide * normal())));
    [x[i], y[i]] = [a, b];
  }
  window.points = { x, y };
  window.colours = { kind: 'category', values, palette: Array.from({ length: 100 }, (_, k) => k % 8) };
}"""
SHOW = "drawn(() => { map.show(points); map.colour(colours); })"
OTHER = "() => { map.show({ x: Uint16Array.of(1, 2), y: Uint16Array.of(1, 2) }); }"
RECOLOUR = "scale => drawn(() => map.colour(scale ? { ...colours, kind: 'scale', palette: 'cividis' } : colours))"
HOVERS = """async () => {
  const canvas = map.node.querySelector('.overlay'), box = canvas.getBoundingClientRect(), found = [];
  for (let i = 0; i < 300; i++) {
    const at = { clientX: box.left + box.width * (i * 7 % 60) / 60, clientY: box.top + box.height * i / 300 };
    if (i % 10 === 0) await new Promise(requestAnimationFrame);
    const began = performance.now();
    canvas.dispatchEvent(new PointerEvent('pointermove', { ...at, bubbles: true, pointerType: 'mouse' }));
    found.push(performance.now() - began);
  }
  return found;
}"""


@dataclass(frozen=True)
class Setting:
    points: tuple[int, ...] = (131_072, 1_000_000)
    rounds: int = 7
    width: int = 1440
    height: int = 1000
    device_scale: float = 1


def serve(route: Route) -> None:
    name = route.request.url.removeprefix(ORIGIN)
    if name:
        route.fulfill(path=STATIC / name, content_type="text/css" if name.endswith("css") else "text/javascript")
    else:
        route.fulfill(body=PAGE, content_type="text/html")


def line(what: str, times: list[float], budget_ms: float | None = None) -> None:
    word = "" if budget_ms is None else f", {'within' if median(times) <= budget_ms else 'OVER'} {budget_ms:.0f} ms"
    print(f"  {what}: {median(times):.1f} ms (slowest {max(times):.1f}; {len(times)} times){word}")


def drag(page: Page, zoom: float, least: float) -> None:
    """The middle of the map round in circles, a real mouse holding it."""
    page.evaluate("zoom => { map.fit(); map.mode('pan'); map.goTo(0, zoom); }", zoom)
    page.wait_for_timeout(500)
    page.mouse.move(600, 300)
    page.mouse.down()
    page.evaluate("times.view.length = 0")
    began, moves = time.perf_counter(), 0
    while time.perf_counter() - began < DRAG_S:
        moves += 1
        page.mouse.move(600 + 150 * math.sin(moves / 9), 300 + 90 * math.cos(moves / 9))
    seconds, drawn = time.perf_counter() - began, page.evaluate("times.view")
    share = page.evaluate("map.state.count / map.state.total")
    page.mouse.up()
    gaps = [b - a for a, b in zip(drawn, drawn[1:], strict=False)]
    rate = len(drawn) / seconds
    word = "within" if rate >= least else "UNDER"
    print(
        f"  dragged at zoom {zoom:g}: {rate:.0f} redraws/s, {share:.0%} of the points (longest gap {max(gaps):.0f} ms, "
        f"{moves / seconds:.0f} moves/s), {word} {least:.0f}/s"
    )


def lasso_ms(page: Page, rounds: int) -> list[float]:
    page.evaluate("() => { times.select.length = 0; map.fit(); map.mode('lasso'); }")
    page.wait_for_timeout(500)
    for turn in range(rounds):
        for step in range(60):
            angle, wide = 2 * math.pi * step / 60, 200 + 10 * turn + 25 * (step % 3)
            page.mouse.move(700 + wide * math.cos(angle), 300 + wide * math.sin(angle))
            if step == 0:
                page.mouse.down()
        page.mouse.up()
    return page.evaluate("times.select")


def measure(page: Page, n: int, rounds: int) -> None:
    shown_ms, redraws, hover_ms, lasso_budget_ms = BUDGETS.get(n, BUDGETS[max(BUDGETS)])
    page.evaluate(CLOUD, n)
    shown = []
    for _ in range(rounds + 1):
        page.evaluate(OTHER)
        page.wait_for_timeout(200)
        shown.append(page.evaluate(SHOW))
    print(f"{n} points:")
    print(f"  the first time {shown[0]:.0f} ms")
    line("from the arrays until drawn", shown[1:], shown_ms)
    for zoom in (1, 8):
        drag(page, zoom, redraws)
    page.evaluate("map.fit()")
    page.wait_for_timeout(500)
    line("pointer move until the nearest point is known", page.evaluate(HOVERS), hover_ms)
    line("end of a lasso until its points are known", lasso_ms(page, rounds), lasso_budget_ms)
    print(f"    ({page.evaluate('found')} points in the last one)")
    line("recoloured until drawn", [page.evaluate(RECOLOUR, bool(turn % 2)) for turn in range(2 * rounds)])


def main(setting: Setting) -> None:
    print(f"{setting} ({machine()})")
    print(f"load before:{subprocess.check_output(['uptime'], text=True).split('load average:')[1].rstrip()}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_chromium(), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        try:
            page = browser.new_context(
                viewport={"width": setting.width, "height": setting.height}, device_scale_factor=setting.device_scale
            ).new_page()
            page.route("**/*", serve)
            page.goto(ORIGIN)
            page.evaluate(MOUNT)
            for n in setting.points:
                measure(page, n, setting.rounds)
        finally:
            browser.close()


if __name__ == "__main__":
    main(tyro.cli(Setting, description=__doc__))
