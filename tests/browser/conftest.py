"""A real server process with a small bundle, and pages that may speak to nobody else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser.map_board import MOUNT, Board
from browser.server import Server
from browser.small_bundle import write_small_bundle
from playwright.sync_api import Browser, BrowserContext, Page, Request, Route, expect

Answer = Callable[[Route], None]
Options = tuple[tuple[str, Any], ...]
SHOWN = ".mapstage > p.meta:has-text('slots shown')"
expect.set_options(timeout=15_000)  # a busy machine may take its time; what is right comes at once elsewhere


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with a small bundle."""
    folder = tmp_path_factory.mktemp("server")
    bundle = write_small_bundle(folder / "small")
    with Server(folder, ["--model", f"bundle:{bundle}"]) as running:
        yield running.url


@dataclass
class Watched:
    """What a page has asked for and complained of since it was opened."""

    page: Page
    requests: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def assert_quiet(self) -> None:
        assert not self.left, f"requests that would leave this machine: {self.left}"
        assert not self.complaints, f"the browser's console says: {self.complaints}"


def watch(page: Page) -> Watched:
    """Note what is asked for, of this machine or of another one, and the console's errors and warnings."""
    watched = Watched(page)

    def asked(request: Request) -> None:
        watched.requests.append(request.url)
        if urlsplit(request.url).hostname not in ("127.0.0.1", None):
            watched.left.append(request.url)

    page.on("request", asked)
    page.on("pageerror", lambda error: watched.complaints.append(str(error)))
    page.on("console", lambda said: watched.complaints.append(said.text) if said.type in ("error", "warning") else None)
    return watched


def assert_accessible(page: Page) -> None:
    bad = [
        f"{one['id']}: {one['nodes'][0]['html'][:200]}"
        for one in Axe().run(page).response["violations"]
        if one["impact"] in ("serious", "critical")
    ]
    assert not bad, bad


def watch_jumps(page: Page) -> None:
    """`window.jumps` is from now on the sum of what has moved without being asked."""
    page.evaluate(
        """() => { window.jumps = 0; new PerformanceObserver(list => { for (const e of list.getEntries())
           if (!e.hadRecentInput) window.jumps += e.value; }).observe({type: 'layout-shift', buffered: false}); }"""
    )


@pytest.fixture(scope="session")
def left_contexts() -> dict[Options, list[BrowserContext]]:
    """Contexts that visitors have left, by their options: a warm cache opens the page in half the time."""
    return defaultdict(list)


@pytest.fixture
def guest(browser: Browser, left_contexts: dict[Options, list[BrowserContext]]) -> Iterator[Callable[..., Watched]]:
    """Opens an address as a new visitor; at the end all were quiet.

    `routes`: what is answered in place of the server. `apart`: in a context that nobody gets later, as for a page whose
    clock is changed.
    """
    opened: list[tuple[Watched, list[BrowserContext] | None]] = []

    def open_page(
        url: str,
        *,
        width: int = 1280,
        height: int = 900,
        color_scheme: Literal["light", "dark"] = "light",
        routes: Mapping[str, Answer] | None = None,
        apart: bool = False,
        **options,
    ) -> Watched:
        left = left_contexts[tuple(sorted(options.items()))]
        context = browser.new_context(**options) if apart or not left else left.pop()
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=color_scheme)
        watched = watch(page)
        opened.append((watched, None if apart else left))
        for pattern, answer in (routes or {}).items():
            page.route(pattern, answer)
        page.goto(url)
        return watched

    yield open_page
    for watched, left in opened:
        context = watched.page.context
        if left is None or watched.page.is_closed():
            context.close()
        else:
            forget(watched.page)
            left.append(context)
    for watched, _ in opened:
        watched.assert_quiet()


def forget(page: Page) -> None:
    """Leave nothing of a visitor in the context but the cache."""
    page.unroute_all(behavior="ignoreErrors")
    page.evaluate("() => { try { localStorage.clear(); } catch { /* a page of no server */ } }")
    context = page.context
    context.clear_cookies()
    context.clear_permissions()
    for one in context.pages:
        one.close()


@pytest.fixture
def visit(guest: Callable[..., Watched], server: str) -> Callable[..., Watched]:
    """Opens the page of the small bundle as a new visitor and waits for the first result."""

    def open_page(path: str = "", *, ready: str = ".att:not(.empty)", **options) -> Watched:
        watched = guest(f"{server}{path}", **options)
        watched.page.locator(ready).wait_for(timeout=30_000)
        return watched

    return open_page


@pytest.fixture
def panel(visit: Callable[..., Watched]) -> Callable[..., Watched]:
    """The panel Map, when the tray's picture is on it."""

    def open_panel(query: str = "", **options) -> Watched:
        watched = visit(f"?tab=memory&panel=map{query}", ready=SHOWN, **options)
        expect(watched.page.locator(SHOWN)).to_contain_text("the cross is the picture above")
        return watched

    return open_panel


@pytest.fixture
def tab(visit: Callable[..., Watched]) -> Callable[..., Watched]:
    """The tab Compare at the state that the query names; with another model, the maps of both come later."""

    def open_tab(query: str = "", **options) -> Watched:
        return visit(f"?tab=compare{query}", ready=".cmp .models:visible", **options)

    return open_tab


@pytest.fixture
def board(guest: Callable[..., Watched], server: str) -> Callable[..., Board]:
    def mount(*, width: int = 800, height: int = 600, dark: bool = False, **options) -> Board:
        page = guest(f"{server}healthz", width=width, height=height, **options).page  # same origin, without the app
        page.evaluate(MOUNT)
        page.evaluate("dark => document.body.classList.toggle('dark', dark)", dark)
        return Board(page)

    return mount


@pytest.fixture(scope="module")
def functions(browser: Browser, server: str) -> Iterator[Page]:
    """One page for all tests of pure functions."""
    page = browser.new_page()
    page.goto(f"{server}healthz")
    page.evaluate(MOUNT)
    yield page
    page.close()
