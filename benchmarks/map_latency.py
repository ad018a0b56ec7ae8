"""How fast is the map of very many points, in the real page? `python benchmarks/app_latency.py --parts map` runs this.

A bundle with a stored map is opened by an app of its own, at first and then as one that has shown it before. The page
has its tab Memory open and has computed nothing of the map. From the click on the panel until the points are there in
their colours, with the bytes that travelled and where the time went; redraws while a real mouse drags; a pointer move
until its card is there; the end of a real lasso until its slots are told; another colouring until it is drawn. The
browser's clock ticks every 0.1 ms.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from big_memory import write_big_bundle
from page_timing import line, serving, settle
from playwright.sync_api import Browser, Page, Request

DRAG_S = 3
ZOOM_8_PX = -900  # of a wheel: 300 px double the zoom
PROFILE_US = 200
LISTED = 12  # functions
CLASS, OTHERS = "class", ("cluster", "age")  # colourings, the first as it comes


@dataclass(frozen=True)
class Budget:
    """DESIGN.md 12; None where it names none."""

    drawn_ms: float
    redraws_per_s: float
    payload_mb: float | None = None
    lasso_ms: float | None = None
    hover_ms: float = 2


BUDGETS = {131_072: Budget(500, 45, payload_mb=0.8, lasso_ms=50), 1_000_000: Budget(2000, 20)}
# Before the page's own scripts: when the map is drawn, when at last in colour, when buttons were clicked and released
WATCH = """(() => {
  const seen = window.seen = { draws: [], clicked: 0, lifted: 0, told: [] };
  let coloured;
  seen.coloured = new Promise(done => { coloured = done; });
  addEventListener('click', event => { seen.clicked = event.timeStamp; }, true);
  addEventListener('pointerup', event => { seen.lifted = event.timeStamp; }, true);
  const hasColour = ({ data }) => { // the channels of the grey ones differ by 19
    for (let i = 0; i < data.length; i += 4) {
      const [least, most] = [Math.min(data[i], data[i + 1], data[i + 2]), Math.max(data[i], data[i + 1], data[i + 2])];
      if (most - least > 40) return true;
    }
    return false;
  };
  const put = CanvasRenderingContext2D.prototype.putImageData;
  CanvasRenderingContext2D.prototype.putImageData = function (image, ...at) {
    put.call(this, image, ...at);
    if (!(this.canvas instanceof HTMLCanvasElement && this.canvas.closest('.mapbox'))) return;
    seen.draws.push(performance.now());
    if (coloured && hasColour(image)) {
      const done = coloured;
      coloured = null;
      requestAnimationFrame(() => done(performance.now())); // the next frame: this one is on screen
    }
  };
})()"""
OPENED = """async () => {
  const drawn = await seen.coloured;
  const requests = performance.getEntriesByType('resource').filter(({ name }) => name.includes('/api/map/'));
  return [drawn - seen.clicked, requests.map(({ name, startTime, requestStart, responseStart, responseEnd }) =>
    [name.split('/').at(-1), startTime - seen.clicked, responseStart - requestStart, responseEnd - responseStart])];
}"""
HOVERS = """async () => {
  const canvas = document.querySelector('.mapbox .overlay'), card = document.querySelector('.hovercard');
  const box = canvas.getBoundingClientRect(), times = [];
  for (let i = 0; i < 120; i++) {
    const [x, y] = [0.1 + 0.8 * (i * 7 % 60) / 60, i / 120];
    const at = { clientX: box.left + box.width * x, clientY: box.top + box.height * y };
    await new Promise(requestAnimationFrame);
    const began = performance.now();
    canvas.dispatchEvent(new PointerEvent('pointermove', { ...at, bubbles: true, pointerType: 'mouse' }));
    if (!card.hidden) times.push(performance.now() - began);
  }
  canvas.dispatchEvent(new PointerEvent('pointerleave', { pointerType: 'mouse' }));
  return times;
}"""
LISTEN = """() => {
  const section = document.querySelector('section[aria-label=Selection]');
  new MutationObserver(() => seen.told.push(performance.now())).observe(section, { childList: true });
}"""
LASSO = """async () => { // after the button was released: [told after, drawn after] ms
  while (seen.told.at(-1) === undefined || seen.told.at(-1) < seen.lifted) await new Promise(requestAnimationFrame);
  while (seen.draws.at(-1) < seen.told.at(-1)) await new Promise(requestAnimationFrame);
  const next = times => times.find(time => time > seen.lifted) - seen.lifted;
  return [next(seen.told), seen.draws.find(time => time > seen.told.at(-1)) - seen.lifted];
}"""
RECOLOUR = """async ([chooser, name]) => {
  const select = document.querySelector(chooser);
  await new Promise(requestAnimationFrame);
  const [began, before] = [performance.now(), seen.draws.length];
  select.value = name;
  select.dispatchEvent(new Event('change'));
  while (seen.draws.length === before) await new Promise(requestAnimationFrame);
  await new Promise(requestAnimationFrame);
  return performance.now() - began;
}"""
COLOUR_BY = "#map select[aria-label='Colour by']"


@dataclass(frozen=True)
class Opening:
    drawn_ms: float
    requests: list[tuple[str, float, float, float]]
    """what was asked for, when, how long until the answer began, and until it was complete; ms"""
    payload_mb: float
    """points and one colouring, with the headers of their answers"""


def measure_map(browser: Browser, folder: Path, points: int, rounds: int, starts: int, device_scale: float) -> None:
    budget = BUDGETS.get(points, BUDGETS[max(BUDGETS)])
    print(f"map of {points} points (load before: {os.getloadavg()[0]:.1f}):")
    source = f"bundle:{write_big_bundle(folder / 'big', points)}"
    first: list[Opening] = []
    for start in range(starts - 1):
        with serving(folder / f"server-{start}", source) as url:
            first.append(visit(browser, url, device_scale))
    with serving(folder / "server", source) as url:
        first.append(visit(browser, url, device_scale))
        again = [visit(browser, url, device_scale) for _ in range(rounds)]
        tell_openings("the server's first time", first, budget)
        tell_openings("shown to others before", again, budget)
        payload = max(one.payload_mb for one in first + again)
        word = "" if budget.payload_mb is None else verdict(payload <= budget.payload_mb, f"{budget.payload_mb} MB")
        print(f"  points and their classes on the wire: {payload:.3f} MB{word}")
        page = waiting(browser, url, device_scale)
        tell_functions("opening it", page, lambda: open_panel(page))
        measure_moves(page, budget, rounds)
        page.context.close()


def verdict(is_within: bool, budget: str, over: str = "OVER") -> str:
    return f", {'within' if is_within else over} {budget}"


# ---- opening the panel


def waiting(browser: Browser, url: str, device_scale: float) -> Page:
    """A new visitor, nothing cached, whose tab Memory shows the neighbours of a picture."""
    page = browser.new_context(viewport={"width": 1440, "height": 1000}, device_scale_factor=device_scale).new_page()
    page.add_init_script(WATCH)
    page.goto(f"{url}?tab=memory")
    page.locator(".tile").first.wait_for(timeout=60_000)
    settle(page)
    return page


def visit(browser: Browser, url: str, device_scale: float) -> Opening:
    page = waiting(browser, url, device_scale)
    try:
        return open_panel(page)
    finally:
        page.context.close()


def open_panel(page: Page) -> Opening:
    finished: list[Request] = []
    page.on("requestfinished", lambda request: finished.append(request))
    page.get_by_role("button", name="Map", exact=True).click()
    drawn_ms, requests = page.evaluate(OPENED)
    page.locator(".mapstage > .meta:has-text('the cross is')").wait_for()  # the tray's picture is placed: all is done
    carried = [one.sizes() for one in finished if one.url.endswith("/points") or one.url.endswith(f"/{CLASS}")]
    payload = sum(sizes["responseBodySize"] + sizes["responseHeadersSize"] for sizes in carried)
    return Opening(drawn_ms, [tuple(one) for one in requests], payload / 1e6)


def tell_openings(when: str, openings: list[Opening], budget: Budget) -> None:
    line(f"click until the points are there in colour, {when}", [one.drawn_ms for one in openings], budget.drawn_ms)
    for steps in zip(*(one.requests for one in openings), strict=False):
        asked, answered, arrived = (median(step[i] for step in steps) for i in (1, 2, 3))
        name = "facts" if steps[0][0] == "memory" else steps[0][0]
        print(f"    {name}: asked for at {asked:.0f} ms, the server took {answered:.0f}, the bytes {arrived:.0f}")


def tell_functions(what: str, page: Page, act: Callable[[], object]) -> None:
    """Which of the page's own functions take the browser's time, without what they call."""
    session = page.context.new_cdp_session(page)
    session.send("Profiler.enable")
    session.send("Profiler.setSamplingInterval", {"interval": PROFILE_US})
    session.send("Profiler.start")
    act()
    found: dict[str, Any] = session.send("Profiler.stop")["profile"]
    session.detach()
    frames = {node["id"]: node["callFrame"] for node in found["nodes"]}
    times: Counter[str] = Counter()
    for node, after_us in zip(found["samples"], found["timeDeltas"], strict=True):
        name, script = frames[node]["functionName"] or "(nameless)", frames[node]["url"].rpartition("/")[2]
        if "/ui/" in frames[node]["url"] or name in ("(program)", "(garbage collector)"):
            times[f"{name} {script}:{frames[node]['lineNumber'] + 1}" if script else name] += after_us
    told = ", ".join(f"{name} {spent / 1000:.0f}" for name, spent in times.most_common(LISTED))
    print(f"  the browser's time for {what}, profiled, ms: {told}")


# ---- once it is there


def measure_moves(page: Page, budget: Budget, rounds: int) -> None:
    page.locator(".mapbox").scroll_into_view_if_needed()
    for zoom, wheel_px in ((1, 0), (8, ZOOM_8_PX)):
        drag(page, zoom, wheel_px, budget.redraws_per_s)
    page.get_by_role("button", name="Show all").click()
    page.wait_for_timeout(500)
    line("pointer move until its slot's card is there", page.evaluate(HOVERS), budget.hover_ms)
    told, drawn = lassos(page, rounds)
    line("end of a lasso until its slots are told", told, budget.lasso_ms)
    line("end of a lasso until the others are grey", drawn)
    print(f"    ({page.locator('section[aria-label=Selection] h2').inner_text()} the last one)")
    page.get_by_role("button", name="Clear").click()
    page.wait_for_timeout(300)
    line("another colouring until drawn, fetched", [page.evaluate(RECOLOUR, [COLOUR_BY, name]) for name in OTHERS])
    known = [page.evaluate(RECOLOUR, [COLOUR_BY, name]) for _ in range(rounds) for name in (CLASS, *OTHERS)]
    line("another colouring until drawn, known", known)


def middle_of_map(page: Page) -> tuple[float, float, float]:
    """x, y and the shorter half side of what is on screen of it, px."""
    box, window = page.locator(".mapbox").bounding_box(), page.viewport_size
    assert box and window
    top, bottom = max(box["y"], 0), min(box["y"] + box["height"], window["height"])
    return box["x"] + box["width"] / 2, (top + bottom) / 2, min(box["width"], bottom - top) / 2


def drag(page: Page, zoom: float, wheel_px: float, least: float) -> None:
    """The middle of the map along a lying eight, a real mouse holding it."""
    page.get_by_role("button", name="Show all").click()
    x, y, reach = middle_of_map(page)
    page.mouse.move(x, y)
    if wheel_px:
        page.mouse.wheel(0, wheel_px)
    page.wait_for_timeout(500)
    page.mouse.down()
    page.evaluate("() => { seen.draws.length = 0; }")
    began, moves = time.perf_counter(), 0
    while time.perf_counter() - began < DRAG_S:
        moves += 1
        page.mouse.move(x + 0.5 * reach * math.sin(moves / 9), y + 0.3 * reach * math.sin(moves / 4.5))
    seconds, drawn = time.perf_counter() - began, page.evaluate("seen.draws")
    part = page.locator(".mapbox .told")
    shown = part.inner_text() if part.is_visible() else "all points"
    page.mouse.up()
    gaps = [b - a for a, b in zip(drawn, drawn[1:], strict=False)]
    rate = len(drawn) / seconds
    told = f"longest gap {max(gaps):.0f} ms; {moves / seconds:.0f} moves/s; {shown}"
    word = verdict(rate >= least, f"{least:.0f}/s", "UNDER")
    print(f"  dragged at zoom {zoom:g}: {rate:.0f} redraws/s ({told}){word}")


def lassos(page: Page, rounds: int) -> tuple[list[float], list[float]]:
    """ms until the slots are told, and until the map is drawn with them."""
    page.get_by_role("button", name="Lasso", exact=True).click()
    page.evaluate(LISTEN)
    x, y, reach = middle_of_map(page)
    found = []
    for turn in range(rounds):
        page.wait_for_timeout(300)
        for step in range(60):
            angle, wide = 2 * math.pi * step / 60, reach * (0.5 + 0.05 * (turn % 5) + 0.05 * (step % 3))
            page.mouse.move(x + wide * math.cos(angle), y + wide * math.sin(angle))
            if step == 0:
                page.mouse.down()
        page.mouse.up()
        found.append(page.evaluate(LASSO))
    told, drawn = zip(*found, strict=True)
    return list(told), list(drawn)
