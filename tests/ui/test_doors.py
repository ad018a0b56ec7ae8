"""The page's doors over HTTP: picking a model, jobs, giving a memory, publishing, and who may."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from browser.answers import HERE, opened, write_job
from browser.small_bundle import write_small_bundle
from fastapi.testclient import TestClient

from memssl_core import jobs, paths
from memssl_core.data.images import decode_image
from memssl_core.errors import HubError, ModelError
from memssl_core.jobs import JobFolder
from memssl_core.sources import open_model
from ui.attention import show as show_attention
from ui.context import Context, Opened
from ui.examples import examples
from ui.header import bring, open_for
from ui.memory import show
from ui.openings import Opening
from ui.page import build
from ui.store import key_of

TINY = "random:test_vit"


# The picker


def test_the_list_holds_what_is_here_and_what_is_worth_fetching(client: TestClient):
    write_small_bundle(paths.bundles_dir() / "mine", seed=2)
    answer = client.get("/api/models").json()
    (mine,) = answer["groups"]["bundles"]
    assert mine["source"] == "bundle:mine" and mine["title"] == "mine" and mine["cached"] and "small" in mine["note"]
    assert answer["typed"] and not any(row["cached"] for row in answer["groups"]["curated"])
    assert opened(client, "bundle:mine")["model"]["name"] == "mine"
    assert str(paths.home()) not in client.get("/api/models").text


def test_each_visitor_has_a_model_of_their_own(client: TestClient):
    before = client.get("/api/facts").json()["model"]
    mine = opened(client, TINY)["model"]
    assert mine["handle"] != before["handle"] and mine["source"] == TINY and mine["memory"] is None
    assert client.get("/api/facts").json()["model"] == before
    assert opened(client, "small")["model"] == before


def test_a_model_that_cannot_be_opened_is_a_sentence(client: TestClient):
    for source, words in (
        ("random:no_such_model", "no_such_model"),
        ("bundle:/srv/nothing/here", "here"),
        ("", "Write what to open"),
        ("timm:resnet18.a1_in1k", "HF_HUB_OFFLINE"),  # not in the cache, and the Hub may not be asked
    ):
        answer = opened(client, source)
        assert words in answer["error"]["text"] and "model" not in answer, answer
    assert client.post("/api/open", json={"source": "x" * 301}).status_code == 422
    assert "no longer known" in client.get("/api/open/nobody").json()["error"]["text"]
    assert client.get("/healthz").json() == {"state": "ready"}


def test_models_without_attention_say_what_they_can(client: TestClient):
    model = opened(client, "random:test_resnet")["model"]
    assert "feature map and no attention" in model["no_attention"] and "cells" in model["can"]
    facts = dict(map(tuple, model["facts"]))
    assert facts["Memory"] == "none" and "Positions" not in facts and len(dict(model["hashes"])["Model"]) == 64


def test_a_query_meets_the_memory_of_its_own_model_only(ready: Future, tmp_path: Path):
    other = f"bundle:{write_small_bundle(tmp_path / 'other', seed=1)}"
    context = Context("small", ready)
    models = context.opened().models
    rocket = examples()["rocket"].read()
    for handle in (context.opened().handle, models.open(other)):
        asked = {"model": handle, "handle": "rocket", "space": "memory", "k": 10}
        told = json.loads(context.results.get(show(context, (), asked)["key"]) or b"")
        model = open_model(models[handle].model.source)
        assert model.head and model.memory
        query = model.head(model.backbone(model.transform(decode_image(rocket))[None])).detach().numpy()[0]
        scores = np.where(model.memory.image_id < 0, -1, model.memory.vectors @ (query / np.linalg.norm(query)))
        assert [row["slot"] for row in told["rows"]] == np.argsort(-scores)[:10].tolist()
        assert all(row["thumb"] is None or f"/{handle}/" in row["thumb"] for row in told["rows"])
    with pytest.raises(ModelError, match="choose it again"):
        show(context, (), {"model": "0123456789ab", "handle": "rocket", "space": "memory", "k": 10})
    assert key_of("neighbours", "a", "rocket") != key_of("neighbours", "b", "rocket")


def test_while_one_model_is_opened_the_others_answer(
    client: TestClient, ready: Future, monkeypatch: pytest.MonkeyPatch
):
    reached, let_go = threading.Event(), threading.Event()

    def slow(source: str):
        reached.set()
        let_go.wait(10)
        return open_model(source)

    monkeypatch.setattr("analysis.models.open_model", slow)
    monkeypatch.setattr("ui.openings.SHORT_S", 0)
    before = client.post("/api/open", json={"source": "random:test_vit@7"}).json()
    assert before["state"] == "loading" and reached.wait(10)
    asked = {"ask": "maps", "handle": "rocket", "query": "cls", "size": 32}
    assert show_attention(Context("small", ready), (), asked)["key"]  # it is not waited for
    assert client.get(f"/api/open/{before['ticket']}").json()["state"] == "loading"
    let_go.set()
    assert opened(client, "random:test_vit@7")["state"] == "ready"


# Bringing what is not here


def follow(opening: Opening, *, until: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not until() and time.monotonic() < end:
        time.sleep(0.02)
    assert until(), opening


def test_what_is_not_cached_comes_as_a_job(client: TestClient, ready: Future, started: list, monkeypatch):
    cached = set()
    monkeypatch.setattr("memssl_core.sources.is_cached", lambda source: source in cached or source == TINY)
    models = ready.result().models
    monkeypatch.setattr(type(models), "open", lambda self, source: f"handle of {source}")
    monkeypatch.setattr("ui.openings.SHORT_S", 0)
    monkeypatch.setattr("ui.header.model_facts", lambda context, handle: {"handle": handle})
    monkeypatch.setattr("ui.header.LOOK_S", 0.01)
    context = Context("small", ready)
    opening = Opening("timm:test_vit", tickets={"one"})
    thread = threading.Thread(target=lambda: setattr(opening, "handle", open_for(context, opening)))
    thread.start()
    follow(opening, until=lambda: bool(jobs.find()))
    assert started[0]["argv"] == ["fetch", "timm:test_vit"] and started[0]["kind"] == "fetch"
    (job,) = jobs.find()
    job.write_status("running", step=3_000_000, total=9_000_000, words="model.safetensors, 3.0 of 9.0 MB")
    follow(opening, until=lambda: opening.done == 3_000_000)
    assert opening.total == 9_000_000 and "3.0 of 9.0 MB" in opening.words
    job.write_status("finished", result="timm:test_vit")
    thread.join(10)
    assert opening.handle == "handle of timm:test_vit" and len(started) == 1


def test_a_download_under_way_is_gone_on_with_and_its_end_is_told(started: list, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ui.header.LOOK_S", 0.01)
    job = write_job("fetch", "failed", facts={"source": "hub:a/b"}, message="The Hub has no model a/b.")
    opening = Opening("hub:a/b", tickets={"one"})
    running = write_job("fetch", facts={"source": "hub:a/b"})
    monkeypatch.setattr(JobFolder, "status", failing_after_one(JobFolder.status, running, job))
    with pytest.raises(HubError, match="no model a/b"):
        bring(opening)
    assert not started  # the running one was followed


def failing_after_one(status: Callable, running: JobFolder, failed: JobFolder) -> Callable:
    """`JobFolder.status` by which `running` has failed when it is looked at a third time."""
    looks = []

    def told(job: JobFolder) -> dict | None:
        if job == running:
            looks.append(job)
        return status(failed if job == running and len(looks) > 2 else job)

    return told


def test_when_nobody_waits_the_download_is_stopped(started: list):
    with pytest.raises(HubError, match="Stopped"):
        bring(Opening("hub:a/b"))
    (job,) = jobs.find()
    assert job.stop_requested()


# Who may


def test_another_page_cannot_change_anything(client: TestClient, started: list):
    asked = {"source": TINY}
    foreign = [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": HERE},
        {"host": "evil.example"},  # a name that was made to lead here
    ]
    for headers in foreign:
        assert client.post("/api/open", json=asked, headers=headers).status_code == 403, headers
    body = json.dumps(asked)
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert client.post("/api/open", content=body, headers={"content-type": kind}).status_code == 415, kind
    proxied = {"origin": "https://models.example", "x-forwarded-host": "models.example"}
    for headers in ({}, {"origin": HERE}, {"sec-fetch-site": "same-origin"}, {"host": "localhost:7860"}, proxied):
        assert client.post("/api/open", json=asked, headers=headers).status_code == 200, headers
    assert client.get("/api/models", headers={"host": "evil.example"}).status_code == 403


def test_visitors_from_elsewhere_get_what_is_here_and_nothing_is_started(public: TestClient, started: list):
    write_small_bundle(paths.bundles_dir() / "mine", seed=2)
    facts = public.get("/api/facts", headers={"host": "models.example"}).json()
    assert facts["public"] and facts["model"]["typed"] == "bundle:small" and not facts["model"]["publishable"]
    answer = public.get("/api/models").json()
    rows = [row for group in answer["groups"].values() for row in group]
    assert not answer["typed"] and rows and all(row["cached"] for row in rows)
    assert opened(public, "bundle:mine")["model"]["typed"] == "bundle:mine"
    for source in (TINY, f"bundle:{paths.bundles_dir()}/mine/.", "timm:resnet18.a1_in1k", "hub:ada/mine", "/etc"):
        assert "already on this server" in opened(public, source)["error"]["text"], source
    for path in ("jobs", "jobs/a/log", "folders?root=photos"):
        assert public.get(f"/api/{path}").status_code == 403, path
    for path in ("jobs/a/stop", "jobs/a/forget", "remember", "remember/need", "publish", "publish/plan"):
        assert (
            public.post(f"/api/{path}", json={"model": "x", "repo": "a/b", "data": {"kind": "drawn"}}).status_code
            == 403
        )
    assert not started


def test_the_model_comes_first(tmp_path: Path):
    with TestClient(build(Future(), source="embedded"), base_url=HERE) as starting:
        assert "still being opened" in opened(starting, "embedded")["error"]["text"]


def test_opening_names_where_it_came_from(ready: Future):
    assert isinstance(ready.result(), Opened) and ready.result().source.startswith("bundle:")
