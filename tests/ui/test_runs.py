"""Training runs over HTTP: how they stand, told in changes, and what may be done to them by whom."""

from __future__ import annotations

import math
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from browser.answers import opened
from browser.run_folders import SETTINGS, act, listed, routes_of, tell, write_run
from browser.small_bundle import write_small_bundle
from fastapi.testclient import TestClient

from memssl_core import paths
from memssl_core.data.datasets import open_images
from memssl_core.jobs import JobFolder
from memssl_core.training.state import TrainState
from ui.context import Context, Training
from ui.runs import banner, bytes_below, give_way


@pytest.fixture
def client(ready: Future, photos: Path) -> TestClient:
    return routes_of(Context("small", ready, roots={"photos": photos}, training=Training(at_once=2)))


# How they stand


def test_runs_are_told_in_changes_newest_first(client: TestClient):
    assert listed(client) == {}
    first, second = write_run("first", step=3), write_run("second", "finished", step=60)
    tell(first, "started", 0, time_s=10.0)
    tell(first, "step", 3, loss=2.5, eta_s=9.0)
    tell(second, "started", 0, time_s=20.0)
    told = client.get("/api/runs").json()["runs"]
    assert [run["id"] for run in told] == ["second", "first"]
    known = ",".join(run["rev"] for run in told)
    assert client.get(f"/api/runs?known={known}").status_code == 204
    tell(first, "step", 4, loss=2.25, images_per_s=30.0)
    tell(first, "probe", 4, knn_top1=40.0)
    same, changed = client.get(f"/api/runs?known={known}").json()["runs"]
    assert same == {"id": "second", "rev": told[0]["rev"]}
    told = {"step": 4, "steps": 60, "loss": 2.25, "knn_top1": 40.0, "images_per_s": 30.0, "eta_s": None}
    assert changed | told | {"preset": "smoke", "data": "drawn:0:64"} == changed
    first.request_stop()
    assert listed(client)["first"]["stopping"]


def test_only_run_folders_of_this_place_are_runs(client: TestClient, tmp_path: Path):
    run = write_run("mine")
    (tmp_path / "elsewhere").mkdir()
    write_run("elsewhere").path.rename(tmp_path / "elsewhere" / "run")
    (paths.runs_dir() / "linked").symlink_to(tmp_path / "elsewhere" / "run")
    (paths.runs_dir() / "empty").mkdir()
    (paths.runs_dir() / "a\nb").mkdir()
    write_run("hidden").path.rename(paths.runs_dir() / ".hidden")
    assert list(listed(client)) == ["mine"]
    hostile = ("..", "%2e%2e", "..%2f..%2felsewhere%2frun", "mine%2f..%2fmine", "mine%00", ".hidden", "linked", "empty")
    for name in hostile:
        for path in ("", "/events", "/snapshots/0", "/snapshots/0/map?axes=0", "/snapshots/0/picture/0"):
            assert client.get(f"/api/runs/{name}{path}").status_code in (404, 405), (name, path)
        for verb in ("stop", "save", "kill", "resume", "delete"):
            assert client.post(f"/api/runs/{name}/{verb}", json={"rev": ""}).status_code in (404, 405), (name, verb)
    assert run.path.exists() and (tmp_path / "elsewhere" / "run").exists() and not run.stop_requested()


def test_what_has_become_of_a_run_is_said_with_what_to_do(client: TestClient, photos: Path):
    write_run("gone", "lost", step=12, kept=10)
    write_run("at-once", "lost", step=0)
    ended = write_run("ended", "lost", step=8, kept=5)
    ended.request_stop()
    write_run("few", "failed", message=f"{photos}/trip has 3 pictures, fewer than batch_size 16; lower it.")
    write_run("odd", "failed", message="ValueError: boom in /srv/secret/file.py")
    write_run("full", "failed", message="A file of the run was not written: /home/ada/my/disk is full.")
    write_run("waited", "stopped", message="Stopped before its turn came.")
    said = {name: run["message"] for name, run in listed(client).items()}
    assert "without a word at step 12" in said["gone"] and "checkpoint of step 10 stands: resume it" in said["gone"]
    assert "had saved nothing yet: resume it" in said["at-once"] and " at step" not in said["at-once"]
    assert said["ended"].startswith("It was ended at step 8 before it had saved. Its checkpoint of step 5")
    assert said["few"] == "photos/trip has 3 pictures, fewer than batch_size 16; lower it."
    assert "mistake of ours" in said["odd"] and "written: disk is full" in said["full"]
    assert said["waited"] == "Stopped before its turn came."
    for path in ("/api/runs", "/api/runs/few", "/api/runs/gone"):
        text = client.get(path).text
        assert not any(word in text for word in (str(photos), "/srv", "/home/ada", "ValueError", "Traceback"))


STOPPED = '{"state": "stopped", "pid": 1, "process_start_s": 1, "steps": NaN, "step": "x", "heartbeat_s": "x", %s}'
ODD = '"message": ["x"], "words": {}, "processes": "x", "started_s": {}'


@pytest.mark.parametrize(
    ("file", "content"),
    [
        *[("status.json", told) for told in ("[" * 100_000, STOPPED % ODD)],
        *[("job.json", told) for told in ("[" * 100_000, '{"kind": "train", "preset": ["smoke"], "started_s": "x"}')],
        ("config.json", '{"data": "/srv/caf\\udce9", "lr": 1e999}'),
        ("events.jsonl", '{"event": "alarm", "step": 1, "message": "\\ud800"}\n[[[\n5\n'),
    ],
)
def test_a_damaged_run_does_not_hide_the_others(client: TestClient, file: str, content: str):
    write_run("good", "stopped")
    (write_run("bad", "stopped").path / file).write_text(content)
    assert set(listed(client)) == {"good", "bad"}
    for path in ("bad", "bad/events"):
        assert "Something went wrong" not in client.get(f"/api/runs/{path}").text


def test_a_run_in_detail(client: TestClient, photos: Path):
    job = write_run("first", step=20, kept=20, data=str(photos / "trip"))
    (job.path / "checkpoints" / "best-knn_top1.pt").touch()
    tell(job, "started", 0, resumed=False)
    for step, value in ((0, 5.0), (10, 30.0), (20, 20.0)):
        tell(job, "probe", step, knn_top1=value, rankme=2.0)
    told = client.get("/api/runs/first").json()
    assert told["chance"] == pytest.approx(math.log(32)) and told["changes"] == {"block_size": 32}
    assert told["data"] == {"kind": "folder", "root": "photos", "path": "trip"} and told["run"]["data"] == "photos/trip"
    assert told["checkpoints"] == [20] and told["best"] == {"knn_top1": [30.0, 10]} and told["snapshots"] == []
    assert (told["slots"], told["batch_size"], told["classes"]) == (256, 16, None)
    words = told["command"].split()
    assert words[:4] == ["python", "-m", "memssl_core", "train"] and words[words.index("--block-size") + 1] == "32"
    events = client.get("/api/runs/first/events").json()
    assert events["probes"]["columns"]["knn_top1"] == [5.0, 30.0, 20.0]
    assert client.get(f"/api/runs/first/events?since={events['next']}").json()["probes"]["columns"]["step"] == []
    for since in ("-1", "x", str(2**70)):
        assert client.get(f"/api/runs/first/events?since={since}").status_code == 422
    (job.path / "config.json").write_text("{")
    assert "cannot be read" in client.get("/api/runs/first").json()["error"]["text"] and "first" in listed(client)


# What may be done to them


def test_two_tabs_that_stop_a_run_have_one_effect(client: TestClient):
    job = write_run("first", step=3)
    rev = listed(client)["first"]["rev"]
    assert "stop first" in act(client, "first", "kill", rev) and act(client, "first", "save", rev) == ""
    assert job.save_requested() and listed(client)["first"]["saving"]
    assert act(client, "first", "stop", rev) == "" and job.stop_requested()
    assert act(client, "first", "stop", rev) == "It is being stopped already."
    job.write_status("stopped", step=4)
    for verb in ("stop", "save", "kill"):
        assert act(client, "first", verb, rev) == "It was already stopped in another tab."
    job.write_status("waiting", words="starting")
    assert "nothing to save" in act(client, "first", "save")


def test_a_run_that_does_not_stop_can_be_ended(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    job, killed = write_run("first", step=3), []
    monkeypatch.setattr(JobFolder, "kill", lambda self: killed.append(self.path) or True)
    act(client, "first", "stop")
    assert act(client, "first", "kill") == "" and killed == [job.path]


def test_an_ended_run_is_renamed_and_deleted_as_it_stands_on_the_page(client: TestClient):
    job = write_run("first", "stopped", step=5, kept=5)
    stale = listed(client)["first"]["rev"]
    job.write_status("running", step=6)
    for verb, more in (("delete", {}), ("rename", {"name": "second"})):
        assert "stop it first" in act(client, "first", verb, **more)
    job.write_status("stopped", step=7)
    for verb in ("delete", "resume"):
        assert "changed in another tab" in act(client, "first", verb, stale)
    for name in ("", "../x", "a/b", ".x", "-x", "a b", "x" * 81, "first"):
        assert "another name" in act(client, "first", "rename", name=name), name
    assert act(client, "first", "rename", name="second") == "" and list(listed(client)) == ["second"]
    assert act(client, "second", "delete") == "" and listed(client) == {}
    assert not job.path.exists()


def test_a_run_is_taken_up_again_with_its_own_settings(client: TestClient, started: list):
    job = write_run("first", "lost", step=5, kept=5)
    rev = listed(client)["first"]["rev"]
    assert act(client, "first", "resume", rev) == ""
    (asked,) = started
    verb, *flags = asked["argv"]
    told = dict(zip(flags[::2], flags[1::2], strict=True))
    assert verb == "train" and told == {"--data": "drawn:0:64", "--run-dir": str(job.path), "--preset": "smoke",
                                        "--block-size": "32", "--at-once": "2"}  # fmt: skip
    assert asked["kind"] == "train" and asked["folder"] == job.path
    job.write_status("waiting")
    assert "already taken up" in act(client, "first", "resume", rev)
    job.write_status("finished", step=60)
    (job.path / "bundle").mkdir()
    assert "is finished" in act(client, "first", "resume") and len(started) == 1


def test_limits_hold_when_a_run_is_taken_up(ready: Future, started: list):
    limits = Training(runs=1, hours=2, gigabytes=0.001)
    client = routes_of(Context("small", ready, training=limits))
    job = write_run("first", "lost", step=5, kept=5)
    tell(job, "started", 0, time_s=0.0)
    tell(job, "saved", 5, time_s=3600.0)
    assert act(client, "first", "resume") == ""
    assert started[0]["argv"][-2:] == ["--stop-after-hours", "1.0"]
    tell(job, "started", 5, resumed=True, time_s=9000.0)
    tell(job, "saved", 6, time_s=12_601.0)
    assert "had the 2 hours" in act(client, "first", "resume")
    (job.path / "large").write_bytes(b"0" * 2_000_000)
    assert "delete one first" in act(client, "first", "resume") and len(started) == 1
    (job.path / "again").hardlink_to(job.path / "large")
    assert 2_000_000 < bytes_below(paths.runs_dir()) < 2_100_000  # a file of two names counts once


def test_what_runs_are_still_to_write_counts(ready: Future, started: list):
    client = routes_of(Context("small", ready, training=Training(gigabytes=1)))
    waiting = write_run("waiting", "waiting", disk_bytes=9e8)
    write_run("first", "lost", step=5, disk_bytes=2e8)
    assert "will take, 0.9 of 1 GB" in act(client, "first", "resume") and not started
    waiting.write_status("stopped", disk_bytes=9e8)
    assert act(client, "first", "resume") == ""


def test_visitors_take_up_only_runs_on_declared_pictures(ready: Future, photos: Path, started: list):
    context = Context("small", ready, public=True, roots={"photos": photos}, training=Training())
    client = routes_of(context, login=lambda request: "ada")
    for name, data in (("ours", str(photos / "trip")), ("drawn", "drawn:0:64"), ("foreign", "/srv/pictures"),
                       ("out", f"{photos}/../pictures"), ("hub", "hf:a/b")):  # fmt: skip
        write_run(name, "stopped", step=5, kept=5, data=data)
    assert act(client, "ours", "resume") == act(client, "drawn", "resume") == ""
    for name in ("foreign", "out", "hub"):
        assert "no folder that is declared" in act(client, name, "resume") and len(started) == 2
    told = client.get("/api/runs/foreign").json()
    assert told["data"] is None and "--data pictures --run-dir foreign" in told["command"] and "/srv" not in str(told)


# The page beside a run


def test_a_lost_run_is_in_the_picker_and_opens(client: TestClient):
    job = write_run("first", "lost", step=1)
    assert not client.get("/api/models").json()["groups"].get("runs") and not listed(client)["first"]["has_checkpoint"]
    state = TrainState(SETTINGS, open_images("drawn:0:64"))
    state.step = 1
    state.save(job.path)
    run = listed(client)["first"]
    assert run["has_checkpoint"] and run["source"] == "run:first" and "or open it" in run["message"]
    (row,) = client.get("/api/models").json()["groups"]["runs"]
    assert row["source"] == "run:first" and "lost, step 1 of 60" in row["note"]
    assert opened(client, "run:first")["model"]["source"] == "run:first"


def test_the_bundle_of_a_run_can_be_published(client: TestClient):
    job = write_run("first", "stopped", step=60, kept=60)
    write_small_bundle(job.path / "bundle", seed=5)
    model = opened(client, "run:first")["model"]
    assert model["source"] == "run:first" and model["publishable"]
    plan = client.post("/api/publish/plan", json={"model": model["handle"], "repo": "ada/first"}).json()
    assert "memory.parquet" in [name for name, _ in plan["files"]]


def test_models_leave_the_accelerator_to_a_run_and_come_back():
    models: Any = SimpleNamespace(home=torch.device("cuda"), device=torch.device("cuda"))
    models.move = lambda device: setattr(models, "device", torch.device(device))
    opening: Future = Future()
    opening.set_result(SimpleNamespace(models=models))
    context = Context("small", opening, training=Training())
    job = write_run("first", step=1)
    tell(job, "started", 0, device="cpu")
    give_way(context)
    assert models.device.type == "cuda" and banner(context) == "A run is training here, so answers take longer."
    tell(job, "started", 1, device="cuda:1", resumed=True)
    give_way(context)
    assert models.device.type == "cpu" and "training on CUDA, so the page's models are on the CPU" in banner(context)
    job.write_status("stopped")
    with context.turns.take("model"):
        give_way(context)  # the page does not wait for a long question
    assert models.device.type == "cpu"
    give_way(context)
    assert models.device.type == "cuda" and banner(context) == ""
    job.write_status("running")
    assert banner(Context("small", opening)) == ""  # where no training is offered nothing is told of it


def test_all_tabs_may_say_that_something_trains(client: TestClient):
    assert client.get("/api/facts").json()["banner"] == ""
    write_run("first", step=1)
    facts = client.get("/api/facts").json()
    assert "answers take longer" in facts["banner"] and facts["training"] and facts["training_words"] == ""
