"""What the benchmarks of the page share: a browser, a server that ends with them, a figure beside its budget."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from playwright.sync_api import Browser, Page, Playwright

from tests.browser.server import Server
from tests.conftest import find_chromium

# milliseconds from the call to the frame after `read` tells something else
UNTIL_TOLD = """async ([call, read]) => {
  const [act, told] = [eval(call), eval(read)], before = told(), began = performance.now();
  act();
  while (told() === before || !told()) await new Promise(requestAnimationFrame);
  await new Promise(requestAnimationFrame);
  return performance.now() - began;
}"""


@contextmanager
def chromium(playwright: Playwright) -> Iterator[Browser]:
    """Headless and without a GPU."""
    browser = playwright.chromium.launch(
        executable_path=find_chromium(), args=["--no-sandbox", "--disable-dev-shm-usage"]
    )
    try:
        yield browser
    finally:
        browser.close()


@contextmanager
def serving(folder: Path, model: str) -> Iterator[str]:
    """The address of an app of its own, on two threads, with this model open and nothing computed."""
    folder.mkdir(parents=True, exist_ok=True)
    with Server(folder, ["--model", model], threads=2) as server:
        yield server.url


def settle(page: Page) -> None:
    """Until nothing is being computed any more."""
    page.wait_for_timeout(400)
    page.locator(".load:visible").wait_for(state="hidden")


def line(what: str, times: list[float], budget_ms: float | None = None) -> None:
    word = "" if budget_ms is None else f", {'within' if median(times) <= budget_ms else 'OVER'} {budget_ms:.0f} ms"
    print(f"  {what}: {median(times):.1f} ms (slowest {max(times):.1f}; {len(times)} times){word}")
