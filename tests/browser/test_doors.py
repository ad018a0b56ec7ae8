"""Any model in, a memory for it, and a server that may die meanwhile: what a person sees and does."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import skimage
from axe_playwright_python.sync_playwright import Axe
from browser.conftest import Server, Watched
from browser.pictures import photo, upload
from browser.small_bundle import write_small_bundle
from playwright.sync_api import Page, Route, expect

JOB_MS = 120_000  # a job imports torch first, at a low priority
TINY, RESNET = "random:vit_tiny_patch16_224", "random:resnet18"
Visit = Callable[..., Watched]


def copy_photographs(folder: Path, times: int) -> int:
    """scikit-image's own pictures, each several times; how many files that makes."""
    folder.mkdir(parents=True)
    data = Path(skimage.__file__).parent / "data"
    pictures = [path for path in sorted(data.iterdir()) if path.suffix in (".png", ".jpg")]
    for path in pictures:
        for number in range(times):
            shutil.copy(path, folder / f"{path.stem}-{number}{path.suffix}")
    return times * len(pictures)


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the root `photos`: `some` holds scikit-image's pictures, `many` ten times as many."""
    folder = tmp_path_factory.mktemp("doors")
    copy_photographs(folder / "photos" / "some", 1)
    copy_photographs(folder / "photos" / "many", 10)
    write_small_bundle(folder / "home" / "bundles" / "other", seed=1)
    bundle = write_small_bundle(folder / "small")
    places = ["--root", f"photos={folder / 'photos'}"]
    with Server(folder, ["--model", f"bundle:{bundle}", *places]) as server:
        yield server


@pytest.fixture
def visit(guest: Callable[..., Watched], doors: Server) -> Visit:
    """Opens the page as a new visitor, by an address if need be."""

    def open_page(query: str = "", **options) -> Watched:
        watched = guest(doors.url + query, **options)
        expect(chip(watched.page)).to_be_enabled(timeout=30_000)
        return watched

    return open_page


def chip(page: Page):
    return page.locator("button.model")


def type_source(page: Page, source: str) -> None:
    """Open the picker and ask for any source."""
    chip(page).click()
    page.get_by_label("Any source").fill(source)
    page.get_by_label("Any source").press("Enter")


def open_source(page: Page, source: str, name: str) -> None:
    type_source(page, source)
    expect(chip(page)).to_contain_text(name, timeout=30_000)
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(chip(page)).to_be_focused()


def give_memory(page: Page, folder: str, pictures: str, name: str) -> None:
    """From the Memory tab: choose the folder under the declared root, read what it takes, start."""
    page.get_by_role("tab", name="Memory").click()
    page.locator(".blank").get_by_role("button", name="Give it a memory").click()
    box = page.get_by_role("dialog", name="Give it a memory")
    box.get_by_role("button", name=folder, exact=True).click()
    expect(box.locator(".need")).to_contain_text(
        re.compile(rf"Pictures found{pictures}.*Time.*about.*about .* MB"), timeout=60_000
    )
    box.get_by_label("Name of the new bundle").fill(name)
    box.get_by_role("button", name="Give it a memory").click()
    expect(box).not_to_be_visible()
    expect(page.locator("button.jobs")).to_contain_text("1 job")


@pytest.mark.parametrize(
    ("source", "name", "bundle"), [(TINY, "vit_tiny_patch16_224", "tiny-some"), (RESNET, "resnet18", "resnet-some")]
)
def test_a_model_is_picked_given_a_memory_and_asked(visit: Visit, source: str, name: str, bundle: str):
    page = visit().page
    open_source(page, source, name)
    if source == RESNET:
        expect(page.locator("#attention .blank")).to_contain_text("feature map and no attention")
        expect(page.locator("#tray-attention")).to_be_visible()  # its PCA colours are of a picture
    else:
        expect(page.locator(".tag")).to_contain_text("Block 12", timeout=30_000)
        expect(page.locator(".heads button")).to_have_count(6)  # three heads, their mean and maximum, rollout
    give_memory(page, "some", "26", bundle)
    expect(chip(page)).to_contain_text(bundle, timeout=JOB_MS)  # by itself, for who started it
    expect(page.locator(".tile")).to_have_count(20, timeout=30_000)
    first = page.locator(".tile").first
    expect(first).to_have_attribute("aria-label", re.compile(r"Rank 1, score 1\.000"))  # astronaut.png itself
    expect(page.locator(".found .head .meta")).to_contain_text("embedding space")  # it has no head
    page.wait_for_function(
        "image => image.complete && image.naturalWidth > 0", arg=first.locator("img").element_handle()
    )
    page.locator("button.jobs").click()
    expect(page.locator("#jobs .job").first).to_contain_text("Finished")
    page.keyboard.press("Escape")
    page.reload()  # the address leads back to it
    expect(chip(page)).to_contain_text(bundle, timeout=30_000)


def test_a_job_outlives_the_server_and_is_found_again(visit: Visit, doors: Server):
    page = (watched := visit()).page
    open_source(page, TINY, "vit_tiny_patch16_224")
    give_memory(page, "many", "260", "tiny-many")
    page.locator("button.jobs").click()
    expect(page.locator("#jobs .job").first).to_contain_text(re.compile(r"[1-9]\d* of 260"), timeout=JOB_MS)
    doors.stop(signal.SIGKILL)
    page.goto("about:blank")
    doors.start()
    watched.complaints.clear()  # that the server was gone
    page.goto(doors.url)
    expect(page.locator("button.jobs")).to_contain_text(re.compile(r"\d jobs?"), timeout=30_000)
    page.locator("button.jobs").click()
    job = page.locator("#jobs .job").filter(has_text="tiny-many")
    expect(job).to_contain_text("Finished", timeout=JOB_MS)
    page.keyboard.press("Escape")
    expect(chip(page)).to_contain_text("tiny-many", timeout=30_000)
    page.get_by_role("tab", name="Memory").click()
    expect(page.locator(".tile")).to_have_count(20, timeout=30_000)


def test_uploaded_pictures_make_a_memory(visit: Visit, doors: Server):
    page = visit("?model=random:test_vit").page
    expect(chip(page)).to_contain_text("test_vit")
    chip(page).click()
    page.get_by_role("button", name="Give it a memory").click()
    box = page.get_by_role("dialog", name="Give it a memory")
    box.get_by_role("button", name="Upload").click()
    files = [upload(photo(64, 64, seed), f"{seed}.png", "PNG") for seed in range(3)]
    box.locator("input[type=file]").set_input_files(files)
    expect(box.locator(".need")).to_contain_text("Pictures found3", timeout=30_000)
    box.get_by_label("Name of the new bundle").fill("uploaded")
    box.get_by_role("button", name="Give it a memory").click()
    expect(chip(page)).to_contain_text("uploaded", timeout=JOB_MS)
    page.get_by_role("tab", name="Memory").click()
    expect(page.locator(".tile")).to_have_count(3, timeout=30_000)
    assert not list((doors.home / "uploads").iterdir())  # they went with the job


def test_a_model_that_does_not_come_leaves_the_old_one(visit: Visit):
    page = visit().page
    expect(page.locator(".tag")).to_contain_text("Block 3", timeout=30_000)
    for source, words in (
        ("random:no_such_model", "no_such_model"),
        ("timm:vit_small_patch16_224.dino", "not in its cache"),
        ("nonsense", "give one of"),
    ):
        type_source(page, source)
        expect(page.locator("#models .note")).to_contain_text(words, timeout=30_000)
        page.keyboard.press("Escape")
        expect(chip(page)).to_contain_text("small")
        expect(chip(page)).to_be_focused()
    assert "model=" not in page.url
    page.locator(".heads button").nth(2).click()
    expect(page.locator(".tag")).to_contain_text("Block 3 · head 1")


def test_a_model_on_its_way_shows_how_far_it_is_and_can_be_cancelled(visit: Visit):
    page = visit().page
    told = {"ticket": "t", "source": TINY, "state": "loading", "words": "model.safetensors, 31 of 87 MB"}
    cancelled: list[str] = []

    def far(route: Route) -> None:
        route.fulfill(json=told | {"done": 31, "total": 87, "elapsed_s": 2})

    def cancel(route: Route) -> None:
        cancelled.append(route.request.url)
        route.fulfill(json={})

    for pattern, answer in (("**/api/open", far), ("**/api/open/t", far), ("**/api/open/t/cancel", cancel)):
        page.route(pattern, answer)
    type_source(page, TINY)
    loading = page.locator("#models .loading")
    expect(loading).to_contain_text("31 of 87 MB")
    expect(loading.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "36")
    expect(loading).to_contain_text(re.compile(r"\d s"))
    page.get_by_role("button", name="Cancel").click()
    expect(loading).to_have_count(0)
    expect(chip(page)).to_contain_text("small")
    assert len(cancelled) == 1


def test_an_address_brings_its_model_or_says_why_not(visit: Visit):
    one, two = visit(f"?model={RESNET}").page, visit().page
    expect(chip(one)).to_contain_text("resnet18", timeout=30_000)
    expect(chip(two)).to_contain_text("small")  # each has their own
    two.goto(one.url)  # a shared link
    expect(chip(two)).to_contain_text("resnet18", timeout=30_000)
    broken = visit("?model=timm:vit_small_patch16_224.dino").page
    expect(broken.locator(".hdrnote .note")).to_contain_text("not in its cache", timeout=30_000)
    expect(chip(broken)).to_contain_text("small")
    expect(broken.locator(".tag")).to_contain_text("Block 3", timeout=30_000)
    broken.locator(".hdrnote").get_by_role("button", name="Close").click()
    expect(broken.locator(".hdrnote .note")).to_have_count(0)


def test_an_answer_of_the_old_model_is_never_shown_as_the_new_ones(visit: Visit):
    page = visit().page
    page.get_by_role("tab", name="Memory").click()
    expect(page.locator(".tile")).to_have_count(20, timeout=30_000)
    held: list[Route] = []
    page.route("**/api/neighbours/*", lambda route: route.continue_() if held else held.append(route))
    page.get_by_role("button", name="Embedding").click()  # asks the model small
    for _ in range(100):
        page.wait_for_timeout(50)
        if held:
            break
    (late,) = held
    chip(page).click()
    page.get_by_role("group", name="Models").get_by_role("button", name="other").click()
    expect(chip(page)).to_contain_text("other", timeout=30_000)
    card = page.locator(".nb .card")
    expect(card).to_contain_text("Modelother", timeout=30_000)
    late.continue_()
    page.wait_for_timeout(500)
    expect(card).to_contain_text("Modelother")
    handles = page.eval_on_selector_all(".tile img", "all => [...new Set(all.map(one => one.src.split('/').at(-2)))]")
    assert len(handles) == 1 and handles[0] not in late.request.url
    expect(page.locator(".found .head .meta")).to_contain_text("embedding space")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_dialogs_are_accessible_and_fit_a_phone(visit: Visit, theme: str):
    page = visit(width=390, height=844, color_scheme=theme).page

    def check(what: str) -> None:
        page.wait_for_timeout(200)
        assert page.evaluate("document.documentElement.scrollWidth") == 390, what
        box = page.locator("dialog[open]").first
        if box.count():
            assert box.evaluate("box => box.scrollWidth <= box.clientWidth"), what
        bad = [
            f"{one['id']}: {one['nodes'][0]['html'][:200]}"
            for one in Axe().run(page).response["violations"]
            if one["impact"] in ("serious", "critical")
        ]
        assert not bad, (what, bad)

    chip(page).press("Enter")
    expect(page.locator("#models .row").first).to_be_visible()
    check("models")
    page.get_by_role("button", name="Publish…").press("Enter")
    page.get_by_label("Repository on the Hub").fill("ada/small")
    page.keyboard.press("Enter")
    expect(page.locator("#publish .note")).to_contain_text("--offline", timeout=30_000)
    check("publish")
    page.keyboard.press("Escape")
    expect(chip(page)).to_be_focused()
    open_source(page, RESNET, "resnet18")
    check("a model without attention")
    page.get_by_role("tab", name="Memory").click()
    check("a model without memory")
    page.locator(".blank").get_by_role("button", name="Give it a memory").click()
    expect(page.locator("#remember .need")).to_contain_text("286", timeout=60_000)
    check("remember")
    page.keyboard.press("Escape")
    if page.locator("button.jobs").count() and page.locator("button.jobs").is_visible():
        page.locator("button.jobs").click()
        check("jobs")
