"""The tab Compare in tests: choosing what stands beside the shown model, and what is on the page."""

from __future__ import annotations

import io
from base64 import b64decode
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import numpy as np
from browser.conftest import Watched
from browser.pictures import Upload, upload
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from memssl_core.data.images import decode_image
from ui.examples import examples

TRAY = "#tray-compare"
OTHER, SEED, RESNET = "random:test_vit", "random:test_vit@1", "random:test_resnet"
PROBE_MS = 90_000
Visit = Callable[..., Watched]


def photograph(name: str, box: tuple[int, int, int, int]) -> Upload:
    return upload(decode_image(examples()[name].read()).crop(box), f"{name}.jpg", "JPEG")


def link(page: Page) -> dict[str, str]:
    page.wait_for_timeout(300)  # the address follows at a distance
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def choose(page: Page, source: str) -> None:
    page.get_by_label("Compare with").fill(source)
    page.get_by_label("Compare with").press("Enter")


def settled(page: Page, *sides: str) -> None:
    """Until the maps of these sides are there."""
    for side in sides or ("a", "b"):
        expect(page.locator(f".maps2 .stage.{side}:not(.empty)")).to_have_count(1, timeout=30_000)
    page.wait_for_timeout(300)  # what is asked a moment later
    expect(page.locator(".maps2 .load:visible")).to_have_count(0)


def own_source(page: Page) -> str:
    return page.evaluate("async () => (await (await fetch('api/facts')).json()).model.source")


def overlap(page: Page) -> str:
    expect(page.locator(".common b")).not_to_be_empty()
    return page.locator(".common b").inner_text()


def stage(page: Page, side: str) -> Locator:
    return page.locator(f".maps2 .stage.{side} .overlay")


def pixels(page: Page, side: str = "a") -> np.ndarray:
    """uint8 [height, width, 4] of the map as it is drawn."""
    address = stage(page, side).evaluate("it => it.toDataURL('image/png')")
    return np.asarray(Image.open(io.BytesIO(b64decode(address.partition(",")[2]))))


def tag(page: Page, side: str) -> Locator:
    return page.locator(f".maps2 .stage.{side} .tag:not(.right)")


def live(page: Page) -> Locator:
    return page.locator(".both > .quiet-live")


def quiet_requests(watched: Watched, since: int) -> list[str]:
    return [url for url in watched.requests[since:] if "heartbeat" not in url]
