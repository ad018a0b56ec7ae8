"""Settings of the whole suite: one thread, no network, repeatable examples, Debian's Chromium for the browser tests."""

from __future__ import annotations

import os

# Read when torch, gradio and huggingface_hub are first imported, so before anything else.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_OFFLINE"] = "1"

import shutil

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "suite", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")

# The first one has the same engine without a browser's own windows, which halves the time of a test.
CHROMIUM_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str | None:
    """The path of an installed Chromium or Chrome."""
    return next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args: dict) -> dict:
    """How pytest-playwright starts the browser. Without one, browser tests are skipped here and fail in CI."""
    executable = find_chromium()
    if executable is None:
        names = ", ".join(CHROMIUM_NAMES)
        reason = f"browser tests need one of {names}; on Debian: apt-get install {CHROMIUM_NAMES[0]}"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    arguments = ["--no-sandbox", "--disable-dev-shm-usage"]  # for root and small /dev/shm, as in a container
    arguments += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]  # other machines are out of reach
    return {**browser_type_launch_args, "executable_path": executable, "args": arguments}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests last: Playwright keeps an event loop running, and asyncio.run refuses to work beside it."""
    items.sort(key=lambda item: "playwright" in getattr(item, "fixturenames", ()))
