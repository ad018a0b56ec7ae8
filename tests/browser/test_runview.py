"""The view of one run: curves, film strip, the memory turning, what can be done about it, and what has become of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from browser.conftest import Watched, assert_accessible
from browser.runs import DATA, DONE, TINY, Place, append, sleeper, tell, trained
from browser.server import Server
from browser.small_bundle import write_small_bundle
from playwright.sync_api import Browser, Page, expect

from memssl_core.data.datasets import open_images
from memssl_core.jobs import JobFolder, read_events
from memssl_core.training.snapshots import write

LINES = "() => [...document.querySelectorAll('.surface')].map(it => it.data?.filter((_, i) => i % 2 === 0) ?? [])"
UNPACKED = """async path => {
  const { unpack } = await import('/ui/wire.js');
  const { facts, arrays } = unpack(await (await fetch(path)).arrayBuffer());
  return { facts, ...Object.fromEntries(Object.entries(arrays).map(([name, values]) => [name, [...values]])) };
}"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("runview")
    bundle = write_small_bundle(folder / "small")
    (folder / "runs").mkdir()
    trained(folder / "runs" / DONE)
    with Server(folder, ["--model", f"bundle:{bundle}", "--runs", str(folder / "runs")]) as server:
        here = Place(server, folder / "runs")
        yield here
    for trainer in here.trainers:
        trainer.kill()
        trainer.wait()


@pytest.fixture
def visit(guest: Callable[..., Watched], place: Place) -> Callable[..., Watched]:
    """Opens a run as a new visitor and waits until it is there."""

    def open_run(name: str, query: str = "", **options) -> Watched:
        watched = guest(f"{place.server.url}?tab=train&run={name}{query}", **options)
        expect(watched.page.locator(".runname")).to_have_text(name, timeout=30_000)
        expect(watched.page.locator(".run .cmd code")).to_contain_text("memssl_core train")
        return watched

    return open_run


def steps_drawn(page: Page, *, chart: int = 0) -> list[float]:
    return page.evaluate(LINES)[chart][0]["x"]


def wait_for_steps(page: Page, steps: list[int]) -> None:
    page.wait_for_function(
        "steps => JSON.stringify(document.querySelector('.surface')?.data?.[0]?.x) === steps",
        arg=json.dumps(steps, separators=(",", ":")),
    )


def button(page: Page, name: str):
    return page.locator(".run .acts").get_by_role("button", name=name, exact=True)


def figure(page: Page, name: str):
    return page.locator(".run .figures > div").filter(has_text=name).locator("dd")


def pill(page: Page):
    return page.locator(".runhead .pill")


# ---- curves


def test_curves_are_the_events_and_end_at_the_planned_end(visit, place: Place):
    job = place.ended("halfway", 12, "stopped")
    page = visit("halfway").page
    events, _ = read_events(job.events)
    steps = [event for event in events if event["event"] == "step"]
    probes = [event for event in events if event["event"] == "probe"]
    wait_for_steps(page, [event["step"] for event in steps])
    lines = page.evaluate(LINES)
    assert [line["y"] for line in lines[0]] == [[event[name] for event in steps] for name in ("loss", "kl")]
    assert lines[1][0]["x"] == [0, 8] and lines[1][0]["y"] == [event["knn_top1"] for event in probes]
    assert page.evaluate("() => document.querySelector('.surface').layout.xaxis.range") == [0, TINY.steps]
    classes = len(open_images(DATA).class_names)
    for title, words in (("Loss and KL", "chance, ln 64 = 4.159"), ("k-NN top-1", f"chance, {100 / classes:.2f} %")):
        chart = page.locator(".chart").filter(has=page.get_by_role("heading", name=title, exact=True))
        expect(chart.locator(".chance")).to_have_text(words)
        expect(chart.locator(".plot")).to_have_attribute("aria-label", re.compile(re.escape(words)))
    expect(page.locator(".chart").first.locator(".end")).to_have_text(["loss", "KL"])
    page.locator(".curves summary").click()
    rows = page.locator(".curves table tbody tr").all_inner_texts()
    table = dict(re.split(r"\t", row, maxsplit=1) for row in rows)
    last = steps[-1]
    assert table["loss, nats"] == f"{last['loss']:.2f}\t12" and table["KL, nats"] == f"{last['kl']:.2f}\t12"
    assert table["k-NN top-1, %"] == f"{probes[-1]['knn_top1']:.1f}\t8"
    assert table["waiting share, %"] == f"{100 * last['wait_share']:.0f}\t12"
    assert len(table) == 11


def test_only_what_is_new_is_asked_for_and_what_is_void_goes(visit, place: Place):
    job = place.live("growing", 12)
    page = (watched := visit("growing")).page
    wait_for_steps(page, list(range(1, 13)))
    size = job.events.stat().st_size
    append(job, *({"event": "step", "step": step, "loss": 7.25, "memory_written": 16 * step} for step in (13, 14)))
    wait_for_steps(page, list(range(1, 15)))
    expect(figure(page, "Loss")).to_have_text("7.25 nats")
    expect(page.locator(".ringbox")).to_contain_text(f"slot {15 * 16}")  # (14 + 1) * 16 keys in 256 slots
    asked = [int(url.rpartition("=")[2]) for url in watched.requests if "/runs/growing/events?since=" in url]
    assert asked[0] == 0 and asked[1] == size and 0 not in asked[1:] and asked == sorted(asked)
    told = "Nothing is learned. <img src=x onerror=alert(1)>"  # never read as markup
    append(job, {"event": "alarm", "step": 14, "message": told})
    expect(page.locator(".alarms .note").first).to_have_text(f"Step 14 {told}")
    append(job, {"event": "started", "step": 8, "resumed": True}, {"event": "step", "step": 9, "loss": 5.5})
    wait_for_steps(page, list(range(1, 10)))
    expect(page.locator(".alarms")).not_to_contain_text("Nothing is learned.")
    drawn = page.evaluate("() => document.querySelector('.surface').layout.shapes.filter(it => it.x0 === it.x1)")
    assert 8 in [shape["x0"] for shape in drawn]


def test_a_run_that_is_not_seen_is_not_asked_about(visit, place: Place):
    place.live("unseen", 8)
    page = (watched := visit("unseen")).page
    wait_for_steps(page, list(range(1, 9)))
    page.get_by_role("tab", name="About").click()
    page.wait_for_timeout(500)
    watched.requests.clear()
    page.wait_for_timeout(1500)
    assert not [url for url in watched.requests if "/events" in url]
    page.get_by_role("tab", name="Train").click()
    with page.expect_request("**/runs/unseen/events?since=*"):
        pass
    assert not [url for url in watched.requests if url.endswith("since=0")]


def test_curves_of_several_runs_lie_over_each_other(visit, place: Place):
    place.ended("other-run", 16, "stopped")
    page = visit(DONE, "&compare=other-run").page
    page.wait_for_function("() => document.querySelector('.surface').data?.length === 4")
    loss = page.evaluate(LINES)[0]
    assert [len(line["x"]) for line in loss] == [24, 16]
    assert len({(line["line"]["color"], line["line"]["dash"]) for line in loss}) == 2
    assert len({line["line"]["dash"] for line in loss}) == 2  # never colour alone
    expect(page.locator(".chart").first.locator(".end")).to_have_text([DONE, "other-run"])
    expect(page.locator(".runkey")).to_have_text(f"{DONE}other-run")
    page.locator(".curves summary").click()
    assert page.locator(".curves thead th").all_inner_texts() == ["Figure", DONE, "other-run"]


def test_without_plotly_a_sentence_and_the_table_remain(browser: Browser, place: Place):
    page = browser.new_page()
    page.route("**/ui/plotly.min.js", lambda route: route.fulfill(status=404))
    page.goto(f"{place.server.url}?tab=train&run={DONE}")
    expect(page.locator(".curves > p")).to_contain_text("The charts need plotly.js", timeout=30_000)
    expect(page.locator(".curves table")).to_be_visible()
    page.close()


# ---- snapshots


def test_the_film_shows_attention_and_memories_of_each_snapshot(visit, place: Place):
    job, rng = place.ended("filmed", 24, "stopped"), np.random.default_rng(0)
    for step in (0, 24):  # of an untrained model it prefers nothing
        found = place.snapshot(step)
        peaked = rng.dirichlet(np.full(found.attention[0].size, 0.3), len(found.attention))
        write(job.path, replace(found, attention=peaked.reshape(found.attention.shape).astype(np.float16)))
    page = visit("filmed").page
    tiles = page.locator(".still")
    expect(tiles).to_have_count(7)
    expect(tiles.last.locator(".recall")).to_have_count(5)
    shown = """tile => {
      const { width, height } = tile, copy = Object.assign(document.createElement('canvas'), { width, height });
      const pen = copy.getContext('2d', { willReadFrequently: true });
      pen.drawImage(tile, 0, 0);
      const { data } = pen.getImageData(0, 0, width, height);
      let best = 0;
      for (let i = 0; i < width * height; i++) if (data[4 * i + 3] > data[4 * best + 3]) best = i;
      return [width, height, best, tile.toDataURL()];
    }"""
    for picture in (0, 1):
        page.locator(".pinned button").nth(picture).click()
        urls = set()
        for step, tile in ((0, tiles.first), (24, tiles.last)):
            found = place.snapshot(step, "filmed")
            expect(tile).to_have_attribute("aria-label", re.compile(rf"^Step {step}: "))
            names = [name or "noise" for name in found.recalled_names[picture]]
            scores = [f"{score:.3f}" for score in found.recalled_scores[picture]]
            expect(tile.locator(".recall b")).to_have_text(scores)
            assert tile.locator(".recall .name").all_inner_texts() == names
            rows, columns = found.attention.shape[1:]
            width, height, best, url = tile.locator("canvas").evaluate(shown)
            strongest = (best // width * rows // height, best % width * columns // width)
            assert strongest == np.unravel_index(found.attention[picture].argmax(), (rows, columns))
            urls.add(url)
        assert len(urls) == 2
    loaded = "tile => [...tile.querySelectorAll('img')].every(it => it.complete && it.naturalWidth)"
    tiles.last.scroll_into_view_if_needed()
    page.wait_for_function(loaded, arg=tiles.last.element_handle())
    expect(page.locator(".crops img")).to_have_attribute("alt", re.compile("at step 24: one picture a row, 4 views"))
    tiles.first.click()
    expect(page.locator(".crops .none")).to_have_text("Before the first step nothing has been seen yet.")
    expect(page).to_have_url(re.compile("step=0"))


def test_slots_stay_where_they_are_while_the_memory_turns(visit, place: Place):
    page = visit(DONE).page
    words = page.locator(".turnstage > p").first
    expect(words).to_contain_text("256 of 256 slots shown · snapshot at step 24 · cursor at slot 128")
    expect(words).to_contain_text("components of step 24")
    ring = page.locator(".ringbox")
    expect(ring).to_contain_text(f"slot {24 * 16 % 256}")
    maps = [page.evaluate(UNPACKED, f"api/runs/{DONE}/snapshots/{step}/map?axes=24") for step in (24, 20)]
    places = [np.stack([it["x"], it["y"]], 1).astype(float) for it in maps]
    now, before = place.snapshot(24), place.snapshot(20)
    is_old = now.written_at == before.written_at
    assert np.array_equal(places[0][is_old], places[1][is_old]) and not np.array_equal(*places) and is_old.sum() == 192
    box = page.locator(".turning .mapbox .overlay")
    box.scroll_into_view_if_needed()
    area = box.bounding_box()
    scale = (min(area["width"], area["height"]) - 48) / 65535
    pixels = [(at - 65535 / 2) * scale + [area["width"] / 2, area["height"] / 2] for at in places]
    alone = [np.sort(np.linalg.norm(at[:, None] - at[None], axis=-1), axis=1)[:, 1] for at in pixels]
    slot = int(np.argmax(np.where(is_old, np.minimum(*alone), 0)))
    assert min(alone[0][slot], alone[1][slot]) > 3

    def slot_at(x: float, y: float) -> str:
        page.mouse.move(area["x"] + x + 1, area["y"] + y + 40)
        page.mouse.move(area["x"] + x, area["y"] + y)
        return page.locator(".slotwords").inner_text()

    assert slot_at(*pixels[0][slot]).startswith(f"slot {slot}:")
    newest = int((now.cursor - 1) % now.total)
    accent = page.locator(".turning .mapbox canvas").first.evaluate(
        """(it, [x, y]) => [...it.getContext('2d').getImageData(Math.floor(x * it.width / it.clientWidth),
           Math.floor(y * it.height / it.clientHeight), 1, 1).data]""",
        pixels[0][newest].tolist(),
    )
    assert accent == [11, 98, 196, 255]  # --ui-accent: written last
    expect(box).to_have_attribute("aria-label", re.compile("; 32 of them newly written"))  # of 64 the newest eighth
    page.get_by_label("Snapshot", exact=True).press("ArrowLeft")
    expect(words).to_contain_text("snapshot at step 20 · cursor at slot 64")
    expect(words).to_contain_text("components of step 24")
    expect(page).to_have_url(re.compile("step=20"))
    assert slot_at(*pixels[1][slot]).startswith(f"slot {slot}:")
    page.get_by_role("button", name="Axes of this step").click()
    expect(words).to_contain_text("components of step 20")
    expect(ring).to_contain_text("Keys written384")  # the ring is now's, not the snapshot's


def test_the_map_plays_to_the_end_and_newer_snapshots_come_by_themselves(visit, place: Place):
    job = place.live("turning", 12)
    page = visit("turning", "&step=8").page
    words = page.locator(".turnstage > p").first
    expect(words).to_contain_text("snapshot at step 8")
    page.get_by_role("button", name="Play").click()
    expect(words).to_contain_text("snapshot at step 12")
    expect(page.get_by_role("button", name="Play")).to_be_enabled()
    source = place.runs / DONE / "snapshots" / "step-00000016.safetensors"
    (job.path / "snapshots" / source.name).write_bytes(source.read_bytes())
    append(job, {"event": "snapshot", "step": 16})
    expect(words).to_contain_text("snapshot at step 16")
    expect(words).to_contain_text("components of step 12")


# ---- what can be done


def let_pass(page: Page, is_there: Callable[[], bool], most_s: int = 20) -> None:
    """Let the page's own clock run until something is there."""
    for _ in range(2 * most_s):
        if is_there():
            return
        page.clock.run_for(500)
        page.wait_for_timeout(50)  # by our clock: what the page asks for takes its time all the same
    raise AssertionError("it did not come")


def test_stopping_from_two_pages_has_one_effect_and_one_clear_sentence(visit, place: Place):
    job = place.live("shared", 12)
    first, second = visit("shared").page, visit("shared").page
    second.route("**/api/runs?known=*", lambda route: route.fulfill(status=204))  # it hears of nothing new
    second.wait_for_timeout(200)
    button(first, "Stop and save").click()
    expect(button(first, "Saving…")).to_be_disabled()
    assert job.stop_requested()
    expect(pill(first)).to_have_text("Stopping")
    tell(job, "stopped", 12, 24)
    job.clear_requests()
    expect(first.locator(".runhead").get_by_role("status")).to_have_text("Stopped at step 12.")
    button(second, "Stop and save").click()
    expect(second.locator(".runhead .note").first).to_contain_text("It was already stopped in another tab.")
    assert not job.stop_requested()
    second.unroute("**/api/runs?known=*")
    expect(pill(second)).to_have_text("Stopped")
    expect(second.locator(".runhead").get_by_role("alert")).to_have_count(0)  # it is seen now
    expect(button(first, "Resume")).to_be_enabled()


def test_a_stop_that_takes_long_may_be_cut_short(visit, place: Place):
    job = place.live("stubborn", 12)
    page = visit("stubborn", apart=True).page
    says = page.locator(".runhead").get_by_role("status")
    page.clock.install()
    with page.expect_response("**/runs/stubborn/save"):
        button(page, "Save now").click()
    assert job.save_requested() and button(page, "Saving…").is_disabled()
    job.clear_save()
    append(job, {"event": "saved", "step": 12})
    let_pass(page, lambda: says.inner_text() == "Saved at step 12.")
    button(page, "Stop and save").click()
    let_pass(page, lambda: says.inner_text() == "Saving, then the run stops.")
    kill = button(page, "Kill without saving")
    expect(kill).to_have_count(0)
    page.clock.fast_forward(20_000)
    let_pass(page, lambda: kill.count() == 1)
    kill.click()
    box = page.get_by_role("dialog", name="Kill stubborn without saving?")
    expect(box).to_contain_text("Its last checkpoint, of step 8, stays; what came after it is lost.")
    box.get_by_role("button", name="Kill without saving").click()
    place.trainers[-1].wait(10)
    let_pass(page, lambda: pill(page).inner_text() == "Ended unexpectedly")
    expect(page.locator(".runhead .note").first).to_contain_text("It was ended at step 12 before it had saved.")


def test_a_run_is_renamed_in_place_and_deleted_after_asking(visit, place: Place):
    place.ended("first-name", 12, "stopped")
    page = visit("first-name").page
    rename = page.get_by_role("button", name="Rename")
    rename.click()
    page.get_by_label("New name").fill("../elsewhere")
    page.keyboard.press("Enter")
    refusal = page.locator(".runhead .note").first
    expect(refusal).to_contain_text("name")
    assert refusal.bounding_box()["y"] < page.locator(".runhead .figures").bounding_box()["y"]  # beside the field
    expect(page.get_by_label("New name")).to_be_focused()
    page.keyboard.press("Escape")
    expect(rename).to_be_focused()
    rename.click()
    page.get_by_label("New name").fill("second-name")
    page.keyboard.press("Enter")
    expect(page.locator(".runname")).to_have_text("second-name")
    expect(page).to_have_url(re.compile("run=second-name"))
    assert (place.runs / "second-name").is_dir() and not (place.runs / "first-name").exists()
    expect(page.locator(".run .cmd code")).to_contain_text("second-name")
    button(page, "Delete…").click()
    box = page.get_by_role("dialog", name="Delete second-name?")
    expect(box).to_contain_text("1 checkpoint, 4 snapshots, its curves")
    box.get_by_role("button", name="Cancel").click()
    assert (place.runs / "second-name").is_dir()
    button(page, "Delete…").click()
    box.get_by_role("button", name="Delete").click()
    expect(page.locator(".runname")).not_to_have_text("second-name")
    assert not (place.runs / "second-name").exists()


# ---- how it stands


def test_what_became_of_a_run_is_said_with_what_to_do(visit, place: Place):
    place.ended("vanished", 12, "running")
    place.ended("broken", 12, "failed", message="The loss is not finite at step 12; try a lower lr.")
    page = visit("vanished").page
    expect(pill(page)).to_have_text("Ended unexpectedly")
    alert = page.locator(".runhead").get_by_role("alert").first
    expect(alert).to_contain_text("Ended unexpectedly at step 12.")
    expect(alert).to_contain_text("Its checkpoint of step 8 stands: resume it, or open it.")
    expect(button(page, "Resume")).to_have_class(re.compile("pri"))
    page.locator(".runlist").get_by_role("button", name=re.compile("^broken")).click()
    expect(alert).to_contain_text("Failed at step 12. The loss is not finite at step 12; try a lower lr.")
    expect(alert).to_contain_text("Resume goes on from the checkpoint of step 8.")


def test_a_run_that_waits_says_for_what(visit, place: Place):
    place.trainers.append(sleeper())
    folder = place.runs / "queued"
    job = JobFolder(folder).create()
    asked = {"kind": "train", "title": "queued", "started_s": 1.0, "preset": "smoke", "data": DATA, "processes": 1}
    settings = json.loads((place.runs / DONE / "config.json").read_text())
    settings = {name: value for name, value in settings.items() if name not in ("data", "chosen")}
    (folder / "job.json").write_text(json.dumps({**asked, "settings": settings}))
    tell(job, "waiting", 0, 24, process=place.trainers[-1].pid, words="waiting for another run to end")
    page = visit("queued").page
    expect(pill(page)).to_have_text("Waiting")
    expect(page.locator(".runhead").get_by_role("status")).to_have_text("Waiting for another run to end.")
    loss = page.locator(".chart").first
    expect(loss.locator(".none")).to_have_text("The first point comes with the first steps.")
    expect(loss.locator(".lastx")).to_have_text("24 steps")
    boxes = [loss.locator(of).bounding_box() for of in (".none", ".chance")]
    assert boxes[0]["y"] > boxes[1]["y"] + boxes[1]["height"]  # one does not lie over the other
    expect(page.get_by_role("button", name="Axes of this step")).to_be_disabled()
    assert page.locator(".run .acts button").all_inner_texts() == ["Stop"]
    button(page, "Stop").click()
    expect(button(page, "Stopping…")).to_be_disabled()
    assert job.stop_requested()


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_and_is_accessible(visit, place: Place, dark: bool):
    name = f"phone-{dark}".lower()
    job = place.live(name, 12)
    append(job, {"event": "alarm", "step": 12, "message": "The trainer waits for pictures."})
    page = visit(name, "&__theme=dark" if dark else "", width=390, height=844).page
    expect(page.locator(".still").last.locator(".recall")).to_have_count(5)
    assert page.locator(".still").last.locator(".recall:visible").count() == 3
    wait_for_steps(page, list(range(1, 13)))
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    banner = page.locator(".hdrnote.show-s")
    expect(banner).to_contain_text("A run is training here")
    assert banner.evaluate("it => getComputedStyle(it).paddingLeft") == "16px"
    tab = page.get_by_role("tab", name="Train").bounding_box()
    assert tab["x"] >= 0 and tab["x"] + tab["width"] <= 390  # the row of tabs is scrolled to it
    assert_accessible(page)
    page.set_viewport_size({"width": 1280, "height": 900})
    assert_accessible(page)
