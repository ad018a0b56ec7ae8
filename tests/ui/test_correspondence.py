"""What the Correspondence tab and the `match` endpoint answer, without a browser."""

from __future__ import annotations

import io
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from browser.answers import HERE
from browser.pictures import photo, upload
from fastapi.testclient import TestClient
from PIL import Image

from memssl_core.bundle.table import MemoryTable
from memssl_core.data.images import Frame, decode_image
from memssl_core.data.pairs import known_pair
from memssl_core.evaluation.correspondence import true_patches
from ui import wire
from ui.context import Context, handler, open_source
from ui.correspondence import CHECKS, crop_around, pictures_of, remember, show
from ui.page import build
from ui.store import Pictures


def ask(**changed) -> dict[str, Any]:
    plain = {"a": "chelsea", "b": "flower", "check": None, "seed": 0, "facet": "key", "layer": 1, "position": True}
    return plain | {"size": 64} | changed


def answer(context: Context, **changed) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    data = context.results.get(show(context, (), ask(**changed))["key"])
    assert data is not None
    return wire.unpack(data)


def data_of(context: Context, handle: str) -> bytes:
    picture = context.pictures.get(handle)
    assert picture is not None
    return picture.data


@pytest.mark.parametrize("facet, layer, position", [("key", 1, True), ("token", 2, False), ("value", 0, True)])
def test_matches_are_what_the_workbench_says(context: Context, facet: Any, layer: int, position: bool):
    arrays, facts = answer(context, facet=facet, layer=layer, position=position)
    workbench, a, b = context.workbench(), data_of(context, "chelsea"), data_of(context, "flower")
    for rule in ("mutual", "argmax"):
        found = workbench.match(a, b, rule, facet, layer, size=64, position=position)
        np.testing.assert_array_equal(arrays[rule], found.patches)
        np.testing.assert_array_equal(arrays[f"{rule}_scores"], found.scores)
    pair = workbench.pair(a, b, facet, layer, 64, position=position)
    for side, rows in (("a", pair.a), ("b", pair.b)):
        np.testing.assert_allclose(arrays[side], rows / np.linalg.norm(rows, axis=1, keepdims=True), atol=1e-3)
        assert arrays[side].dtype == np.float16
    assert facts["known"] is None and "true" not in arrays
    assert [picture["name"] for picture in facts["pictures"]] == ["chelsea.png", "flower.jpg"]
    fronts = [workbench.foreground(one, 64) for one in (a, b)], pair.foreground_by_pca()
    for i, side in enumerate("ab"):
        np.testing.assert_array_equal(arrays[f"front_{side}"], [fronts[0][i], fronts[1][i]])
    grids = [[facts[f"frame_{side}"][name] for name in ("rows", "columns")] for side in "ab"]
    assert [np.prod(grid) for grid in grids] == [len(arrays["a"]), len(arrays["b"])]


@pytest.mark.parametrize("check", CHECKS)
def test_a_check_knows_what_is_right(context: Context, check: Any):
    arrays, facts = answer(context, check=check, seed=3, b=None)
    made = known_pair(decode_image(data_of(context, "chelsea")), check, 3)
    for told, image in zip(facts["pictures"], (made.a, made.b), strict=True):
        kept = Image.open(io.BytesIO(data_of(context, told["handle"])))
        np.testing.assert_array_equal(np.asarray(kept), np.asarray(image))
    frames = [Frame(**facts[f"frame_{side}"]) for side in "ab"]
    np.testing.assert_array_equal(arrays["true"], true_patches(*frames, made.homography))
    right = arrays["true"][arrays["mutual"][:, 0]]
    seen = right >= 0
    expected = 100 * (right[seen] == arrays["mutual"][seen, 1]).mean()
    assert facts["known"]["mutual"]["acc@0"] == pytest.approx(expected)
    assert facts["known"]["n_valid"] == (arrays["true"] >= 0).sum()
    rows = [arrays[side].astype(np.float32) for side in "ab"]
    nearest = (rows[0] @ rows[1].T).argmax(1)
    valid = arrays["true"] >= 0
    share = 100 * (nearest[valid] == arrays["true"][valid]).mean()
    assert facts["known"]["nearest"]["acc@0"] == pytest.approx(share, abs=3)  # these features are rounded
    assert 0 < facts["known"]["chance"]["acc@0"] < facts["known"]["chance"]["acc@2"] < 100


def test_an_answer_is_computed_once_and_another_question_is_another(context: Context):
    key = show(context, (), ask())["key"]
    context.results.put(key, b"kept")
    assert show(context, (), ask())["key"] == key and context.results.get(key) == b"kept"
    others = [{"b": "coffee"}, {"facet": "query"}, {"layer": 0}, {"position": False}, {"size": 32}]
    others += [{"check": "crops"}, {"check": "crops", "seed": 1}, {"check": "mirror"}]
    assert len({key, *(show(context, (), ask(**other))["key"] for other in others)}) == 9


WRONG = [
    {"a": "somebody else's"}, {"b": None}, {"facet": "soul"}, {"layer": 3}, {"layer": -1}, {"layer": True},
    {"layer": "1"}, {"size": 10**6}, {"check": "twist"}, {"check": ["crops"]}, {"check": "crops", "seed": -1},
    {"check": "crops", "seed": 10**9}, {"check": "crops", "seed": None}, {"model": "nobody's"},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_wrong_question_is_answered_in_a_sentence(context: Context, wrong: dict):
    told = handler(context, show)((), gr.EventData(None, ask(ticket=3, **wrong)))
    assert told["ticket"] == 3 and "key" not in told
    assert len(told["error"]["text"]) > 20 and "Something went wrong" not in told["error"]["title"]


def test_the_memories_of_a_crop_are_those_of_the_crop(context: Context):
    told = remember(context, (), ask(side="b", patch=5))
    image = decode_image(data_of(context, "flower"))
    box = crop_around(context.workbench().features(data_of(context, "flower"), 64)[1], 5)
    found = context.workbench().neighbours(image.crop(box), k=8)
    assert [row["slot"] for row in told["rows"]] == found.ids.tolist() and told["space"] == "memory"
    assert [edge * side for edge, side in zip(told["box"], image.size * 2, strict=True)] == pytest.approx(box)
    made = remember(context, (), ask(check="homography", seed=2, side="b", patch=0))
    assert len(made["rows"]) == 8
    for wrong in ({"patch": 10**6}, {"patch": -1}, {"patch": "0"}, {"side": "c"}, {"side": None}):
        spoken = handler(context, remember)((), gr.EventData(None, ask(side="a", patch=0) | wrong))
        assert "not on the picture" in spoken["error"]["text"], wrong


def test_the_crop_is_that_of_the_layer_that_is_shown(tmp_path: Path):
    """The cells of a convolutional model's stages differ in size."""
    opened = open_source("random:resnet10t", "cpu")
    workbench = opened.models[opened.handle]
    model = replace(workbench.model, memory=resnet_memory())
    workbench.model = model
    workbench.model.card.update(memory_slots=8, has_embeddings=True)
    ready: Future = Future()
    ready.set_result(opened)
    context = Context("resnet", ready)
    for layer in (2, 4):
        frame = workbench.features(data_of(context, "chelsea"), 176, facet="token", layer=layer)[1]
        for patch in (0, frame.rows * frame.columns - 1):
            told = remember(context, (), ask(side="a", patch=patch, layer=layer, size=176))
            x, y = frame.centre_of(patch)
            x0, y0, x1, y1 = told["box"]
            assert x0 <= (x + 0.5) / frame.width <= x1 and y0 <= (y + 0.5) / frame.height <= y1, (layer, patch)


def resnet_memory() -> MemoryTable:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(8, 512))
    return MemoryTable(
        vectors=rows / np.linalg.norm(rows, axis=1, keepdims=True), cursor=0, written=8, image_id=np.arange(8),
        uri=["a"] * 8, label=np.zeros(8), class_name=["a"] * 8, step=np.arange(8), box=np.zeros((8, 4)),
        thumbnails=[b""] * 8,
    )  # fmt: skip


def test_checks_throw_out_no_upload_and_go_with_their_picture(context: Context, monkeypatch: pytest.MonkeyPatch):
    pictures = Pictures(max_bytes=4_000_000, max_made_bytes=4_000_000)
    others = pictures.add(upload(photo(320, 240, 1), "others.png", "PNG")["buffer"], "others.png")
    mine = pictures.add(upload(photo(320, 240, 2), "mine.png", "PNG")["buffer"], "mine.png")
    object.__setattr__(context, "pictures", pictures)
    made = [pictures_of(context, (mine.handle,), ask(a=mine.handle, check="crops", seed=seed)) for seed in range(20)]
    assert pictures.get(others.handle) and pictures.get(mine.handle)
    assert pictures.get(made[0].a.handle) is None and pictures.get(made[-1].b.handle) is made[-1].b
    monkeypatch.setattr("ui.store.decode_image", None)  # a check that is kept is not made again
    assert pictures_of(context, (mine.handle,), ask(a=mine.handle, check="crops", seed=19)) is made[-1]
    pictures.drop((mine.handle,))
    assert pictures.get(made[-1].a.handle) is None and pictures.get(others.handle)


@pytest.mark.parametrize("width, height", [(200, 100), (100, 200), (9, 9), (640, 16)])
def test_the_crop_lies_inside_and_holds_its_patch(width: int, height: int):
    frame = Frame(width, height, 4, 8, 8, 64 / width, 32 / height)
    for patch in range(32):
        left, top, right, bottom = crop_around(frame, patch)
        assert 0 <= left < right <= width and 0 <= top < bottom <= height and right - left == bottom - top
        x, y = frame.centre_of(patch)
        assert left <= x + 0.5 <= right and top <= y + 0.5 <= bottom


def test_bytes_and_npz_over_http(ready: Future, monkeypatch: pytest.MonkeyPatch):
    contexts: list[Context] = []
    monkeypatch.setattr("ui.page.Context", lambda *given: contexts.append(Context(*given)) or contexts[-1])
    with TestClient(build(ready, source="small"), base_url=HERE) as client:
        key = show(contexts[0], (), ask())["key"]
        arrays, _ = wire.unpack(client.get(f"/api/matches/{key}").content)
        saved = np.load(io.BytesIO(client.get(f"/api/matches/{key}/npz").content))
        for name, array in arrays.items():
            np.testing.assert_array_equal(saved[name], array)
        assert saved["grid_a"].prod() == len(arrays["a"]) and saved["grid_b"].prod() == len(arrays["b"])


def test_the_endpoint_gives_points_and_scores(context: Context, ready: Future, tmp_path, monkeypatch):
    from tests.ui.test_routes import call, send

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    files = [upload(photo(96, 64, seed), f"{seed}.png", "PNG") for seed in range(2)]
    with TestClient(build(ready, source="small"), base_url=HERE) as client:
        (told,) = call(client, "match", *(send(client, file) for file in files), None, "argmax", "value", 1, 5, 64)
    found = context.workbench().match(files[0]["buffer"], files[1]["buffer"], "argmax", "value", 1, 5, 64)
    assert told == found.summary() and len(told["scores"]) == 5


OTHER_KINDS = [{"n": "abc"}, {"n": 1.5}, {"layer": "x"}, {"size": [1]}, {"model": ["x"]}, {"rule": "best"}]


@pytest.mark.parametrize("wrong", OTHER_KINDS, ids=str)
def test_values_of_another_kind_are_named(context: Context, ready: Future, tmp_path, monkeypatch, wrong: dict):
    from tests.ui.test_routes import send

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    with TestClient(build(ready, source="small"), base_url=HERE) as client:
        image = send(client, upload(photo(64, 64), "a.png", "PNG"))
        plain = {"image_a": image, "image_b": image, "model": None, "rule": "mutual", "facet": None, "layer": None}
        plain |= {"n": 5, "size": 32}
        begun = client.post("/gradio_api/call/match", json={"data": list((plain | wrong).values())}).json()
        text = client.get(f"/gradio_api/call/match/{begun['event_id']}").text
    assert next(iter(wrong)) in text and "log names it" not in text and "Traceback" not in text
