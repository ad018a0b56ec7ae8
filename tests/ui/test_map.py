"""What the map panel answers, without a browser."""

from __future__ import annotations

import csv
import io
import tracemalloc
import zipfile
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pyarrow.parquet as pq
import pytest
from browser.answers import HERE, write_job
from browser.small_bundle import write_small_bundle
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from analysis.graph import DUPLICATE, Graph, duplicates, neighbour_graph
from analysis.map import fit_map, pca_map, place
from memssl_core import paths
from memssl_core.errors import ModelError
from memssl_core.jobs import JobFolder
from memssl_core.training.runs import Since
from ui import wire
from ui.colours import CATEGORIES, agreement, by_duplicates, by_purity, categories, levels, sensible_threshold
from ui.context import Context, handler, open_source
from ui.layouts import Layout
from ui.map import show
from ui.page import build
from ui.slots import COLUMNS, as_csv, matching, since


@pytest.fixture
def memory(context: Context):
    memory = context.workbench().model.memory
    assert memory is not None
    return memory


@pytest.fixture
def model(context: Context) -> str:
    return context.opened().handle


def told(client: TestClient, model: str, space: str = "memory") -> dict[str, Any]:
    return client.get(f"/api/map/{model}/{space}").json()


@given(st.lists(st.none() | st.sampled_from(["a", "b", "ant", "<b>", "é"]), min_size=1, max_size=40))
def test_categories_by_size(words: list[str | None]):
    values, facts = categories(words)
    names, counts = facts["names"], facts["counts"]
    assert counts == sorted(counts, reverse=True) and len(set(names)) == len(names)
    for word, value in zip(words, values.tolist(), strict=True):
        assert (value == 0) if word is None else names[value - 1] == word
    assert counts == [words.count(name) for name in names]


def test_of_very_many_categories_the_small_ones_are_one():
    values, facts = categories([f"{i:03d}" for i in range(300)] + ["000"])
    names = facts["names"]
    assert len(names) == CATEGORIES and names[0] == "000" and (values == 255).sum() == 300 - CATEGORIES


@given(st.integers(0, 10**6), st.integers(1, 30))
def test_places_keep_their_shape_on_the_square(seed: int, count: int):
    rng = np.random.default_rng(seed)
    xy = (rng.normal(size=(count, 2)) * rng.uniform(0.01, 100, 2)).astype(np.float32)
    layout = Layout("", np.arange(count), xy, None, {}, {})
    at = layout.spread(xy).astype(float)
    assert at.dtype == float and (at >= 0).all() and (at <= 65_535).all()
    size = (xy.max(0) - xy.min(0)).max()
    if size > 0:
        scaled = xy * [1, -1] / size * 65_535  # one scale for both, y downwards
        np.testing.assert_allclose(at - at.mean(0), scaled - scaled.mean(0), atol=2 + 65_535 * 1e-4)


def test_levels_are_a_scale():
    assert levels(np.array([1.0, 2, 3, 9]), 1, 3).tolist() == [0, 128, 255, 255]
    assert levels(np.array([4.0, 4]), 4, 4).tolist() == [0, 0]


def test_points_of_a_memory_without_a_fit_are_its_principal_components(
    client: TestClient, context: Context, model, memory
):
    facts = told(client, model)
    assert (facts["points"], facts["slots"], facts["parameters"], facts["job"]) == (62, 64, {}, None)
    assert [name for name, _ in facts["colours"]] == ["class", "age", "purity", "density", "duplicates"]
    assert facts["since"] == {"steps": 0, "keys": 0, "overwritten": 0, "is_running": False} and facts["cursor"] == 62
    arrays, _ = wire.unpack(client.get(f"/api/map/{model}/memory/{facts['key']}/points").content)
    slots, rows = context.workbench().slots("memory")
    assert np.flatnonzero(np.unpackbits(arrays["has"], bitorder="little")).tolist() == slots.tolist()
    assert np.unpackbits(arrays["pictured"], bitorder="little", count=62).all()
    xy = pca_map(rows)
    expected = Layout("", slots, xy, None, {}, {}).spread(xy)
    np.testing.assert_array_equal(np.stack([arrays["x"], arrays["y"]], 1), expected)
    again = client.get(
        f"/api/map/{model}/memory/{facts['key']}/points", headers={"If-None-Match": f'"{facts["key"]}-points"'}
    )
    assert again.status_code == 304


def test_colours_of_the_neighbours(client: TestClient, context: Context, model, memory):
    key, (_, rows) = told(client, model)["key"], context.workbench().slots("memory")
    graph, labels = neighbour_graph(rows), memory.label[:62]
    colour = lambda by: wire.unpack(client.get(f"/api/map/{model}/memory/{key}/colour/{by}").content)
    arrays, facts = colour("density")
    mean = graph.scores.mean(1)
    assert (facts["low"], facts["high"]) == pytest.approx(np.quantile(mean, (0.01, 0.99)).tolist())
    assert arrays["values"].argmax() in np.flatnonzero(mean >= facts["high"])
    arrays, facts = colour("purity")
    share = [np.mean(labels[near] == label) for near, label in zip(graph.neighbours, labels, strict=True)]
    np.testing.assert_allclose(arrays["values"] / 255, share, atol=1 / 255)
    assert facts["none"] is False
    arrays, facts = colour("duplicates?threshold=0.9")
    groups = duplicates(graph, 0.9)
    assert facts["counts"] == [len(group) for group in groups] and facts["threshold"] == 0.9
    for number, group in enumerate(groups, 1):
        assert np.flatnonzero(arrays["values"] == number).tolist() == group.tolist()
        assert facts["names"][number - 1] == f"like slot {group[0]}"
    for wrong in (2, "x", "nan", "-inf"):
        assert client.get(f"/api/map/{model}/memory/{key}/colour/duplicates?threshold={wrong}").status_code == 422


def test_a_model_that_has_changed_since_is_not_fitted(client: TestClient, model, started, monkeypatch):
    monkeypatch.setattr("analysis.models.Models.open", lambda self, source: "another")
    answer = client.post("/api/map/fit", json={"space": "memory", "model": model}).json()
    assert "has changed since it was opened" in answer["error"]["text"] and not started


def test_a_long_word_costs_what_it_is():
    words = ["x" * 20_000, *["short"] * 50_000]
    tracemalloc.start()
    values, facts = categories(words)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000 and facts["counts"] == [50_000, 1] and values[0] == 2


def test_of_a_large_memory_no_graph_is_made_for_a_visitor(context: Context, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ui.layouts.FOUND_AT_ONCE", 10)
    layout = context.layouts.of(context.workbench(), "memory")
    assert not context.layouts.has_graph(context.workbench(), layout, "memory")
    with pytest.raises(ModelError, match="fit its map"):
        context.layouts.graph(context.workbench(), "memory")


def test_unknown_classes_are_grey():
    graph = Graph(np.array([[1], [0], [0]], np.int32), np.ones((3, 1), np.float32))
    values, facts = by_purity(graph, np.array([2, 3, -1]))
    assert values.tolist() == [1, 1, 0] and facts["none"] is True
    assert by_purity(graph, np.array([2, 2, 3]))[0].tolist() == [255, 255, 1]


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=60))
def test_a_sensible_threshold_leaves_most_without_a_duplicate(nearest: list[float]):
    scores = np.array(nearest, np.float32)[:, None]
    graph = Graph(np.roll(np.arange(len(scores)), 1)[:, None].astype(np.int32), scores)
    threshold = sensible_threshold(graph)
    assert DUPLICATE - 1e-9 <= threshold <= 0.99999
    assert (scores >= threshold).mean() <= 0.1 + 1 / len(scores) or threshold == pytest.approx(0.99999)
    values, facts = by_duplicates(graph, np.arange(len(scores)))
    assert facts["threshold"] == threshold and (values > 0).sum() == sum(facts["counts"])


def test_of_student_and_teacher():
    values, facts = agreement(np.array([3.0, 2, 1, 0]), np.array([0.0, 3, 1, 2]), 2)
    assert values.tolist() == [2, 1, 0, 3] and facts["counts"] == [1, 1, 1]


def test_slots_that_a_run_has_overwritten(client: TestClient, model, monkeypatch: pytest.MonkeyPatch):
    for module in ("map", "slots"):
        monkeypatch.setattr(f"ui.{module}.since", lambda *_: Since(40, 4, 2, is_running=True))
    assert told(client, model)["since"] == {"steps": 40, "keys": 4, "overwritten": 2, "is_running": True}
    stale = [slot for slot in range(62) if client.get(f"/api/slots/{model}/memory/{slot}").json()["is_stale"]]
    assert stale == [0, 1]  # and 62 and 63, which were noise


def test_only_a_run_goes_on(context: Context, model):
    assert since(context, model) == Since(0, 0, 0, is_running=False)


def test_colours_say_class_and_age(client: TestClient, model, memory):
    key = told(client, model)["key"]
    arrays, facts = wire.unpack(client.get(f"/api/map/{model}/memory/{key}/colour/class").content)
    names = [facts["names"][value - 1] for value in arrays["values"]]
    assert names == [memory.class_name[slot].as_py() for slot in range(62)] and facts["kind"] == "category"
    arrays, facts = wire.unpack(client.get(f"/api/map/{model}/memory/{key}/colour/age").content)
    assert arrays["values"][[0, 61]].tolist() == [0, 255] and (facts["low"], facts["high"]) == (610, 0)
    for path in (f"{key}/colour/soul", "nokey/colour/age", "nokey/points"):
        assert client.get(f"/api/map/{model}/memory/{path}").status_code == 410


def test_a_fitted_map_takes_the_place_of_the_components(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write_small_bundle(tmp_path / "fitted")
    opened = open_source(f"bundle:{folder}", "cpu")
    ready: Future = Future()
    ready.set_result(opened)
    client = TestClient(build(ready, source="small"), base_url=HERE)
    before = told(client, opened.handle)
    fitted = fit_map(opened.models[opened.handle].model, "memory")
    after = told(client, opened.handle)
    assert after["key"] != before["key"] and after["parameters"]["seed"] == 0
    arrays, _ = wire.unpack(client.get(f"/api/map/{opened.handle}/memory/{after['key']}/points").content)
    expected = Layout("", fitted.slot, fitted.xy, None, {}, {}).spread(fitted.xy)
    np.testing.assert_array_equal(np.stack([arrays["x"], arrays["y"]], 1), expected)
    assert client.get(f"/api/map/{opened.handle}/memory/{before['key']}/points").status_code == 410


def test_a_card_says_where_a_slot_came_from(client: TestClient, context: Context, model, memory):
    card = client.get(f"/api/slots/{model}/embedding/5").json()
    found = context.workbench().neighbours_of_slot(5, "embedding", 12)
    assert [one["slot"] for one in card["neighbours"]] == found.ids.tolist() and 5 not in found.ids
    rows = context.workbench().slots("embedding")[1]
    scores = rows @ rows[5]
    scores[5] = -2
    assert sorted(card["neighbours"][i]["score"] for i in range(12)) == pytest.approx(
        np.sort(scores)[-12:].tolist(), abs=1e-5
    )
    assert (card["slot"], card["step"], card["uri"], card["space"]) == (5, 50, "drawn:0:16#5", "embedding")
    assert card["overwritten_in"] == (5 - 62) % 64 + 1 and card["last_step"] == 611
    assert card["times_written"] == 1 and card["is_stale"] is False
    assert card["bundle_hash"] == context.workbench().model.card["bundle_hash"]
    for slot in (64, -1, 63):
        assert len(client.get(f"/api/slots/{model}/memory/{slot}").json()["error"]["text"]) > 20


def test_slots_are_found_by_number_class_and_name(client: TestClient, model, memory):
    fish = [slot for slot in range(62) if memory.class_name[slot].as_py() == "fish"]
    assert client.get(f"/api/slots/{model}?words=FISH").json() == {"slots": fish, "count": len(fish)}
    assert matching(memory, "#13").tolist() == [slot for slot in range(62) if slot % 16 == 13]
    assert 7 in matching(memory, "7") and matching(memory, "7").tolist() == sorted(
        {7, *(s for s in range(62) if "7" in memory.uri[s].as_py())}
    )
    assert matching(memory, "  ").tolist() == matching(memory, "(.*").tolist() == []


def test_a_selection_is_taken_away(client: TestClient, model, memory):
    take = lambda kind, slots: client.post(f"/api/slots/{model}/export", json={"slots": slots, "kind": kind})
    rows = list(csv.reader(io.StringIO(take("csv", [3, 1, 99]).text)))
    assert tuple(rows[0]) == COLUMNS and [row[0] for row in rows[1:]] == ["3", "1"]
    table = pq.read_table(io.BytesIO(take("parquet", [3, 1]).content))
    assert table.column_names == list(COLUMNS) and table["class_name"].to_pylist()[1] == memory.class_name[1].as_py()
    with zipfile.ZipFile(io.BytesIO(take("zip", [3, 62, 3]).content)) as file:
        assert file.namelist() == ["slots.csv", "3.jpg"] and file.read("3.jpg") == memory.thumbnail(3)
    assert take("exe", [1]).status_code == 422 and take("csv", ["x"]).status_code == 422


def test_words_that_a_spreadsheet_would_run_are_quoted(memory):
    from dataclasses import replace

    hostile = replace(memory, class_name=["=1+1", "+2", "@x", "-y", "plain"] + [None] * 59, uri=["<img src=x>"] * 64)
    text = as_csv(hostile, np.arange(5), False)[0].decode()
    assert [row[3] for row in csv.reader(io.StringIO(text))][1:] == ["'=1+1", "'+2", "'@x", "'-y", "plain"]


def test_a_picture_is_placed_by_its_neighbours(context: Context, model):
    key = show(context, (), {"handle": "coffee", "space": "memory"})["key"]
    data = context.results.get(key)
    assert data is not None
    arrays, facts = wire.unpack(data)
    workbench, picture = context.workbench(), context.pictures.get("coffee")
    assert picture is not None
    query, (slots, rows) = workbench.projection(picture.data), workbench.slots("memory")
    xy = pca_map(rows)
    at = Layout("", slots, xy, None, {}, {}).spread(place(query, rows, xy)[None])[0]
    assert [facts["x"], facts["y"]] == at.tolist()
    scores = rows @ query
    told = facts["colours"]["similarity"]
    assert (told["low"], told["high"]) == pytest.approx((scores.min(), scores.max()))
    assert arrays["similarity"].argmax() == scores.argmax()
    top = [set(np.argsort(-one)[:16].tolist()) for one in (scores, rows @ workbench.student_projection(picture.data))]
    for value, found in ((1, top[0] & top[1]), (2, top[0] - top[1]), (3, top[1] - top[0])):
        assert set(np.flatnonzero(arrays["agreement"] == value).tolist()) == found
    assert sum(facts["colours"]["agreement"]["counts"]) == len(top[0] | top[1]) and 0 < len(top[0] & top[1]) < 16
    in_embeddings = context.results.get(show(context, (), {"handle": "coffee", "space": "embedding"})["key"])
    assert list(wire.unpack(in_embeddings or b"")[0]) == ["similarity"]  # a student's are not kept
    for wrong in ({"space": "dreams"}, {"handle": "nobody"}, {"model": "x"}):
        asked = {"handle": "coffee", "space": "memory", "ticket": 1} | wrong
        assert len(handler(context, show)((), gr.EventData(None, asked))["error"]["text"]) > 20


def test_one_fit_runs_and_both_see_it(client: TestClient, model, started: list[dict]):
    first = client.post("/api/map/fit", json={"space": "memory", "model": model}).json()
    second = client.post("/api/map/fit", json={"space": "memory", "model": model, "fast": True}).json()
    assert first["job"] == second["job"] == told(client, model)["job"] and len(started) == 1
    job = JobFolder(paths.jobs_dir() / first["job"])
    job.write_status("failed", message="Fitting a map needs UMAP.")
    assert (told(client, model)["problem"], told(client, model)["job"]) == ("Fitting a map needs UMAP.", None)
    assert told(client, model, "embedding")["problem"] is None
    assert started[0]["argv"][0] == "map" and started[0]["module"] == "analysis"
    assert told(client, model, "embedding")["job"] is None
    write_job("map", "finished", facts={"model": model, "space": "embedding"})
    assert told(client, model, "embedding")["job"] is None


def test_visitors_from_elsewhere_start_no_fit(public: TestClient, model):
    write_job("map", "failed", facts={"model": model, "space": "memory"}, message="/home/me holds no bundle.")
    assert not {"job", "problem"} & public.get(f"/api/map/{model}/memory").json().keys()
    assert public.post("/api/map/fit", json={"space": "memory"}).status_code == 403
    assert public.get(f"/api/map/{model}/memory").status_code == 200


@pytest.mark.parametrize("path", ["map/{}/dreams", "slots/{}/dreams/1", "slots/{}"])
def test_wrong_questions_are_refused(client: TestClient, model, path: str):
    assert client.get(f"/api/{path.format(model)}").status_code == 422


def test_a_model_that_is_not_open(client: TestClient):
    for path in ("map/nobody/memory", "slots/nobody/memory/1", "slots/nobody?words=a"):
        assert "not open here" in client.get(f"/api/{path}").json()["error"]["text"]
