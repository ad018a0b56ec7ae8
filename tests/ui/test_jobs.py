"""Jobs, giving a memory and publishing, over HTTP."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from browser.answers import opened, write_job
from browser.pictures import photo
from fastapi.testclient import TestClient

from memssl_core import paths

TINY = "random:test_vit"


def test_jobs_are_told_in_changes(client: TestClient):
    assert client.get("/api/jobs").status_code == 204
    first, second = write_job("remember", step=1, total=3), write_job("remember", step=0, total=3)
    told = client.get("/api/jobs").json()["jobs"]
    assert {job["id"] for job in told} == {first.path.name, second.path.name}
    revs = {job["id"]: job["rev"] for job in told}
    known = ",".join(job["rev"] for job in told)
    assert client.get(f"/api/jobs?known={known}").status_code == 204
    second.write_status("running", step=2, total=3)
    changed = {job["id"]: job for job in client.get(f"/api/jobs?known={known}").json()["jobs"]}
    assert changed[first.path.name] == {"id": first.path.name, "rev": revs[first.path.name]}
    assert changed[second.path.name]["step"] == 2


def test_a_job_is_stopped_read_and_forgotten_by_its_name_alone(client: TestClient):
    job = write_job("remember")
    (job.path / "log.txt").write_text("x" * 5000 + "the end")
    assert client.get(f"/api/jobs/{job.path.name}/log").json()["text"].endswith("the end")
    assert "still running" in client.post(f"/api/jobs/{job.path.name}/forget", json={}).json()["error"]["text"]
    assert client.post(f"/api/jobs/{job.path.name}/stop", json={}).json() == {}
    assert job.stop_requested() and client.get("/api/jobs").json()["jobs"][0]["stopping"]
    job.write_status("stopped")
    client.post(f"/api/jobs/{job.path.name}/forget", json={})
    assert not job.path.exists()
    (paths.home() / "elsewhere").mkdir()
    for name in ("..", "%2e%2e", "..%2felsewhere", "locks"):
        assert client.get(f"/api/jobs/{name}/log").status_code in (404, 405), name


def test_what_a_job_has_made_can_be_opened_and_its_uploads_go(client: TestClient):
    folder = paths.home() / "uploads" / "abc"
    folder.mkdir(parents=True)
    result = str(paths.bundles_dir() / "mine")
    write_job("remember", "finished", result=result, facts={"uploads": str(folder)})
    write_job("remember", "failed", message="None of the pictures could be read.", facts={"uploads": str(paths.home())})
    write_job("publish", "finished", result="https://huggingface.co/ada/mine")
    write_job("publish", "finished", result="javascript:alert(1)")
    told = {job["id"]: job for job in client.get("/api/jobs").json()["jobs"]}
    assert told["remember-0"]["opens"] == "bundle:mine" and not folder.exists()
    assert "opens" not in told["remember-1"] and "could be read" in told["remember-1"]["message"]
    assert told["publish-2"]["link"].endswith("ada/mine") and "link" not in told["publish-3"]
    assert paths.home().exists()  # nothing but a folder of uploads is removed


# Give it a memory


def wish(client: TestClient, **data) -> dict:
    return {"model": client.get("/api/facts").json()["model"]["handle"], "data": data}


def test_what_a_memory_needs_is_said_beforehand(client: TestClient):
    asked = wish(client, kind="folder", root="photos", path="")
    need = client.post("/api/remember/need", json=asked).json()
    assert need["pictures"] == need["slots"] == 3 and 0 < need["seconds"] < 60
    assert 100_000 < need["nbytes"] < 10_000_000 and need["name"] == "vit_tiny_patch16_224-photos"
    drawn = client.post("/api/remember/need", json=wish(client, kind="drawn", count=500) | {"slots": 100}).json()
    assert (drawn["pictures"], drawn["slots"]) == (500, 100)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"kind": "folder", "root": "photos", "path": "../.."}, "not there"),
        ({"kind": "folder", "root": "/", "path": "etc"}, "not there"),
        ({"kind": "folder", "root": "photos", "path": "empty"}, "no pictures"),
        ({"kind": "folder", "root": "photos", "path": "linked"}, "leads out"),
        ({"kind": "drawn", "count": 0}, "another count"),
        ({"kind": "drawn", "count": 10**9}, "another count"),
        ({"kind": "hub", "name": "no/name --flag"}, "no name of a data set"),
        ({"kind": "hub", "name": "../../etc"}, "no name of a data set"),
        ({"kind": "uploads", "count": 201}, "1 to 200"),
    ],
)
def test_pictures_that_cannot_be_used_are_a_sentence(client: TestClient, photos: Path, data: dict, words: str):
    (photos / "empty").mkdir()
    (photos / "linked").mkdir()
    (photos / "linked" / "a.png").symlink_to("/etc/hostname")
    answer = client.post("/api/remember/need", json=wish(client, **data)).json()
    assert words in answer["error"]["text"] and str(photos) not in str(answer)


def test_a_memory_is_given_by_a_job(client: TestClient, photos: Path, started: list):
    asked = wish(client, kind="folder", root="photos", path="trip") | {"name": "trip-1", "slots": 2}
    assert client.post("/api/remember", json=asked).json() == {"job": "remember-0"}
    (job,) = started
    verb, source, *flags = job["argv"]
    told = dict(zip(flags[::2], flags[1::2], strict=True))
    assert verb == "remember" and source.startswith("bundle:") and told["--data"] == str(photos / "trip")
    assert told["--out"] == str(paths.bundles_dir() / "trip-1") and told["--slots"] == "2"
    for name in ("", "../x", "a/b", ".hidden", "-x", "a b", "x" * 81):
        assert "another one" in client.post("/api/remember", json=asked | {"name": name}).json()["error"]["text"], name
    (paths.bundles_dir() / "trip-1").mkdir(parents=True)
    assert "already" in client.post("/api/remember", json=asked).json()["error"]["text"]
    assert len(started) == 1


def test_uploaded_pictures_are_collected_in_a_folder_of_their_own(client: TestClient, started: list):
    uploads = []
    for seed, name in enumerate(("../../a.png", "a.png", ".hidden.png")):
        file = io.BytesIO()
        photo(40, 40, seed).save(file, "PNG")
        (path,) = client.post("/gradio_api/upload", files={"files": ("a.png", file.getvalue())}).json()
        uploads.append({"path": path, "name": name})
    asked = wish(client, kind="uploads", count=3, uploads=uploads) | {"name": "mine"}
    assert client.post("/api/remember", json=asked).json() == {"job": "remember-0"}
    folder = Path(started[0]["argv"][3])
    assert folder.parent == paths.home() / "uploads" and started[0]["facts"]["uploads"] == str(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["000-a.png", "001-a.png", "002-.hidden.png"]
    stolen = wish(client, kind="uploads", count=1, uploads=[{"path": "/etc/hostname", "name": "a.png"}])
    assert "did not arrive" in client.post("/api/remember", json=stolen | {"name": "x"}).json()["error"]["text"]
    assert Path("/etc/hostname").exists() and len(started) == 1


# Publish


def test_what_would_be_sent_is_listed_first(client: TestClient, started: list, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    asked = {"model": client.get("/api/facts").json()["model"]["handle"], "repo": "ada/small"}
    plan = client.post("/api/publish/plan", json=asked).json()
    names = [name for name, _ in plan["files"]]
    assert {"config.json", "model.safetensors", "memory.parquet", "README.md"} <= set(names) and plan["private"]
    assert (
        "HF_TOKEN" in plan["obstacle"] and "HF_TOKEN" in client.post("/api/publish", json=asked).json()["error"]["text"]
    )
    assert "OWNER/NAME" in client.post("/api/publish/plan", json=asked | {"repo": "small"}).json()["error"]["text"]
    tiny = opened(client, TINY)["model"]
    assert not tiny["publishable"]
    refused = client.post("/api/publish/plan", json=asked | {"model": tiny["handle"]}).json()
    assert "Only a bundle" in refused["error"]["text"] and not started
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "secret-token")
    assert client.post("/api/publish", json=asked).json() == {"job": "publish-0"}
    client.post("/api/publish", json=asked | {"private": False})
    (private, public) = [job["argv"] for job in started]
    assert private[2:] == ["--repo", "ada/small"] and public[2:] == ["--repo", "ada/small", "--public"]
    assert "secret-token" not in str(started)
