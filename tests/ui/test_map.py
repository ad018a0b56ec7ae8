"""What the map panel answers, without a browser."""

from __future__ import annotations

import csv
import io
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

from analysis.map import fit_map, pca_map, place
from ui import wire
from ui.context import Context, handler, open_source
from ui.layouts import CATEGORIES, Layout, categories, levels
from ui.map import show
from ui.page import build
from ui.slots import COLUMNS, as_csv, matching


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
    values, names, counts = categories(words)
    assert counts == sorted(counts, reverse=True) and len(set(names)) == len(names)
    for word, value in zip(words, values.tolist(), strict=True):
        assert (value == 0) if word is None else names[value - 1] == word
    assert counts == [words.count(name) for name in names]


def test_of_very_many_categories_the_small_ones_are_one():
    values, names, _ = categories([f"{i:03d}" for i in range(300)] + ["000"])
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
    assert [name for name, _ in facts["colours"]] == ["class", "age"]
    arrays, _ = wire.unpack(client.get(f"/api/map/{model}/memory/{facts['key']}/points").content)
    slots, rows = context.workbench().slots("memory")
    assert np.flatnonzero(np.unpackbits(arrays["has"], bitorder="little")).tolist() == slots.tolist()
    xy = pca_map(rows)
    expected = Layout("", slots, xy, None, {}, {}).spread(xy)
    np.testing.assert_array_equal(np.stack([arrays["x"], arrays["y"]], 1), expected)
    again = client.get(
        f"/api/map/{model}/memory/{facts['key']}/points", headers={"If-None-Match": f'"{facts["key"]}-points"'}
    )
    assert again.status_code == 304


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
    assert card["overwritten_in"] == (5 - 62) % 64 + 1 and card["last_step"] == 610
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
    with zipfile.ZipFile(io.BytesIO(take("zip", [3, 62]).content)) as file:
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
    assert (facts["low"], facts["high"]) == pytest.approx((scores.min(), scores.max()))
    assert arrays["values"].argmax() == scores.argmax()
    for wrong in ({"space": "dreams"}, {"handle": "nobody"}, {"model": "x"}):
        asked = {"handle": "coffee", "space": "memory", "ticket": 1} | wrong
        assert len(handler(context, show)((), gr.EventData(None, asked))["error"]["text"]) > 20


def test_one_fit_runs_and_both_see_it(client: TestClient, model, started: list[dict]):
    first = client.post("/api/map/fit", json={"space": "memory", "model": model}).json()
    second = client.post("/api/map/fit", json={"space": "memory", "model": model, "fast": True}).json()
    assert first["job"] == second["job"] == told(client, model)["job"] and len(started) == 1
    assert started[0]["argv"][0] == "map" and started[0]["module"] == "analysis"
    assert told(client, model, "embedding")["job"] is None
    write_job("map", "finished", facts={"model": model, "space": "embedding"})
    assert told(client, model, "embedding")["job"] is None


def test_visitors_from_elsewhere_start_no_fit(public: TestClient, model):
    assert public.post("/api/map/fit", json={"space": "memory"}).status_code == 403
    assert public.get(f"/api/map/{model}/memory").status_code == 200


@pytest.mark.parametrize("path", ["map/{}/dreams", "slots/{}/dreams/1", "slots/{}"])
def test_wrong_questions_are_refused(client: TestClient, model, path: str):
    assert client.get(f"/api/{path.format(model)}").status_code == 422


def test_a_model_that_is_not_open(client: TestClient):
    for path in ("map/nobody/memory", "slots/nobody/memory/1", "slots/nobody?words=a"):
        assert "not open here" in client.get(f"/api/{path}").json()["error"]["text"]
