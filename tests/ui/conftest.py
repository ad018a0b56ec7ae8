"""A page with a small bundle, opened in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from browser.answers import HERE, write_job
from browser.pictures import photo
from browser.small_bundle import write_small_bundle
from fastapi.testclient import TestClient

from memssl_core import jobs
from memssl_core.jobs import JobFolder
from ui.context import Context, Opened, open_source
from ui.page import build


@pytest.fixture(scope="session")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    folder: Path = write_small_bundle(tmp_path_factory.mktemp("bundles") / "small")
    return open_source(f"bundle:{folder}", "cpu")


@pytest.fixture(autouse=True)
def no_loop_of_a_browser() -> Iterator[None]:
    """Playwright keeps a loop running in the thread of the tests, also when others come after those of the browser."""
    running = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    yield
    asyncio._set_running_loop(running)


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs, bundles, runs and the Hub's cache of a test are its own, and the Hub is not asked."""
    monkeypatch.setenv("MEMSSL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def ready(opened: Opened) -> Future:
    opening: Future = Future()
    opening.set_result(opened)
    return opening


@pytest.fixture
def context(ready: Future) -> Context:
    return Context("small", ready)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos" / "trip"
    folder.mkdir(parents=True)
    for seed in range(3):
        photo(64, 48, seed).save(folder / f"{seed}.png")
    return folder.parent


@pytest.fixture
def client(ready: Future, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    return TestClient(build(ready, source="small", roots={"photos": photos}), base_url=HERE)


@pytest.fixture
def public(ready: Future, photos: Path) -> TestClient:
    return TestClient(build(ready, source="bundle:/srv/small", public=True, roots={"photos": photos}), base_url=HERE)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """What jobs were asked for; none is started."""
    asked: list[dict] = []

    def start(argv: list[str], **facts) -> JobFolder:
        asked.append({"argv": argv, **facts})
        return write_job(facts["kind"], facts=facts["facts"])

    monkeypatch.setattr(jobs, "start", start)
    return asked
