"""A small opened bundle, pictures of several shapes, and a workbench."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bundle.making import small_bundle
from data.painting import paint
from PIL import Image

from analysis import Workbench
from memssl_core.sources import open_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "small"
    small_bundle().save(folder)
    return folder


@pytest.fixture(scope="session")
def workbench(folder) -> Workbench:
    return Workbench(open_model(f"bundle:{folder}"))


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    """130 × 90 pixels of coloured noise blobs."""
    small = np.random.default_rng(1).integers(0, 256, (9, 13, 3), np.uint8)
    return Image.fromarray(small).resize((130, 90), Image.Resampling.BICUBIC)


@pytest.fixture(scope="session")
def picture_file(picture, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "blobs.png"
    picture.save(path)
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where galleries lie: a place of the test's own."""
    monkeypatch.setenv("MEMSSL_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "galleries"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five pictures in two class folders."""
    paint(tmp_path / "photos", "cat/0.png", "cat/1.png", "dog/2.png", "dog/3.png", "dog/4.png")
    return tmp_path / "photos"
