"""A page with a small bundle, opened in this process."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import pytest
from browser.small_bundle import write_small_bundle

from ui.context import Context, Opened, open_source


@pytest.fixture(scope="session")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    folder: Path = write_small_bundle(tmp_path_factory.mktemp("bundles") / "small")
    return open_source(f"bundle:{folder}", "cpu")


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
