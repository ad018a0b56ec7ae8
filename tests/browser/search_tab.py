"""The tab Search in tests: a folder of photographs to be made into a gallery, and what stands on the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

from browser.pictures import photo
from PIL import Image
from playwright.sync_api import Locator, Page, Route, expect

from ui.examples import examples

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "flower", "rocket")
PIECES = 12  # of each
HOSTILE = "<img src=x onerror=alert(1)>.png"


def example(name: str) -> Image.Image:
    return Image.open(io.BytesIO(examples()[name].read())).convert("RGB")


def write_photographs(root: Path) -> dict[str, str]:
    """Folders named for what is on them, with pieces of photographs, landscape and portrait by turns.

    One file is there twice, saved again as a JPEG too; one has a hostile name; two cannot be read.

    Returns: path -> class of all that can be read.
    """
    classes = {}
    for name in PHOTOGRAPHS:
        whole = example(name)
        width, height = whole.size
        (root / name).mkdir(parents=True)
        for place in range(PIECES):
            w, tall = (width // 3, height // 2) if place % 2 else (width // 2, height // 3)
            x, y = (width - w) * place // (PIECES - 1), (height - tall) * (5 * place % PIECES) // (PIECES - 1)
            piece = whole.crop((x, y, x + w, y + tall))
            piece.thumbnail((96, 96))
            piece.save(root / name / f"{place}.png")
            classes[f"{name}/{place}.png"] = name
    (root / "chelsea" / "whole.png").write_bytes(examples()["chelsea"].read())
    (root / "coffee" / "the cat again.png").write_bytes(examples()["chelsea"].read())
    example("chelsea").save(root / "chelsea" / "saved again.jpg", quality=85)
    photo(96, 128).save(root / "rocket" / HOSTILE)
    whole_file = (root / "chelsea" / "saved again.jpg").read_bytes()
    (root / "coffee" / "cut.jpg").write_bytes(whole_file[: len(whole_file) // 2])
    (root / "coffee" / "<b>words<b>.png").write_bytes(b"no picture")
    more = {"chelsea/whole.png": "chelsea", "coffee/the cat again.png": "coffee", f"rocket/{HOSTILE}": "rocket"}
    return classes | more | {"chelsea/saved again.jpg": "chelsea"}


def tiles(page: Page) -> Locator:
    return page.locator(".results .hits .tile")


def settled(page: Page, heading: str | re.Pattern = "most alike") -> None:
    expect(page.locator(".results h2")).to_contain_text(heading)
    expect(page.locator(".results")).to_have_attribute("aria-busy", "false")


def searched(page: Page, act: Callable[[], object]) -> None:
    """Do what asks for other results, and wait until they are there."""
    with page.expect_response(lambda answer: "/api/found/" in answer.url or "/oddities" in answer.url):
        act()
    settled(page, re.compile("most alike|Oddest|only one"))


def paths(page: Page) -> list[str]:
    return [words.split(", ", 3)[-1] for words in (one.get_attribute("aria-label") or "" for one in tiles(page).all())]


def shown(page: Page) -> Locator:
    return page.locator("#search .detail")


def field(page: Page, label: str) -> Locator:
    return page.locator(".asking").get_by_label(label, exact=True)


def colours(canvas: Locator) -> int:
    return canvas.evaluate(
        "canvas => new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size"
    )


def changed(**facts: object) -> Callable[[Route], None]:
    """Answers as the server does, but for some facts of the answer, or of each gallery in it."""

    def answer(route: Route) -> None:
        told = route.fetch().json()
        for one in told.get("galleries", [told]):
            one.update(facts)
        route.fulfill(json=told)

    return answer
