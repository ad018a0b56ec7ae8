"""The list of runs and the form of a new one: what a run takes is told before it starts, what cannot run is refused."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from urllib.parse import parse_qs, urlsplit

import pytest
from browser.conftest import Watched, assert_accessible, watch_jumps
from browser.pictures import photo
from browser.server import Server
from browser.small_bundle import write_small_bundle
from playwright.sync_api import Locator, Page, Route, expect

from memssl_core import jobs
from memssl_core.config import PRESETS

SMOKE = PRESETS["smoke"]
JOB_MS = 120_000  # a job imports torch first, at a low priority
PICTURES, STEPS = 48, 6
HOSTILE = "<img src=x onerror=alert(1)>"
Visit = Callable[..., Watched]


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the root `photos`: `some` has 48 pictures, `three` three, `empty` none."""
    folder = tmp_path_factory.mktemp("train")
    photos = folder / "photos"
    for name, count in (("some", PICTURES), ("three", 3), ("empty", 0)):
        (photos / name).mkdir(parents=True)
        for seed in range(count):
            photo(64, 64, seed).save(photos / name / f"{seed:02d}.png")
    bundle = write_small_bundle(folder / "small")
    places = ["--root", f"photos={photos}", "--runs", str(folder / "runs")]
    with Server(folder, ["--model", f"bundle:{bundle}", *places]) as server:
        yield server


@pytest.fixture
def visit(guest: Callable[..., Watched], training: Server) -> Visit:
    """Opens the tab as a new visitor. `runs`: what the list is told instead of the truth."""

    def open_tab(query: str = "", *, runs: Callable[[Route], None] | None = None, **options) -> Watched:
        nothing = lambda route: route.fulfill(json={"error": {"title": "", "text": ""}})
        routes = {"**/api/runs?**": runs, "**/api/runs/**": nothing} if runs else None
        return guest(f"{training.url}?tab=train{query}", routes=routes, **options)

    return open_tab


def row(page: Page, name: str) -> Locator:
    return page.locator(".runlist .row").filter(has_text=name)


def figures(page: Page) -> dict[str, str]:
    names, values = (page.locator(f".trainform .need {tag}").all_inner_texts() for tag in ("dt", "dd"))
    return dict(zip(names, values, strict=True))


def field(page: Page, label: str) -> Locator:
    return page.locator(".trainform").get_by_label(label, exact=True)


def choose(page: Page, folder: str) -> None:
    """From the root's list of folders, which is opened first."""
    root = page.locator(".trainform .crumbs").get_by_role("button", name=re.compile("photos"))
    if root.count():
        root.press("Enter")
    page.locator(".trainform .folders").get_by_role("button", name=folder, exact=True).press("Enter")
    expect(page.locator(".trainform .crumbs b")).to_have_text(folder)


def test_a_run_is_planned_measured_started_and_copied_by_keyboard(visit: Visit, training: Server):
    page = visit().page
    expect(page.locator("#train .blank")).to_contain_text("No training has been started here yet.")
    page.locator("#train .blank").get_by_role("button", name="New run").press("Enter")
    expect(page.get_by_role("heading", name="New run")).to_be_focused()
    choose(page, "some")
    field(page, "Steps").fill(str(STEPS))
    expect(page.locator(".trainform .need").first).to_contain_text(f"Steps{STEPS}, ")
    turns = STEPS * SMOKE.batch_size / SMOKE.memory_slots
    told = figures(page)
    assert told["Pictures"] == str(PICTURES) and told["The memory turns over"] == f"{turns:.1f} times"
    assert told["Steps"] == f"{STEPS}, {STEPS / (PICTURES // SMOKE.batch_size):.1f} epochs"
    assert {told["Speed"], told["Time"], told["Memory"]} == {"–"}
    words = shlex.split(page.locator(".trainform .cmd code").inner_text())
    assert words[:4] == ["python", "-m", "memssl_core", "train"] and words[-4:] == ["--preset", "smoke", "--steps", "6"]
    assert words[words.index("--data") + 1] == str(training.folder / "photos" / "some")

    watch_jumps(page)
    go = page.locator(".starter .pri")
    go.press("Enter")
    expect(page.locator(".starter")).to_contain_text(re.compile(r"Measuring a few steps… \d+ s"))
    expect(page.locator(".starter")).to_contain_text("measured over 5 steps", timeout=JOB_MS)
    told = figures(page)
    assert re.fullmatch(r"[\d.\u2009]+ images/s", told["Speed"]) and told["Time"].startswith("about")
    assert told["Memory"].endswith("free")
    assert page.evaluate("window.jumps") == 0
    expect(go).to_have_text("Start training")

    field(page, "Learning rate").fill("0.004")  # what was measured is of another wish now
    expect(go).to_have_text("Plan the run")
    assert figures(page)["Speed"] == "–"
    expect(page.locator(".trainform .cmd code")).to_contain_text("--lr 0.004")
    go.press("Enter")
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    go.press("Enter")  # while it is measured
    expect(row(page, "some-smoke")).to_have_attribute("aria-current", "true")
    assert parse_qs(urlsplit(page.url).query)["run"] == ["some-smoke"]
    expect(page.locator(".banner")).to_contain_text("A run is training here")
    expect(row(page, "some-smoke")).to_contain_text(re.compile(rf"Finished.*{STEPS} of {STEPS}"), timeout=JOB_MS)
    expect(page.locator(".banner")).to_have_text("")
    assert not {(job.status() or {})["state"] for job in jobs.find(training.home / "measures")} & set(jobs.LIVE)

    page.reload()
    expect(row(page, "some-smoke")).to_have_attribute("aria-current", "true")
    page.get_by_role("button", name="Duplicate…").press("Enter")
    expect(page.locator(".trainform")).to_contain_text("The settings are those of some-smoke.")
    expect(field(page, "Name")).to_have_value("some-smoke-2")
    expect(page.locator(".trainform .crumbs b")).to_have_text("some")
    expect(field(page, "Steps")).to_have_value(str(STEPS))
    expect(field(page, "Learning rate")).to_have_value("0.004")
    expect(page.get_by_role("radio", name="smoke")).to_be_checked()


def test_what_cannot_run_is_refused_in_a_sentence(visit: Visit, training: Server):
    gone = training.folder / "photos" / "gone"
    gone.mkdir()
    page = visit("&new=1").page
    form, go = page.locator(".trainform"), page.locator(".starter .pri")

    def refused(sentence: str, place: str = "") -> None:
        expect(form.locator(f"{place} .note:not(.warn)")).to_contain_text(re.compile(sentence))
        expect(go).to_be_disabled()

    choose(page, "empty")
    refused("no pictures in this folder")
    choose(page, "three")
    refused("3 pictures, fewer than batch_size 16")
    page.locator(".trainform .crumbs").get_by_role("button", name=re.compile("photos")).click()
    expect(page.locator(".trainform .folders")).to_contain_text("gone")
    shutil.rmtree(gone)
    page.locator(".trainform .folders").get_by_role("button", name="gone").click()
    refused("not there (any more)".replace("(", r"\(").replace(")", r"\)"), ".asked")
    choose(page, "some")
    expect(go).to_be_enabled()
    steps = field(page, "Steps")
    steps.fill("")  # so the epochs count
    steps.blur()
    epochs = int(SMOKE.epochs)
    total = f"{epochs * (PICTURES // SMOKE.batch_size):,}".replace(",", "\u2009")
    expect(form.locator(".need").first).to_contain_text(f"Steps{total}, {epochs} epochs")
    expect(page.locator("#set-steps-preset")).to_have_text(f"preset: {SMOKE.steps}")
    expect(steps).to_have_value("")
    steps.fill(str(SMOKE.steps))
    expect(page.locator("#set-steps-preset")).to_have_text("")
    for label, wrong, sentence in (
        ("Batch size", "0", "batch_size is 0; it must be at least 1"),
        ("Batch size", "1e308", "batch_size must be a whole number"),
        ("Block size", "1000", "block_size 1000 is larger than memory_slots 256"),
    ):
        control = field(page, label)
        control.fill(wrong)
        refused(sentence, ".knobs")
        expect(control).to_have_attribute("aria-invalid", "true")
        control.fill("")
        control.blur()
        expect(control).to_have_value(str(SMOKE.batch_size if label == "Batch size" else SMOKE.block_size))
        expect(go).to_be_enabled()
    for name in ("../../outside", HOSTILE, ".hidden", "a\u202eb"):
        field(page, "Name").fill(name)
        refused("A run's name has at most 80 letters", ".step")
    field(page, "Name").fill("")
    expect(go).to_be_enabled()
    expect(field(page, "Name")).to_have_value(re.compile("some-smoke"))
    assert not list((training.folder / "runs").glob("*outside*")) and page.locator("img[src=x]").count() == 0


def rows_of(*states: tuple[str, str, dict]) -> list[dict]:
    """Runs as the server tells them."""
    usual = {"stopping": False, "words": "", "message": "", "alarm": "", "step": 12_400, "steps": 20_000, "eta_s": None}
    more = {"preset": "demo", "data": "drawn", "loss": None, "knn_top1": None, "images_per_s": None, "worked_s": 48}
    rest = {"started_s": 1.0, "told_s": 2.0, "has_checkpoint": False, "source": None, "processes": 1}
    return [
        {"id": name, "rev": f"r{i}", "state": state, **usual, **more, **rest, **facts}
        for i, (name, state, facts) in enumerate(states)
    ]


SEVERAL = rows_of(
    ("going", "running", {"eta_s": 2460}),
    (HOSTILE, "waiting", {"step": None, "words": "waiting for another run to end"}),
    ("ringing", "running", {"alarm": "Collapse suspected", "eta_s": 60}),
    ("held", "stopped", {}),
    ("whole", "finished", {"step": 60, "steps": 60}),
    ("broken", "failed", {"message": "The loss is not finite; lower lr."}),
    ("lost", "lost", {"message": "It ended without a word at step 5. Resume it."}),
)


def test_the_list_says_how_each_run_stands_and_hears_of_changes(visit: Visit):
    told, asked, is_gone = list(SEVERAL), [], [False]

    def answer(route: Route) -> None:
        known = parse_qs(urlsplit(route.request.url).query).get("known", [""])[0].split(",")
        asked.append(known)
        if is_gone[0]:
            route.abort()
        elif known == [one["rev"] for one in told]:
            route.fulfill(status=204)
        else:
            changed = [{"id": one["id"], "rev": one["rev"]} if one["rev"] in known else one for one in told]
            route.fulfill(json={"now_s": 3.0, "runs": changed})

    page = (watched := visit("&run=held", runs=answer)).page
    for name, words in (
        ("going", r"Running.*12 400 of 20 000 · 41 min left"),
        (HOSTILE, "Waiting.*waiting for another run to end"),
        ("ringing", "Running.*Collapse suspected"),
        ("held", "Stopped.*12 400 of 20 000"),
        ("whole", "Finished.*60 of 60 · 48 s"),
        ("broken", "Failed.*The loss is not finite; lower lr"),
        ("lost", "Ended unexpectedly.*Resume it"),
    ):
        expect(row(page, name)).to_contain_text(re.compile(words.replace(" ", r"\s")))
    assert page.locator("img[src=x]").count() == 0
    expect(row(page, "held")).to_have_attribute("aria-current", "true")

    page.get_by_role("button", name="Compare").click()
    page.get_by_label("Compare with whole").check()
    assert parse_qs(urlsplit(page.url).query)["compare"] == ["whole"]
    row(page, "broken").press("Enter")  # the others stay beside it
    query = parse_qs(urlsplit(page.url).query)
    assert query["run"] == ["broken"] and query["compare"] == ["whole"]
    expect(page.get_by_label("Compare with broken")).to_be_disabled()

    told[0] = told[0] | {"state": "stopped", "rev": "other"}  # in another tab
    expect(row(page, "going")).to_contain_text("Stopped")
    del told[5]
    expect(page.locator(".runmain .note").first).to_contain_text("This run is not here")
    alert = page.locator(".runmain .note").first.element_handle()
    before = len(asked)
    page.wait_for_timeout(2200)
    assert 1 <= len(asked) - before <= 3  # once a second
    assert alert.evaluate("it => it.isConnected")  # it is read aloud once

    is_gone[0] = True
    expect(page.locator(".runs .note")).to_contain_text("The server does not answer")
    expect(row(page, "whole")).to_be_visible()
    is_gone[0] = False
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # back at the page: it is asked at once
    expect(page.locator(".runs .note")).to_have_count(0)
    watched.complaints.clear()  # that the server was gone


def test_a_model_that_does_not_come_is_told_beside_the_button_and_once(visit: Visit):
    told = rows_of(("held", "stopped", {"has_checkpoint": True, "source": "run:held"}))
    page = visit(runs=lambda route: route.fulfill(json={"now_s": 3.0, "runs": told})).page
    answer = {"error": {"title": "It cannot be opened.", "text": "Its checkpoint is damaged."}}
    page.route("**/api/open", lambda route: route.fulfill(json=answer))
    page.get_by_role("button", name="Open in Attention").click()
    expect(page.locator(".runhead .note")).to_have_text("It cannot be opened. Its checkpoint is damaged.")
    expect(page.locator(".hdrnote .note")).to_have_count(0)
    expect(page.get_by_role("button", name="Publish…")).to_be_visible()
    page.route("**/api/facts", lambda route: route.fulfill(json=route.fetch().json() | {"public": True}))
    page.reload()
    expect(page.get_by_role("button", name="Duplicate…")).to_be_visible()
    expect(page.get_by_role("button", name="Publish…")).to_have_count(0)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_list_and_form_fit_a_phone_and_are_accessible(visit: Visit, theme: str):
    def several(route: Route) -> None:
        route.fulfill(json={"now_s": 3.0, "runs": SEVERAL})

    page = visit("&run=held&compare=whole", runs=several, width=390, color_scheme=theme).page
    expect(page.get_by_label("Compare with whole")).to_be_checked()
    for what in ("list", "form"):
        if what == "form":
            page.get_by_role("button", name="New run").press("Enter")
            choose(page, "three")
            page.get_by_text("All other settings").click()
            expect(page.locator(".trainform .note")).to_contain_text("3 pictures")
        assert page.evaluate("document.documentElement.scrollWidth") == 390, what
        assert_accessible(page)
    page.get_by_role("button", name="Close the form").press("Enter")
    expect(page.get_by_role("button", name="New run")).to_be_focused()
