"""The attention view when maps are stopped, fail, or belong to a model that is shown no more."""

from __future__ import annotations

from collections.abc import Callable

from browser.conftest import Watched
from browser.test_attention import command, head_tile, slide, tag
from playwright.sync_api import Page, Route, expect

Visit = Callable[..., Watched]
TINY = "random:vit_tiny_patch16_224"
OPEN = "async source => { (await import('/ui/opening.js')).openModel(source); }"


def held(page: Page) -> list[Route]:
    """From now on no maps arrive: what asks for them is kept here."""
    routes: list[Route] = []
    page.route("**/api/attention/*", lambda route: routes.append(route))
    return routes


def cancel(page: Page) -> None:
    page.locator(".att .load").get_by_role("button", name="Cancel").click()
    expect(page.locator(".att .load")).to_be_hidden()


def compute(page: Page) -> None:
    page.unroute("**/api/attention/*")
    page.get_by_role("button", name="Compute the maps").click()


def test_first_maps_that_were_stopped_can_be_computed_after_all(visit: Visit):
    page = visit("?img=coffee", ready=".att .load", routes={"**/api/attention/*": lambda route: None}).page
    cancel(page)
    expect(page.locator(".att .state")).to_contain_text("The maps of this picture were not computed.")
    expect(page.locator(".att .under")).to_contain_text("No maps")
    compute(page)
    expect(tag(page)).to_have_text("Block 3 · mean · from class token")
    expect(page.locator(".att .state")).to_be_hidden()


def test_maps_that_failed_are_asked_for_again(visit: Visit):
    broken = {"**/api/attention/*": lambda route: route.fulfill(body="another form of bytes")}
    page = visit("?img=coffee", ready="#tray-attention .note", routes=broken).page
    compute(page)
    expect(tag(page)).to_have_text("Block 3 · mean · from class token")
    expect(page.locator("#tray-attention .note")).to_have_count(0)


def test_stopping_the_maps_of_another_model_leaves_none_of_the_one_before(visit: Visit):
    page = visit("?img=coffee").page
    expect(head_tile(page, "Rollout")).to_contain_text("bit")
    held(page)
    page.evaluate(OPEN, TINY)
    expect(page.locator("button.model")).to_contain_text("vit_tiny_patch16_224", timeout=30_000)
    cancel(page)
    expect(page.locator(".att.empty")).to_have_count(1)
    expect(page.locator(".blocks button")).to_have_count(12)
    compute(page)
    expect(tag(page)).to_have_text("Block 12 · mean · from class token")
    assert f"--model {TINY} " in command(page) and "--size 224 " in command(page)


def test_a_rollout_that_is_wanted_comes_with_the_next_picture(visit: Visit):
    page = visit("?img=coffee").page
    expect(head_tile(page, "Rollout")).to_contain_text("bit")
    slide(page, "Rollout from block", 2)  # what is there is of another block, so pressing the tile asks
    routes = held(page)
    squares = page.locator("#tray-attention .pics button")
    squares.nth(0).click()
    head_tile(page, "Rollout").click()
    squares.nth(1).click()
    page.wait_for_timeout(500)
    for route in routes:
        route.continue_()
    page.unroute("**/api/attention/*")
    expect(tag(page)).to_have_text("Block 3 · rollout from block 2 · from class token")
    expect(page.locator(".att .load")).to_be_hidden()


def test_the_address_names_the_model_on_screen_when_that_of_a_link_is_not_there(visit: Visit):
    page = visit("?model=random:no_such_model&img=coffee&layer=1").page
    expect(tag(page)).to_have_text("Block 2 · mean · from class token")
    page.wait_for_function("!location.search.includes('no_such_model')")
    page.reload()
    expect(tag(page)).to_have_text("Block 2 · mean · from class token")
