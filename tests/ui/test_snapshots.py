"""Snapshots of a run over HTTP: the film, the map on fixed axes, pictures, and files that cannot be read."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser.run_folders import routes_of, write_run
from fastapi.testclient import TestClient

from memssl_core.training.snapshots import Snapshot, write
from ui import wire
from ui.context import Context, Training

SLOTS, DIM, PICTURES, RECALLED = 12, 8, 2, 3


def snapshot(step: int) -> Snapshot:
    """Each step writes two slots; the first PICTURES slots are recalled."""
    rng = np.random.default_rng(step)
    written = min(2 * step, SLOTS)
    written_at = np.where(np.arange(SLOTS) < written, np.arange(SLOTS) // 2, -1)
    for slot in range(SLOTS, 2 * step):
        written_at[slot % SLOTS] = slot // 2
    rows = rng.normal(size=(SLOTS, DIM)) * [5, 3, *[1] * (DIM - 2)]
    names = tuple(tuple("cat" for _ in range(RECALLED)) for _ in range(PICTURES))
    shape = (PICTURES, RECALLED)
    return Snapshot(
        step=step,
        total=SLOTS,
        cursor=2 * step % SLOTS,
        written=2 * step,
        slots=np.arange(SLOTS),
        vectors=rows.astype(np.float16),
        written_at=written_at,
        image_id=np.where(written_at < 0, -1, 7),
        picture_ids=np.arange(PICTURES),
        pictures=(b"\xff\xd8first", b"RIFFsecond"),
        picture_names=("cat", ""),
        attention=rng.random((PICTURES, 2, 3)).astype(np.float16),
        recalled_slots=np.tile(np.arange(RECALLED), (PICTURES, 1)),
        recalled_scores=np.full(shape, 0.5, np.float32),
        recalled_ids=np.zeros(shape, np.int64),
        recalled_at=np.zeros(shape, np.int64),
        recalled_pictures=((b"RIFFa", b"", b"RIFFc"),) * PICTURES,
        recalled_names=names,
        crops=b"" if step == 0 else b"RIFFcrops",
        crops_views=0 if step == 0 else 4,
    )


@pytest.fixture
def run() -> Path:
    folder = write_run("first", "stopped", step=9).path
    for step in (0, 2, 5, 9):
        write(folder, snapshot(step))
    return folder


@pytest.fixture
def client(ready: Future) -> TestClient:
    return routes_of(Context("small", ready, training=Training()))


def brought(client: TestClient, path: str) -> tuple[dict[str, np.ndarray], dict]:
    answer = client.get(f"/api/runs/first/snapshots/{path}")
    assert answer.status_code == 200, answer.text
    return wire.unpack(answer.content)


def test_the_film_of_a_step(client: TestClient, run: Path):
    arrays, facts = brought(client, "5")
    weights = snapshot(5).attention
    assert weights is not None and (facts["rows"], facts["columns"], facts["pictures"]) == (2, 3, PICTURES)
    for i in range(PICTURES):
        largest = float(weights[i].max())
        assert facts["attention_max"][i] == pytest.approx(largest) and arrays["attention"][i].max() == 255
        np.testing.assert_allclose(arrays["attention"][i] / 255 * largest, weights[i], atol=largest / 500)
    assert facts["recalled"][1][1] == {"slot": 1, "score": 0.5, "name": "cat", "at": 0, "pictured": False}
    assert facts["picture_names"] == ["cat", ""] and facts["has_crops"] and facts["views"] == 4
    assert not brought(client, "0")[1]["has_crops"]
    write(run, replace(snapshot(5), attention=None))
    arrays, facts = brought(client, "5")
    assert "attention" not in arrays and "rows" not in facts


def test_the_map_stays_on_the_axes_of_one_step(client: TestClient, run: Path):
    maps = {step: brought(client, f"{step}/map?axes=9") for step in (0, 2, 5, 9)}
    rows = snapshot(9).vectors.astype(float)  # slowly: by the singular vectors
    directions = np.linalg.svd(rows - rows.mean(0))[2][:2]
    directions *= np.sign(directions[np.arange(2), np.abs(directions).argmax(1)])[:, None]
    low, high = (rows @ directions.T).min(0), (rows @ directions.T).max(0)
    side = 1.1 * (high - low).max()
    for step, (arrays, facts) in maps.items():
        for axis, name in enumerate("xy"):
            middle = (low[axis] + high[axis]) / 2
            at = (snapshot(step).vectors.astype(float) @ directions[axis] - middle) / side + 0.5
            at = np.clip(at if name == "x" else 1 - at, 0, 1)
            np.testing.assert_allclose(arrays[name] / 65_535, at, atol=1e-3)
        assert facts["axes"] == 9 and facts["points"] == SLOTS and arrays["slots"].tolist() == list(range(SLOTS))
    written_at = snapshot(9).written_at
    assert maps[9][0]["age"].tolist() == [round(1 + 254 * (at - 3) / 5) for at in written_at.tolist()]
    assert maps[9][0]["fresh"].tolist() == [int(at >= 5) for at in written_at.tolist()] and maps[9][1]["before"] == 5
    assert maps[2][0]["age"].tolist() == [1, 1, 255, 255] + [0] * 8 and maps[2][0]["fresh"].sum() == 4
    assert not maps[0][0]["age"].any() and not maps[0][0]["fresh"].any()
    brought(client, "0/map?axes=0")  # noise has axes, too


def test_pictures_are_asked_about_again_because_names_are_used_again(client: TestClient, run: Path):
    kinds = {"picture/0": "image/jpeg", "picture/1": "image/webp", "recalled/0/2": "image/webp", "crops": "image/webp"}
    for path, kind in kinds.items():
        answer = client.get(f"/api/runs/first/snapshots/5/{path}")
        assert answer.headers["content-type"] == kind and "no-cache" in answer.headers["cache-control"]
        again = client.get(f"/api/runs/first/snapshots/5/{path}", headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304
    etag = client.get("/api/runs/first/snapshots/5/picture/0").headers["etag"]
    write(run, replace(snapshot(5), pictures=(b"\xff\xd8another", b"RIFFx")))
    other = client.get("/api/runs/first/snapshots/5/picture/0", headers={"If-None-Match": etag})
    assert other.content == b"\xff\xd8another"


@pytest.mark.parametrize(
    "path", ["3", "5/map?axes=3", "3/map?axes=5", "5/picture/2", "5/picture/-1", "5/recalled/0/1", "5/recalled/0/99",
             "5/recalled/9/0", "0/crops", "-1", f"{10**30}", "5/map?axes=-5"]
)  # fmt: skip
def test_what_is_not_there_is_a_sentence(client: TestClient, run: Path, path: str):
    answer = client.get(f"/api/runs/first/snapshots/{path}")
    assert answer.status_code == 404 and answer.json()["error"]["text"].endswith((".", "one."))


def test_a_damaged_snapshot_is_a_sentence(client: TestClient, run: Path):
    (run / "snapshots" / "step-00000005.safetensors").write_bytes(b"garbage")
    for path in ("5", "5/map?axes=9", "9/map?axes=5", "5/picture/0"):
        answer = client.get(f"/api/runs/first/snapshots/{path}")
        assert answer.status_code == 404 and "damaged" in answer.json()["error"]["text"], path
        assert str(run) not in answer.text
    write(run, replace(snapshot(9), vectors=np.ones((SLOTS, 3), np.float16)))
    assert "different memories" in client.get("/api/runs/first/snapshots/2/map?axes=9").json()["error"]["text"]
