"""What the panel of principal components answers, without a browser."""

from __future__ import annotations

import io
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from browser.pictures import photo, turned, upload
from browser.run_folders import routes_of
from fastapi.testclient import TestClient
from PIL import Image
from sklearn.decomposition import PCA

from tests.ui.test_routes import HERE, call, send
from ui import wire
from ui.beside import show
from ui.context import Context, handler, open_source
from ui.page import build


def ask(**changed) -> dict[str, Any]:
    plain = {"ask": "pca", "a": "chelsea", "b": None, "facet": "token", "layer": 2, "size": 96, "foreground": False}
    return plain | changed


def answer(context: Context, **changed) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    data = context.results.get(show(context, (), ask(**changed))["key"])
    assert data is not None
    return wire.unpack(data)


def features(context: Context, handle: str, size: int, **which: Any) -> np.ndarray:
    picture = context.pictures.get(handle)
    assert picture is not None
    cells, _ = context.workbench().features(picture.data, size, **which)
    return cells.reshape(-1, cells.shape[2]).astype(np.float64)


@pytest.mark.parametrize("facet, layer, b", [("token", 2, None), ("key", 1, "flower"), ("value", 0, "chelsea")])
def test_components_are_those_of_both_pictures_together(context: Context, facet: str, layer: int, b: str | None):
    arrays, facts = answer(context, facet=facet, layer=layer, b=b)
    sides = {"a": "chelsea"} | ({"b": b} if b else {})
    rows = [features(context, handle, 96, facet=facet, layer=layer) for handle in sides.values()]
    known = PCA(3, svd_solver="full").fit(np.concatenate(rows))
    np.testing.assert_allclose(facts["explained"], known.explained_variance_ratio_, rtol=1e-3)
    told = np.concatenate([arrays[f"components_{side}"] for side in sides])
    for mine, theirs in zip(told.T, known.transform(np.concatenate(rows)).T, strict=True):
        assert abs(np.corrcoef(mine, theirs)[0, 1]) > 0.999
    for side, of in zip(sides, rows, strict=True):
        frame = facts[f"frame_{side}"]
        assert len(of) == frame["rows"] * frame["columns"] == len(arrays[f"front_{side}"])
        assert arrays[f"colours_{side}"].shape == (len(of), 3) and arrays[f"front_{side}"].all()
    assert {f"{name}_{side}" for name in ("colours", "front", "components") for side in sides} == {*arrays}
    assert [picture["handle"] for picture in facts["pictures"]] == list(sides.values())


def test_the_background_is_black(context: Context):
    arrays, facts = answer(context, b="flower", foreground=True)
    for side in "ab":
        front = arrays[f"front_{side}"].astype(bool)
        assert not arrays[f"colours_{side}"][~front].any() and facts["foreground"]
    assert 0 < arrays["front_a"].sum() + arrays["front_b"].sum() < len(arrays["front_a"]) + len(arrays["front_b"])


def test_an_answer_is_computed_once_and_another_question_is_another(context: Context):
    key = show(context, (), ask())["key"]
    context.results.put(key, b"kept")
    assert show(context, (), ask())["key"] == key and context.results.get(key) == b"kept"
    others = [{"b": "chelsea"}, {"facet": "key"}, {"layer": 0}, {"size": 64}, {"foreground": True}, {"a": "flower"}]
    assert len({key, *(show(context, (), ask(**other))["key"] for other in others)}) == 7


WRONG = [
    {"ask": "maps"}, {"ask": None}, {"a": None}, {"a": "somebody else's"}, {"b": "somebody else's"}, {"b": ""},
    {"b": 0}, {"facet": "soul"}, {"facet": ["key"]}, {"facet": None}, {"layer": 3}, {"layer": -1}, {"layer": True},
    {"layer": "1"}, {"size": 97}, {"size": 10**6}, {"size": True}, {"size": [96]}, {"model": "nobody's"},
    {"model": [1]},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_wrong_question_is_answered_in_a_sentence(context: Context, wrong: dict):
    told = handler(context, show)((), gr.EventData(None, ask(ticket=3) | wrong))
    assert told["ticket"] == 3 and "key" not in told
    assert len(told["error"]["text"]) > 20 and "Something went wrong" not in told["error"]["title"]


def test_a_picture_of_another_visit_is_not_shown(context: Context):
    mine = context.pictures.add(upload(photo(64, 48), "a.png", "PNG")["buffer"], "a.png").handle
    for asked in (ask(a=mine), ask(b=mine)):
        assert "key" in handler(context, show)((mine,), gr.EventData(None, asked))
        assert "no longer kept" in handler(context, show)((), gr.EventData(None, asked))["error"]["text"]


def test_a_feature_map_has_colours_too():
    ready: Future = Future()
    ready.set_result(open_source("random:resnet10t", "cpu"))
    arrays, facts = answer(Context("resnet", ready), layer=3, size=176)
    assert facts["frame_a"]["rows"] * facts["frame_a"]["columns"] == len(arrays["colours_a"])


def test_bytes_and_npz_over_http(context: Context):
    client = routes_of(context)
    for b in (None, "flower"):
        key = show(context, (), ask(b=b))["key"]
        arrays, facts = wire.unpack(client.get(f"/api/pca/{key}").content)
        saved = np.load(io.BytesIO(client.get(f"/api/pca/{key}/npz").content))
        for name, array in arrays.items():
            np.testing.assert_array_equal(saved[name], array)
        assert ("grid_b" in saved) == (b is not None)
        assert saved["grid_a"].tolist() == [facts["frame_a"]["rows"], facts["frame_a"]["columns"]]
    for path in ("pca/0", "pca/0/npz", "matches/0/npz"):
        assert client.get(f"/api/{path}").status_code == 410


def test_the_endpoint_gives_a_picture_and_the_numbers(context: Context, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    files = [turned(photo(96, 64, 1)), upload(photo(64, 96, 2), "b.png", "PNG")]
    with TestClient(build(context.opening, source="small"), base_url=HERE) as client:
        sent = [send(client, file) for file in files]
        for b in (None, sent[1]):
            told = call(client, "pca", sent[0], b, None, "key", -2, 64, True)
            sheet, numbers = (client.get(f"/gradio_api/file={one['path']}").content for one in told)
            image, saved = Image.open(io.BytesIO(sheet)), np.load(io.BytesIO(numbers))
            assert image.format == "PNG" and not image.getexif() and b"GPS" not in sheet
            found = context.workbench().pca(
                *(file["buffer"] for file in files[: 2 if b else 1]), facet="key", layer=1, size=64, foreground=True
            )
            np.testing.assert_array_equal(saved["colours_a"], found.colours_a.reshape(-1, 3))
            np.testing.assert_allclose(saved["explained"], found.explained, rtol=1e-5)
            assert ("components_b" in saved) == (b is not None) and saved["grid_a"].tolist() == [8, 5]
        begun = client.post("/gradio_api/call/pca", json={"data": [sent[0], None, None, "soul", -1, 64, False]}).json()
        assert "facet" in client.get(f"/gradio_api/call/pca/{begun['event_id']}").text
