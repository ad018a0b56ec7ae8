"""The routes and endpoints of the whole app, over HTTP without a browser."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from browser.pictures import Upload, photo, upload
from browser.small_bundle import write_small_bundle
from fastapi.testclient import TestClient
from gradio.utils import get_upload_folder
from PIL import Image

from analysis.map import pca_map
from analysis.update import encoder_of, update_gallery
from memssl_core import paths
from memssl_core.paths import without_folders
from ui import wire
from ui.attention import show
from ui.context import Context, told
from ui.page import build

HERE = "http://127.0.0.1:7860"


@pytest.fixture
def client(ready: Future, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    with TestClient(build(ready, source="small"), base_url=HERE) as client:
        yield client


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Context]:
    """The contexts that `build` makes."""
    contexts: list[Context] = []
    monkeypatch.setattr("ui.page.Context", lambda *given: contexts.append(Context(*given)) or contexts[-1])
    return contexts


def call(client: TestClient, name: str, *data: object) -> list:
    """An endpoint as curl would call it: post, then read the one event."""
    started = client.post(f"/gradio_api/call/{name}", json={"data": data})
    assert started.status_code == 200, started.text
    text = client.get(f"/gradio_api/call/{name}/{started.json()['event_id']}").text
    assert "event: complete" in text, text
    return json.loads(text.rpartition("data: ")[2])


def send(client: TestClient, file: Upload) -> dict:
    (path,) = client.post("/gradio_api/upload", files={"files": (file["name"], file["buffer"])}).json()
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def test_pictures_travel_shrunk_and_once(client: TestClient):
    first = client.get("/api/picture/rocket")
    assert first.headers["content-type"] == "image/jpeg" and "private" in first.headers["cache-control"]
    assert Image.open(io.BytesIO(first.content)).size == (640, 427)
    again = client.get("/api/picture/rocket", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304 and not again.content
    small = Image.open(io.BytesIO(client.get("/api/picture/rocket?size=tray").content))
    assert max(small.size) == 128
    assert client.get("/api/picture/rocket?size=huge").status_code == 422


def test_attention_bytes_and_npz(ready: Future, made: list[Context]):
    with TestClient(build(ready, source="small"), base_url=HERE) as client:
        key = show(made[0], (), {"ask": "maps", "handle": "coffee", "query": "cls", "size": 32})["key"]
        answer = client.get(f"/api/attention/{key}")
        rows = wire.unpack(answer.content)[0]["rows"]
        assert answer.headers["etag"] == f'"{key}"' and rows.shape[:2] == (3, 3)
        saved = np.load(io.BytesIO(client.get(f"/api/attention/{key}/npz").content))
        np.testing.assert_array_equal(saved["rows"], rows)


@pytest.mark.parametrize(
    "path",
    [
        "picture/nobody",
        "attention/0",
        "attention/0/npz",
        "matches/0",
        "matches/0/npz",
        "rollout/0",
        "pca/0",
        "pca/0/npz",
        "neighbours/0",
        "thumb/nobody/0",
    ],
)
def test_what_is_not_there_is_said(client: TestClient, path: str):
    answer = client.get(f"/api/{path}")
    assert answer.status_code == 410 and len(answer.json()["error"]) > 20


def test_thumbnails(client: TestClient):
    model = client.get("/api/facts").json()["model"]["handle"]
    answer = client.get(f"/api/thumb/{model}/0")
    assert answer.status_code == 200 and Image.open(io.BytesIO(answer.content)).size == (48, 48)
    for slot in (63, 64, -1, 10**30):  # noise; outside
        assert client.get(f"/api/thumb/{model}/{slot}").status_code == 404


def test_endpoint_attention(client: TestClient):
    image = send(client, upload(photo(64, 48), "a.png", "PNG"))
    file, summary = call(client, "attention", image, None, -2, "7", 64, None)
    saved = np.load(io.BytesIO(client.get(f"/gradio_api/file={file['path']}").content))
    assert saved["rows"].shape == (3, 1, 1 + 8 * 6) and saved["grid"].tolist() == [6, 8] and saved["n_prefix"] == 1
    np.testing.assert_allclose(saved["rows"].sum(-1), 1, rtol=1e-5)
    assert summary["layers"] == [1]


def test_endpoint_neighbours_and_card(client: TestClient):
    image = send(client, upload(photo(64, 48), "a.png", "PNG"))
    (rows,) = call(client, "neighbours", image, "memory", 3, None)
    assert len(rows) == 3 and set(rows[0]) == {"id", "score", "image_id", "uri", "class_name", "step", "box"}
    (card,) = call(client, "model_card", None)
    assert card["memory_slots"] == 64 and card["name"] == "small"
    assert (
        call(client, "model_card", "small")
        == [card]
        == call(client, "model_card", card["model_hash"][:12] + "-" + card["bundle_hash"][:8])
    )


def test_endpoint_search(client: TestClient, context: Context, tmp_path: Path):
    workbench = context.workbench()
    for seed in range(4):
        photo(64, 48, seed).save(tmp_path / f"{seed}.png")
    made = update_gallery("mine", str(tmp_path), encoder_of(workbench.model))
    assert made is not None
    image = send(client, {"name": "2.png", "mimeType": "image/png", "buffer": (tmp_path / "2.png").read_bytes()})
    (rows,) = call(client, "search", image, "mine", 3, None)
    assert [row["rank"] for row in rows] == [1, 2, 3] and rows[0]["uri"] == "2.png" and rows[0]["score"] > 0.999
    (rows,) = call(client, "search", image, None, 3, None)
    (neighbours,) = call(client, "neighbours", image, "memory", 3, None)
    assert [row["id"] for row in rows] == [row["id"] for row in neighbours]


def test_endpoint_map_points(client: TestClient, context: Context):
    for space in ("memory", "embedding"):
        file, told = call(client, "map_points", space, None)
        table = pq.read_table(io.BytesIO(client.get(f"/gradio_api/file={file['path']}").content))
        slots, rows = context.workbench().slots(space)
        assert table["slot"].to_pylist() == slots.tolist() and told == {"method": "pca", "space": space}
        np.testing.assert_array_equal(np.stack([table["x"], table["y"]], 1), pca_map(rows))
        assert set(table["cluster"].to_pylist()) == {-1} and table["uri"][5].as_py() == "drawn:0:16#5"


def test_endpoints_serve_what_the_picker_lists_and_is_cached(client: TestClient):
    write_small_bundle(paths.bundles_dir() / "mine", seed=3)
    (by_name,) = call(client, "model_card", "bundle:mine")
    (small,) = call(client, "model_card", "small")
    assert by_name["model_hash"] != small["model_hash"]
    image = send(client, upload(photo(64, 48), "a.png", "PNG"))
    (mine,), (own,) = (call(client, "neighbours", image, "memory", 3, model) for model in ("bundle:mine", None))
    assert [row["score"] for row in mine] != [row["score"] for row in own]


def test_endpoints_say_what_is_wrong(client: TestClient):
    def error(name: str, *data: object) -> str:
        started = client.post(f"/gradio_api/call/{name}", json={"data": data}).json()
        return client.get(f"/gradio_api/call/{name}/{started['event_id']}").text

    for path in (__file__, "/etc/passwd", "http://127.0.0.1:9/a.png"):
        foreign = {"path": path, "meta": {"_type": "gradio.FileData"}}
        assert "did not arrive" in error("attention", foreign, None, -1, "cls", None, None)
        assert not list(Path(get_upload_folder()).rglob(Path(path).name))  # nor has Gradio brought it in
    for model in ("random:vit_giant", "timm:resnet18.a1_in1k", "bundle:/srv/mine", "0123456789ab"):
        assert "not served here" in error("model_card", model)
    for gallery, k in (("nobody", 3), ("../x", 3), (None, 0), (None, 10**9)):
        told = error("search", send(client, upload(photo(64, 48), "a.png", "PNG")), gallery, k, None)
        assert "event: error" in told and "went wrong" not in told and str(paths.home()) not in told
    image = send(client, upload(photo(64, 48), "a.png", "PNG"))
    assert "ask for at most" in error("neighbours", image, "memory", 10**9, None)


def test_only_the_named_endpoints_are_public(client: TestClient):
    assert set(client.get("/gradio_api/info").json()["named_endpoints"]) == {
        "/attention",
        "/heads",
        "/pca",
        "/compare",
        "/match",
        "/neighbours",
        "/search",
        "/map_points",
        "/model_card",
    }


def test_health_is_told_in_every_state(ready: Future, client: TestClient):
    assert client.get("/healthz").json() == {"state": "ready"}
    starting, failed = Future(), Future()
    failed.set_exception(RuntimeError("no weights in /srv"))
    for opening, state in ((starting, "starting"), (failed, "failed")):
        with TestClient(build(opening, source="embedded"), base_url=HERE) as other:
            assert other.get("/healthz").json() == {"state": state}
            assert "/srv" not in other.get("/api/facts").text
            assert other.get("/api/picture/astronaut").status_code == 200


def test_one_guard_for_gradio_and_our_routes(ready: Future):
    with TestClient(build(ready, source="small", login=lambda request: None), base_url=HERE) as client:
        for path in ("/config", "/gradio_api/info", "/api/facts", "/api/picture/astronaut", "/api/attention/0",
                     "/api/attention/0/npz", "/api/matches/0", "/api/matches/0/npz", "/api/neighbours/0",
                     "/api/rollout/0", "/api/pca/0", "/api/pca/0/npz", "/api/probes?model=0", "/api/probe/drawn/0",
                     "/api/checkpoints",
                     "/api/thumb/0/0", "/api/models", "/api/open/0",
                     "/api/jobs", "/api/jobs/0/log", "/api/folders?root=a"):  # fmt: skip
            assert client.get(path).status_code == 401, path
        for path in ("open", "open/0/cancel", "jobs/0/stop", "jobs/0/forget", "remember", "remember/need", "publish"):
            assert client.post(f"/api/{path}", json={}).status_code == 401, path
        assert client.post("/gradio_api/upload", files={"files": ("a.png", b"")}).status_code == 401
        assert client.get("/healthz").status_code == 200
    with TestClient(
        build(ready, source="small", login=lambda request: request.headers.get("user")), base_url=HERE
    ) as client:
        for path in ("/config", "/api/facts"):
            assert client.get(path, headers={"user": "ada"}).status_code == 200, path


def test_visitors_from_elsewhere_see_no_folders():
    assert without_folders("bundle:/srv/models/mine") == "bundle:mine" and without_folders("/srv/models/mine") == "mine"
    for source in ("random:vit_tiny_patch16_224@3", "hub:ada/mine@v1", "embedded"):
        assert without_folders(source) == source


def test_an_address_leads_back_to_its_source(ready: Future):
    here, elsewhere = paths.bundles_dir() / "mine", "/srv/models/mine"
    for public, source, expected in (
        (False, f"bundle:{here}", "bundle:mine"),  # the picker's name for a bundle that was made here
        (False, f"bundle:{elsewhere}", f"bundle:{elsewhere}"),
        (True, f"bundle:{elsewhere}", "bundle:mine"),
        (False, f"run:{paths.runs_dir().absolute()}/first", "run:first"),
        (False, "hub:ada/mine@v1", "hub:ada/mine@v1"),
    ):
        assert told(Context("small", ready, public=public), source) == expected
