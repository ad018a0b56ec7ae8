"""What the tab Compare answers, without a browser."""

from __future__ import annotations

import io
import json
import threading
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
from browser.answers import opened
from browser.pictures import photo, upload
from browser.run_folders import routes_of, write_run
from browser.small_bundle import write_small_bundle
from fastapi.testclient import TestClient
from PIL import Image

from analysis.compare import compare_memories
from memssl_core import paths
from memssl_core.evaluation.geometry import cka, mutual_knn
from tests.ui.test_routes import HERE, call, send
from ui import wire
from ui.attention import show as show_attention
from ui.compare import CHUNK, PART, show
from ui.context import Context, Opened, Training, handler, open_source
from ui.facts import model_facts
from ui.page import build
from ui.probes import drawn
from ui.store import Store


@pytest.fixture(scope="module")
def other(opened_two: Opened) -> str:
    return opened_two.models.open("random:vit_tiny_patch16_224@1")


@pytest.fixture(scope="module")
def opened_two(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    folder: Path = write_small_bundle(tmp_path_factory.mktemp("bundles") / "small")
    return open_source(f"bundle:{folder}", "cpu")


@pytest.fixture
def context(opened_two: Opened) -> Context:
    ready: Future = Future()
    ready.set_result(opened_two)
    return Context("small", ready)


@pytest.fixture
def near(context: Context, tmp_path: Path) -> str:
    """The handle of a model whose memory is of the same pictures."""
    return context.opened().models.open(f"bundle:{write_small_bundle(tmp_path / 'near', seed=1)}")


def ask(context: Context, kind: str, visit: tuple[str, ...] = (), **asked) -> dict[str, Any]:
    return show(context, visit, {"ask": kind, **asked})


def embed(context: Context, probe: str, *handles: str) -> list[int]:
    """Ask on as the page does; what was done after each answer for the first model."""
    told: list[int] = []
    for handle in handles:
        told = [0]
        while True:
            answer = ask(context, "probe", model=handle, probe=probe, start=told[-1])
            told.append(answer["done"])
            if answer["done"] == answer["total"]:
                break
    return told


def test_maps_of_both_sides_are_those_of_the_attention_tab(context: Context, near: str):
    asked = {"handle": "chelsea", "query": 5, "size": 64}
    own = show_attention(context, (), {"ask": "maps", **asked})["key"]
    assert ask(context, "maps_a", **asked)["key"] == own
    key = ask(context, "maps_b", model=near, **asked)["key"]
    rows = wire.unpack(context.results.get(key) or b"")[0]["rows"]
    picture = context.pictures.get("chelsea")
    assert key != own and picture is not None
    np.testing.assert_array_equal(rows, context.workbench(near).attention_all(picture.data, 5, 64).rows)


def test_maps_at_any_whole_patches_between_the_sizes_of_the_list(context: Context):
    for size, grid in ((40, [3, 5]), (72, [6, 9])):
        key = ask(context, "maps_a", handle="chelsea", query="cls", size=size)["key"]
        assert wire.unpack(context.results.get(key) or b"")[1]["grid"] == grid


def test_memories_of_both_and_which_are_shared(context: Context, near: str):
    told = ask(context, "memories", handle="drawn-1", other=near, k=5)
    picture, handle = context.pictures.get("drawn-1"), context.opened().handle
    assert picture is not None
    found = compare_memories(context.workbench(), context.workbench(near), picture.data, 5)
    for side, model in (("a", handle), ("b", near)):
        rows = told[f"rows_{side}"]
        assert [row["slot"] for row in rows] == [row["slot"] for row in getattr(found, f"rows_{side}")]
        assert rows[0]["thumb"] == f"api/thumb/{model}/{rows[0]['slot']}"
    ids = [{row["image_id"] for row in told[f"rows_{side}"]} for side in "ab"]
    shared = ids[0] & ids[1]
    assert all(row["same"] == (row["image_id"] in shared) for side in "ab" for row in told[f"rows_{side}"])
    assert told["shared"] == len(shared) and told["overlap"] == pytest.approx(len(shared) / 5)
    assert told["common"] == 16 and told["words"] is None
    json.dumps(told, allow_nan=False)


def test_without_a_second_memory_a_sentence_says_so(context: Context, other: str):
    told = ask(context, "memories", handle="drawn-1", other=other, k=5)
    assert told["rows_b"] == [] and len(told["rows_a"]) == 5 and told["overlap"] is None
    assert "no memory" in told["words"]


# Over a set of pictures


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """No part of a chunk is put off for lack of time."""
    monkeypatch.setattr("ui.compare.CHUNK_S", 1e9)


@pytest.mark.usefixtures("slow")
def test_embedding_goes_on_in_chunks_and_is_done_once(context: Context, monkeypatch: pytest.MonkeyPatch):
    handle = context.opened().handle
    told = embed(context, f"memory-{handle}", handle)
    assert told == [0, 16] and CHUNK == 16
    monkeypatch.setattr("analysis.probe.probe_features", None)
    assert ask(context, "probe", model=handle, probe=f"memory-{handle}", start=0) == {"done": 16, "total": 16}
    assert ask(context, "probe", probe=f"memory-{handle}", start=16)["done"] == 16


@pytest.mark.usefixtures("slow")
def test_a_model_that_lost_what_it_had_embedded_goes_on_from_there(context: Context):
    assert ask(context, "probe", probe="drawn", start=0) == {"done": 16, "total": 256}
    assert ask(context, "probe", probe="drawn", start=16)["done"] == 32
    assert ask(context, "probe", probe="drawn", start=0)["done"] == 32  # as when two ask
    object.__setattr__(context, "probed", Store(1000, lambda parts: 1))  # as after a restart
    assert ask(context, "probe", probe="drawn", start=32)["done"] == 16


def test_a_slow_model_gives_the_turn_away_after_a_part(context: Context, monkeypatch: pytest.MonkeyPatch):
    clock = iter(range(100))
    monkeypatch.setattr("ui.compare.time", SimpleNamespace(perf_counter=lambda: 0.6 * next(clock)))
    assert ask(context, "probe", probe="drawn", start=0)["done"] == PART
    assert ask(context, "probe", probe="drawn", start=PART)["done"] == 2 * PART


def test_two_who_ask_at_once_embed_each_picture_once(context: Context):
    def visit() -> None:
        embed(context, "drawn", context.opened().handle)

    visitors = [threading.Thread(target=visit) for _ in range(2)]
    for one in visitors:
        one.start()
    for one in visitors:
        one.join()
    (parts,) = context.probed._values.values()
    assert sum(map(len, parts)) == 256


def test_a_judgement_is_that_of_the_plain_functions(context: Context, other: str):
    handle, probe = context.opened().handle, f"memory-{context.opened().handle}"
    embed(context, probe, handle, other)
    told = ask(context, "judge", other=other, probe=probe)
    memory = context.workbench().model.memory
    assert memory is not None
    pictures = [Image.open(io.BytesIO(memory.thumbnail(slot))) for slot in range(16)]
    rows = [np.stack([context.workbench(one).embedding(picture) for picture in pictures]) for one in (handle, other)]
    assert told["n"] == 16 and told["k"] == 7 and told["chance"] == pytest.approx(7 / 15)
    assert told["cka"] == pytest.approx(cka(rows[0], rows[1]), abs=1e-4)
    assert told["mutual_knn"] == pytest.approx(mutual_knn(*rows, k=7))
    assert np.array(told["layers"]).shape == (3, 12)
    kept = [one["kept"] for one in told["changed"]]
    assert kept == sorted(kept) and len(kept) == 16 and np.mean(kept) == pytest.approx(told["mutual_knn"])
    first = told["changed"][0]
    assert len(first["a"]) == len(first["b"]) == 7 and f"slot {first['index']}" in first["name"]
    assert len({*first["a"]} & {*first["b"]}) / 7 == pytest.approx(first["kept"])
    assert ask(context, "judge", model=other, other=handle, probe=probe)["cka"] == pytest.approx(told["cka"])


def test_a_model_agrees_with_itself(context: Context):
    handle = context.opened().handle
    embed(context, "drawn", handle)
    told = ask(context, "judge", other=handle, probe="drawn")
    assert told["cka"] == pytest.approx(1) and told["mutual_knn"] == 1 and told["k"] == 10 and told["n"] == 256
    assert len(told["changed"]) == 24


def test_a_collapsed_model_is_told_without_numbers_that_are_none(context: Context):
    handle = context.opened().handle
    embed(context, "drawn", handle)
    (key, parts), *_ = context.probed._values.items()
    flat = [replace(part, embedding=np.ones_like(part.embedding)) for part in parts]
    context.probed.put(key, tuple(flat))
    assert ask(context, "judge", other=handle, probe="drawn")["cka"] is None


NOBODY = "nobody's"
WRONG = [
    {"ask": None}, {"ask": "everything"}, {"ask": ["probe"]},
    {"ask": "memories", "k": 0}, {"ask": "memories", "k": 10**9}, {"ask": "memories", "k": True},
    {"ask": "memories", "k": "5"}, {"ask": "memories", "handle": NOBODY}, {"ask": "memories", "other": NOBODY},
    {"ask": "memories", "other": None}, {"ask": "memories", "model": ["x"]},
    {"ask": "maps_a", "size": 64, "query": "rm -rf"}, {"ask": "maps_b", "size": 65, "query": "cls"},
    {"ask": "maps_a", "size": 24, "query": "cls"}, {"ask": "maps_a", "size": 520, "query": "cls"},
    {"ask": "probe", "probe": "mine"}, {"ask": "probe", "probe": None}, {"ask": "probe", "probe": "memory-"},
    {"ask": "probe", "probe": f"memory-{NOBODY}"}, {"ask": "probe", "probe": "drawn:7:9"},
    {"ask": "probe", "start": 257},
    {"ask": "probe", "start": -1}, {"ask": "probe", "start": True}, {"ask": "probe", "start": "0"},
    {"ask": "probe", "start": None}, {"ask": "probe", "start": 1.0}, {"ask": "probe", "model": NOBODY},
    {"ask": "judge", "other": NOBODY}, {"ask": "judge", "probe": "/etc"}, {"ask": "judge"},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_wrong_question_is_answered_in_a_sentence(context: Context, wrong: dict):
    plain = {"handle": "chelsea", "other": context.opened().handle, "k": 5, "probe": "drawn", "start": 0, "ticket": 3}
    told = handler(context, show)((), gr.EventData(None, plain | wrong))
    assert told["ticket"] == 3 and {*told} == {"ticket", "error"}
    assert len(told["error"]["text"]) > 20 and "Something went wrong" not in told["error"]["title"]


def test_a_picture_of_another_visit_is_not_compared(context: Context):
    mine = context.pictures.add(upload(photo(64, 48), "a.png", "PNG")["buffer"], "a.png").handle
    asked = {"handle": mine, "other": context.opened().handle, "k": 5, "query": "cls", "size": 64}
    for kind in ("maps_a", "maps_b", "memories"):
        assert "error" not in handler(context, show)((mine,), gr.EventData(None, {"ask": kind, **asked}))
        told = handler(context, show)((), gr.EventData(None, {"ask": kind, **asked}))
        assert "no longer kept" in told["error"]["text"]


def test_what_models_have_embedded_is_bounded(context: Context):
    probed = replace(context).probed
    embed(context, f"memory-{context.opened().handle}", context.opened().handle)
    (parts,) = context.probed._values.values()
    arrays = [array for part in parts for array in (part.embedding, part.layers) if array is not None]
    assert probed is context.probed and len(arrays) == 2 * len(parts)
    assert context.probed._values.currsize == sum(array.nbytes for array in arrays)
    assert context.probed._values.maxsize <= 256_000_000


# Routes


def test_the_sets_of_a_model_and_their_pictures(context: Context, other: str):
    client, handle = routes_of(context), context.opened().handle
    drawn, remembered = client.get(f"/api/probes?model={handle}").json()
    assert (drawn["id"], drawn["count"]) == ("drawn", 256)
    assert (remembered["id"], remembered["count"]) == (f"memory-{handle}", 16) and "small" in remembered["title"]
    assert [one["id"] for one in client.get(f"/api/probes?model={other}").json()] == ["drawn"]
    assert [one["id"] for one in client.get("/api/probes?model=nobody").json()] == ["drawn"]
    for id, side in (("drawn", 96), (f"memory-{handle}", 48)):
        answer = client.get(f"/api/probe/{id}/3")
        assert Image.open(io.BytesIO(answer.content)).size == (side, side)
        again = client.get(f"/api/probe/{id}/3", headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304
    for path in ("drawn/256", "drawn/-1", f"drawn/{10**30}", "memory-nobody/0", f"memory-{handle}/16", "etc/0", 'é"/0'):
        answer = client.get(f"/api/probe/{path}")
        assert answer.status_code == 404 and len(answer.json()["error"]) > 20, path
    assert client.get("/api/probe/drawn/x").status_code == 422


def test_nothing_is_drawn_before_the_model_is_open(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ui.probes.drawn", lambda: pytest.fail("this imports torch"))
    for path in ("probes?model=x", "probe/drawn/0"):
        answer = routes_of(Context("small", Future())).get(f"/api/{path}")
        assert answer.status_code == 404 and "still being opened" in answer.json()["error"]


def test_checkpoints_are_for_owners_and_those_who_may_train(context: Context):
    write_run("first", "finished", kept=40)
    write_run("second", "running", kept=20)
    (paths.runs_dir() / "second" / "checkpoints" / "step-00001000.pt").write_bytes(b"0")
    write_run("empty", "finished")
    sources = ["run:second@20", "run:second@1000", "run:first@40"]
    told = routes_of(context).get("/api/checkpoints").json()
    assert sorted(one["source"] for one in told) == sorted(sources)
    assert {one["title"] for one in told} == {"first, step 40", "second, step 20", "second, step 1\u2009000"}
    elsewhere = Context("small", context.opening, public=True)
    assert routes_of(elsewhere).get("/api/checkpoints").json() == []
    students = Context("small", context.opening, public=True, training=Training())
    assert len(routes_of(students).get("/api/checkpoints").json()) == 3
    assert "could not be opened" in opened(routes_of(students), "run:second@20")["error"]["title"]  # it was tried
    for client, source in ((routes_of(elsewhere), "run:second@20"), (routes_of(students), "run:second@21"),
                           (routes_of(students), "run:/srv/x@20"), (routes_of(students), "run:empty")):  # fmt: skip
        assert "already on this server" in opened(client, source)["error"]["text"]


# For programs


def test_the_endpoint_compares_memories_maps_and_a_set(context: Context, near: str, other: str, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    file = upload(photo(64, 48), "a.png", "PNG")
    with TestClient(build(context.opening, source="small"), base_url=HERE) as client:
        image = send(client, file)
        (told,) = call(client, "compare", image, near, None, 5, 20)
        found = compare_memories(context.workbench(), context.workbench(near), file["buffer"], 5)
        assert told["memories"] == found.summary() and 0 < told["maps"]["overlap"] < 1 and told["probe"]["n"] == 20
        rows = [
            np.stack([context.workbench(one).embedding(drawn().picture(index)) for index in range(20)])
            for one in (context.opened().handle, near)
        ]
        assert told["probe"]["cka"] == pytest.approx(cka(rows[0], rows[1]), abs=1e-4)
        (plain,) = call(client, "compare", image, other, None, 5, 0)
        assert plain["probe"] is None and "no memory" in plain["memories"]["words"]
        for k, pictures in ((0, 0), (10**9, 0), (5, 3), (5, 257), (5, -1)):
            begun = client.post("/gradio_api/call/compare", json={"data": [image, near, None, k, pictures]}).json()
            text = client.get(f"/gradio_api/call/compare/{begun['event_id']}").text
            assert "event: error" in text and "ask for" in text and "went wrong" not in text
        begun = client.post("/gradio_api/call/compare", json={"data": [image, "timm:nobody", None, 5, 0]}).json()
        assert "not served here" in client.get(f"/gradio_api/call/compare/{begun['event_id']}").text


def test_two_checkpoints_of_a_run_are_told_apart(context: Context):
    write_run("mine", "finished", kept=20)
    workbench = context.workbench()
    workbench.model = replace(workbench.model, source="run:mine@20")
    try:
        assert model_facts(context, context.opened().handle)["name"] == "mine@20"
    finally:
        workbench.model = replace(workbench.model, source="bundle:small")
