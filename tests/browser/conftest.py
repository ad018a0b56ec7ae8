"""A real server process with a small bundle, and pages that may speak to nobody else."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from browser.small_bundle import write_small_bundle
from playwright.sync_api import Browser, Page, Route

ROOT = Path(__file__).resolve().parents[2]
START_S = 90


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return bound.getsockname()[1]


def state_of(url: str) -> str | None:
    try:
        with urlopen(f"{url}healthz", timeout=5) as answer:
            return json.load(answer)["state"]
    except OSError:
        return None


@dataclass
class Server:
    """`python app.py --offline` with its own places, in a process that can be killed and started again."""

    folder: Path
    arguments: list[str]
    port: int = field(default_factory=free_port)
    process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def start(self) -> None:
        """Returns when the model is ready."""
        command = [sys.executable, "app.py", "--port", str(self.port), "--offline", *self.arguments]
        own = {"GRADIO_TEMP_DIR": str(self.folder / "uploads"), "MEMSSL_HOME": str(self.home)}
        environment = os.environ | own | {"OMP_NUM_THREADS": "1", "HF_HOME": str(self.folder / "hub")}
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        end = time.monotonic() + START_S
        while (state := state_of(self.url)) != "ready":
            if self.process.poll() is not None or state == "failed" or time.monotonic() > end:
                pytest.fail(f"the server is {state} after {START_S} s:\n{(self.folder / 'log').read_text()}")
            time.sleep(0.2)

    def stop(self, how: int = signal.SIGINT) -> None:
        if self.process:
            self.process.send_signal(how)
            self.process.wait(20)
            self.process = None


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with a small bundle."""
    folder = tmp_path_factory.mktemp("server")
    bundle = write_small_bundle(folder / "small")
    running = Server(folder, ["--model", f"bundle:{bundle}"])
    try:
        running.start()
        yield running.url
    finally:
        running.stop()


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


@pytest.fixture
def visit(browser: Browser, server: str) -> Iterator[Callable[..., Watched]]:
    """Opens the page as a new visitor and waits for the maps of the first example; at the end all were quiet."""
    opened: list[Watched] = []

    def open_page(*, width: int = 1280, height: int = 900, **options) -> Watched:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        watched = watch(context.new_page())
        opened.append(watched)
        watched.page.goto(server)
        watched.page.locator(".att:not(.empty)").wait_for(timeout=30_000)
        return watched

    yield open_page
    for watched in opened:
        watched.page.context.close()
        watched.assert_quiet()
