"""A real server process with a small bundle, and pages that may speak to nobody else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser.map_board import MOUNT, Board
from browser.server import Server
from browser.small_bundle import write_small_bundle
from playwright.sync_api import Browser, Page, Route, expect

Answer = Callable[[Route], None]
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
    """Abort every request to another host, and note it with the console's errors and warnings."""
    watched = Watched(page)

    def gate(route: Route) -> None:
        if urlsplit(route.request.url).hostname in ("127.0.0.1", None):
            route.continue_()
        else:
            watched.left.append(route.request.url)
            route.abort()

    page.route("**/*", gate)
    page.on("request", lambda request: watched.requests.append(request.url))
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


@pytest.fixture
def guest(browser: Browser) -> Iterator[Callable[..., Watched]]:
    """Opens an address as a new visitor; at the end all were quiet. `routes`: what is answered in place of it."""
    opened: list[Watched] = []

    def open_page(
        url: str, *, width: int = 1280, height: int = 900, routes: Mapping[str, Answer] | None = None, **options
    ) -> Watched:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        watched = watch(context.new_page())
        opened.append(watched)
        for pattern, answer in (routes or {}).items():
            watched.page.route(pattern, answer)
        watched.page.goto(url)
        return watched

    yield open_page
    for watched in opened:
        watched.page.context.close()
        watched.assert_quiet()


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
