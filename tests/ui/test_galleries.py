"""Galleries over HTTP: what is told of them, making them, and who may."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser.answers import write_job
from browser.pictures import photo, upload
from browser.run_folders import routes_of
from fastapi.testclient import TestClient

from analysis import cli
from analysis.gallery import Gallery, open_gallery
from analysis.update import encoder_of, update_gallery
from memssl_core import jobs, paths
from memssl_core.jobs import JobFolder
from ui.context import Context
from ui.data import Data
from ui.jobs import uploads_dir
from ui.updates import free_name


@pytest.fixture
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    (tmp_path / "uploads").mkdir()
    return tmp_path / "uploads"


@pytest.fixture
def context(ready: Future, photos: Path, uploads: Path) -> Context:
    return Context("small", ready, roots={"photos": photos})


@pytest.fixture
def client(context: Context) -> TestClient:
    return routes_of(context)


@pytest.fixture
def public(ready: Future, photos: Path) -> TestClient:
    return routes_of(Context("small", ready, public=True, roots={"photos": photos}))


TRIP = {"kind": "folder", "root": "photos", "path": "trip"}


def made(context: Context, name: str = "trip", data: str | None = None, **changed: str) -> Gallery:
    folder = data or str(context.roots["photos"] / "trip")
    gallery = update_gallery(name, folder, replace(encoder_of(context.workbench().model), **changed))
    assert gallery is not None
    return gallery


def listed(client: TestClient) -> dict[str, dict]:
    return {one["name"]: one for one in client.get("/api/galleries").json()["galleries"]}


def sent(folder: Path, name: str, data: bytes, number: int = 0) -> dict:
    """A file as Gradio keeps an upload, and what the page then says of it."""
    path = folder / f"{number}" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return {"path": str(path), "name": name}


def picture(seed: int = 0) -> bytes:
    return upload(photo(64, 48, seed), "a.png", "PNG")["buffer"]


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/") + ".png", data)
    return file.getvalue()


# What is told


def test_the_list_says_how_each_stands(client: TestClient, context: Context, photos: Path):
    (photos / "trip" / "text.png").write_text("no picture")
    made(context)
    made(context, "theirs", model_hash="another", source="hub:ada/theirs")
    made(context, "drawn", "drawn:0:4")
    found = listed(client)
    trip, theirs = found["trip"], found["theirs"]
    assert list(found) == ["drawn", "theirs", "trip"] and trip["finished"] and not trip["problem"]
    assert (trip["pictures"], trip["rows"], trip["skipped"], trip["data"]) == (3, 3, 1, "photos/trip")
    assert trip["fits"] and trip["originals"] and trip["from"] == TRIP and trip["index"] is None and trip["bytes"] > 0
    assert not theirs["fits"] and theirs["source"] == theirs["model"] == "hub:ada/theirs"
    assert found["drawn"]["from"] == {"kind": "drawn", "count": 4}
    assert len({one["rev"] for one in found.values()}) == 3
    told = client.get("/api/galleries/trip/skipped").json()
    assert told["count"] == 1 and told["skipped"][0]["path"] == "text.png" and "not a picture" in str(told)
    assert str(photos) not in client.get("/api/galleries").text
    for path in ("nobody/skipped", "nobody/classes", "..%2ftrip/classes", "%00/classes", "nobody/oddities"):
        answer = client.get(f"/api/galleries/{path}")
        assert answer.status_code == 404 or len(answer.json()["error"]["text"]) > 20, path


def test_an_unfinished_and_a_damaged_one_are_listed_and_can_go(client: TestClient, context: Context, public):
    gallery = made(context)
    (gallery.folder / "vectors.npy").write_bytes(b"damaged")
    halted = encoder_of(context.workbench().model)
    update_gallery("half", str(context.roots["photos"]), halted, should_stop=lambda: True)
    found = listed(client)
    assert not found["half"]["finished"] and found["half"]["from"] == {"kind": "folder", "root": "photos", "path": ""}
    assert "damaged" in client.get("/api/galleries/trip/classes").json()["error"]["text"]
    assert "half" not in listed(public)
    for name in ("half", "trip"):
        assert client.post(f"/api/galleries/{name}/delete", json={}).json() == {}
    assert listed(client) == {} and (context.roots["photos"] / "trip" / "0.png").exists()
    assert "no gallery" in client.post("/api/galleries/trip/delete", json={}).json()["error"]["text"]


def test_thumbnails_and_pictures(client: TestClient, context: Context):
    made(context)
    rev = listed(client)["trip"]["rev"]
    small = client.get(f"/api/galleries/trip/thumb/1?rev={rev}")
    assert small.headers["content-type"] == "image/webp" and small.content == open_gallery("trip").thumbnail(1)
    again = client.get(f"/api/galleries/trip/thumb/1?rev={rev}", headers={"If-None-Match": small.headers["etag"]})
    assert again.status_code == 304
    large = client.get(f"/api/galleries/trip/picture/1?rev={rev}")
    assert large.headers["content-type"] == "image/jpeg"
    (context.roots["photos"] / "trip" / "1.png").unlink()
    gone = client.get(f"/api/galleries/trip/picture/1?rev={rev}")
    assert gone.status_code == 404 and "not there any more; update the gallery" in gone.json()["error"]
    for kind in ("thumb", "picture"):
        for row in (3, -1, 10**30):
            answer = client.get(f"/api/galleries/trip/{kind}/{row}?rev={rev}")
            assert answer.status_code == 410 and "search again" in answer.json()["error"]
        assert client.get(f"/api/galleries/trip/{kind}/1?rev=other").status_code == 410
        assert client.get(f"/api/galleries/nobody/{kind}/1").status_code == 410
    for seed in (1, 9):
        photo(64, 48, seed).save(context.roots["photos"] / "trip" / f"{seed}.png")
    update_gallery("trip", None, encoder_of(context.workbench().model))
    assert listed(client)["trip"]["rev"] != rev
    assert client.get(f"/api/galleries/trip/thumb/0?rev={rev}").status_code == 200  # of results still on screen
    (context.roots["photos"] / "trip" / "0.png").unlink()
    update_gallery("trip", None, encoder_of(context.workbench().model))
    assert context.shelves.gallery("trip").thumbnail(0)  # it goes when the parts are written anew
    assert client.get("/api/galleries/trip/thumb/0").status_code == 410


def test_pictures_outside_the_declared_folders_are_not_read(client: TestClient, context: Context, tmp_path: Path):
    shutil.copytree(context.roots["photos"], tmp_path / "private")
    made(context, "private", str(tmp_path / "private" / "trip"))
    (context.roots["photos"] / "out").symlink_to(tmp_path / "private" / "trip")
    made(context, "linked", str(context.roots["photos"] / "out"))
    for name in ("private", "linked"):
        assert (listed(client)[name]["from"], listed(client)[name]["originals"]) == (None, False)
        assert client.get(f"/api/galleries/{name}/thumb/0").status_code == 200
        assert client.get(f"/api/galleries/{name}/picture/0").status_code == 404
        for route in ("need", "update"):
            answer = client.post(f"/api/galleries/{route}", json={"name": name, "data": None}).json()
            assert "say again of which" in answer["error"]["text"]


def test_odd_pictures_come_first(client: TestClient, context: Context, monkeypatch: pytest.MonkeyPatch):
    gallery = made(context, "drawn", "drawn:0:30")
    told = client.get("/api/galleries/drawn/oddities?k=5").json()
    rows = gallery.vectors.astype(np.float32)
    scores = rows @ rows.T
    np.fill_diagonal(scores, -2)
    means = np.sort(scores, 1)[:, -5:].mean(1)
    assert [one["id"] for one in told["oddities"]] == np.argsort(means, kind="stable").tolist()
    assert [one["score"] for one in told["oddities"]] == pytest.approx(np.sort(means).tolist(), abs=1e-5)
    assert (told["judged"], told["total"]) == (30, 30) and told["oddities"][0]["thumb"]
    monkeypatch.setattr("analysis.search.oddities", None)  # it is not looked for again
    assert client.get("/api/galleries/drawn/oddities?k=5").json() == told
    assert "neighbours" in client.get("/api/galleries/drawn/oddities?k=1000").json()["error"]["text"]
    monkeypatch.setattr("ui.galleries.JUDGED_UP_TO", 29)
    assert "at most 29" in client.get("/api/galleries/drawn/oddities").json()["error"]["text"]


def test_classes_are_those_of_the_folders(client: TestClient, context: Context, photos: Path):
    (photos / "home").mkdir()
    shutil.copy(photos / "trip" / "0.png", photos / "home" / "0.png")
    made(context, data=str(photos))
    assert client.get("/api/galleries/trip/classes").json() == {"classes": ["home", "trip"], "more": 0}


# Making one


def test_what_it_takes_is_said_before(client: TestClient, context: Context, photos: Path):
    told = client.post("/api/galleries/need", json={"data": TRIP}).json()
    assert (told["name"], told["pictures"], told["new"], told["gone"], told["problems"]) == ("trip", 3, 3, 0, [])
    assert told["seconds"] > 0 and told["ram_bytes"] > 0 and told["disk_bytes"] > 0
    assert told["command"].startswith(f"python -m analysis gallery trip --data {photos}/trip --model bundle:")
    assert not paths.galleries_dir().exists()  # nothing was made
    made(context)
    (photos / "trip" / "0.png").unlink()
    (photos / "trip" / "1.png").rename(photos / "trip" / "moved.png")
    photo(64, 48, 9).save(photos / "trip" / "new.png")
    told = client.post("/api/galleries/need", json={"name": "trip", "data": None}).json()
    assert (told["pictures"], told["new"], told["moved"], told["gone"]) == (3, 1, 1, 2)
    assert client.post("/api/galleries/need", json={"data": TRIP}).json()["name"] == "trip-2"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"kind": "folder", "root": "photos", "path": "../.."}, "not there"),
        ({"kind": "folder", "root": "/", "path": "etc"}, "not there"),
        ({"kind": "folder", "root": "photos", "path": "empty"}, "no pictures"),
        ({"kind": "folder", "root": "photos", "path": "out"}, "not there"),
        ({"kind": "folder", "root": "photos", "path": "linked"}, "leads out"),
        ({"kind": "folder", "root": "photos", "path": "a.parquet"}, "not there"),
        ({"kind": "zip", "root": "photos", "path": "../a.zip"}, "not there"),
        ({"kind": "zip", "root": "photos", "path": "out.zip"}, "not there"),
        ({"kind": "zip", "root": "photos", "path": "bad.zip"}, "not a zip file"),
        ({"kind": "zip", "uploads": [{"path": "/etc/hostname", "name": "a.zip"}]}, "did not arrive"),
        ({"kind": "uploads", "uploads": [{"path": "/etc/hostname", "name": "a.png"}]}, "did not arrive"),
        ({"kind": "uploads"}, "No picture has arrived"),
        ({"kind": "hub", "name": "ada/pictures"}, "python -m analysis gallery"),
        ({"kind": "drawn", "count": 10**9}, "another count"),
    ],
)
def test_pictures_that_cannot_be_used_are_a_sentence(client: TestClient, photos: Path, started, data: dict, words: str):
    (photos / "empty").mkdir()
    (photos / "linked").mkdir()
    (photos / "linked" / "a.png").symlink_to("/etc/hostname")
    (photos / "out").symlink_to("/etc")
    (photos / "bad.zip").write_bytes(b"no archive")
    (photos.parent / "private.zip").write_bytes(zipped(a=picture()))
    (photos / "out.zip").symlink_to(photos.parent / "private.zip")
    answer = client.post("/api/galleries/need", json={"data": data}).json()
    assert words in answer["error"]["text"] and str(photos) not in str(answer)
    if "no pictures" not in words and "leads out" not in words and "zip file" not in words:
        assert words in client.post("/api/galleries/update", json={"data": data}).json()["error"]["text"]
        assert not started


def test_an_update_is_a_job(client: TestClient, context: Context, photos: Path, started: list):
    assert client.post("/api/galleries/update", json={"data": TRIP, "name": "mine"}).json() == {
        "job": "gallery-0",
        "name": "mine",
    }
    (job,) = started
    source = context.workbench().model.source
    assert job["argv"] == ["gallery", "mine", "--data", f"{photos}/trip", "--model", source, "--device", "cpu"]
    assert job["module"] == "analysis" and job["kind"] == "gallery" and job["facts"]["gallery"] == "mine"
    again = client.post("/api/galleries/update", json={"data": TRIP, "name": "mine"}).json()
    assert again["job"] == "gallery-0" and len(started) == 1
    answer = client.get("/api/galleries").json()
    assert answer["live"] == {"mine": "gallery-0"} and answer["galleries"] == []
    assert free_name(Data(kind="folder", root="mine")) == "mine-2"
    other = {"data": {"kind": "drawn", "count": 5}, "name": "mine"}
    assert "being updated just now" in client.post("/api/galleries/update", json=other).json()["error"]["text"]
    assert "stop that job" in client.post("/api/galleries/mine/delete", json={}).json()["error"]["text"]
    (folder,) = jobs.find()
    folder.write_status("failed", message=f"None of {photos}/trip can be read.")
    assert client.get("/api/galleries").json()["problems"] == {"mine": "None of photos/trip can be read."}
    assert client.post("/api/galleries/update", json=other).json()["job"] == "gallery-1"
    JobFolder(paths.jobs_dir() / "gallery-1").write_status("finished", result="mine")
    (told, *_) = client.get("/api/jobs").json()["jobs"]
    assert told["gallery"] == "mine" and client.get("/api/galleries").json()["problems"] == {}


def test_of_two_who_ask_at_once_one_starts_it(client: TestClient, started: list):
    asked = {"data": TRIP, "name": "mine"}
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: client.post("/api/galleries/update", json=asked).json(), range(4)))
    assert answers == [{"job": "gallery-0", "name": "mine"}] * 4 and len(started) == 1


def test_what_speaks_against_it_is_said(client: TestClient, context: Context, started: list, monkeypatch):
    made(context, "theirs", model_hash="another")
    asked = {"data": TRIP, "name": "theirs"}
    for route in ("need", "update"):
        assert "embed the gallery again" in client.post(f"/api/galleries/{route}", json=asked).json()["error"]["text"]
        for name in ("../x", "a b", ".a", "a/b", "x" * 81, "-x", "é", "a\n"):
            answer = client.post(f"/api/galleries/{route}", json=asked | {"name": name}).json()
            assert answer["field"] == "name" and "cannot name a gallery" in answer["error"]["text"], name
        assert client.post(f"/api/galleries/{route}", json={"data": {"kind": "disk"}}).status_code == 422
        assert client.post(f"/api/galleries/{route}", json={"data": None}).json()["field"] == "name"
        assert "not open here" in str(client.post(f"/api/galleries/{route}", json={"data": TRIP, "model": "x"}).json())
    assert client.post("/api/galleries/need", json=asked | {"again": True}).json()["new"] == 3
    assert client.post("/api/galleries/update", json=asked | {"again": True}).json()["name"] == "theirs"
    assert started[0]["argv"][-1] == "--again"
    monkeypatch.setattr("analysis.models.Models.open", lambda self, source: "another")
    answer = client.post("/api/galleries/update", json={"data": TRIP}).json()
    assert "has changed since it was opened" in answer["error"]["text"] and len(started) == 1


def test_uploads_are_looked_at_where_they_lie_and_move_when_it_begins(
    client: TestClient, uploads: Path, started: list, context: Context
):
    names = ["../../a.png", "a.png", "<b>.png", "text.png"]
    files = [sent(uploads, f"{i}.png", picture(i) if i < 3 else b"text", i) | {"name": names[i]} for i in range(4)]
    data = {"kind": "uploads", "uploads": files}
    told = client.post("/api/galleries/need", json={"data": data}).json()
    assert (told["name"], told["new"], told["command"]) == ("uploads", 4, "")
    assert sorted(path.name for path in uploads.iterdir()) == ["0", "1", "2", "3"]
    asked = {"data": data, "name": "mine"}
    assert client.post("/api/galleries/update", json=asked).json() == {"job": "gallery-0", "name": "mine"}
    assert client.post("/api/galleries/update", json=asked).json() == {"job": "gallery-0", "name": "mine"}  # twice
    folder = Path(started[0]["argv"][3])
    assert folder.parent == paths.home() / "uploads" and started[0]["facts"]["uploads"] == str(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["000-a.png", "001-a.png", "002-<b>.png", "003-text.png"]
    made(context, "mine", str(folder))
    jobs.find()[0].write_status("finished", result="mine")
    client.get("/api/jobs")
    assert not folder.exists()
    mine = listed(client)["mine"]
    assert mine["data"] == "uploads, which are not kept" and mine["from"] is None and not mine["originals"]
    assert (mine["pictures"], mine["skipped"]) == (3, 1)
    assert client.get("/api/galleries/mine/picture/0").status_code == 404
    assert client.get("/api/galleries/mine/thumb/0").status_code == 200


def test_uploads_of_a_job_that_cannot_start_do_not_stay(client: TestClient, uploads: Path, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr("ui.updates.jobs.start", broken)
    file = sent(uploads, "a.png", picture()) | {"name": "\N{DOG FACE}" * 90 + ".png"}  # 364 bytes
    wish = {"data": {"kind": "uploads", "uploads": [file]}}
    assert client.post("/api/galleries/need", json=wish).json()["pictures"] == 1
    assert "error" in client.post("/api/galleries/update", json=wish).json()
    assert not list(uploads_dir().iterdir())


def test_an_archive_comes_from_a_root_or_as_an_upload(
    client: TestClient, context: Context, photos: Path, uploads: Path, started: list
):
    (photos / "trip" / "Best of.ZIP").write_bytes(zipped(a__1=picture(1), b__2=picture(2)))
    told = client.get("/api/folders?root=photos&path=trip").json()
    assert told["archives"] == ["Best of.ZIP"]
    here = {"kind": "zip", "root": "photos", "path": "trip/Best of.ZIP"}
    need = client.post("/api/galleries/need", json={"data": here}).json()
    assert (need["name"], need["pictures"]) == ("Best-of", 2)
    made(context, "best", str(photos / "trip" / "Best of.ZIP"))
    assert listed(client)["best"]["from"] == here and client.get("/api/galleries/best/picture/1").status_code == 200
    assert client.post("/api/galleries/need", json={"name": "best", "data": None}).json()["new"] == 0
    hostile = sent(uploads, "x.zip", zipped(**{"..__..__evil": picture(3), "good": picture(4)}))
    data = {"kind": "zip", "uploads": [hostile]}
    need = client.post("/api/galleries/need", json={"data": data}).json()
    assert (need["name"], need["pictures"], need["skipped"]) == ("x", 1, 1)
    client.post("/api/galleries/update", json={"data": data})
    archive = Path(started[0]["argv"][3])
    assert archive.name == "x.zip" and started[0]["facts"]["uploads"] == str(archive.parent)
    assert archive.parent.parent == paths.home() / "uploads" and archive.is_file()
    for wrong in ([sent(uploads, "a.png", picture(), 7)], [sent(uploads, f"{i}.zip", zipped(a=b""), i) for i in "89"]):
        answer = client.post("/api/galleries/update", json={"data": {"kind": "zip", "uploads": wrong}, "name": "two"})
        assert "one archive" in answer.json()["error"]["text"]


def test_the_job_that_is_started_makes_the_gallery(client: TestClient, context: Context, started: list):
    client.post("/api/galleries/update", json={"data": TRIP, "name": "mine"})
    (job,) = jobs.find()
    assert cli.main([*started[0]["argv"], "--job", str(job.path)]) == 0
    assert listed(client)["mine"]["pictures"] == 3 and (job.status() or {})["result"] == "mine"
    assert client.get("/api/jobs").json()["jobs"][0]["gallery"] == "mine"
    assert client.get("/api/galleries").json()["live"] == {}


def test_names_are_made_of_what_a_person_chose():
    for data, name in (
        ({"kind": "folder", "root": "photos"}, "photos"),
        ({"kind": "folder", "root": "photos", "path": "a/été à la mer"}, "t-la-mer"),
        ({"kind": "folder", "root": "été"}, "t"),
        ({"kind": "folder", "root": "é"}, "gallery"),
        ({"kind": "zip", "root": "photos", "path": "a/b.zip"}, "b"),
        ({"kind": "zip", "uploads": [{"path": "x", "name": "../../etc.zip"}]}, "etc"),
        ({"kind": "drawn", "count": 3}, "drawn"),
        ({"kind": "folder", "root": "x" * 200}, "x" * 60),
    ):
        assert free_name(Data(**data)) == name


# Who may


def test_visitors_from_elsewhere_search_and_nothing_more(
    public: TestClient, context: Context, photos: Path, started: list
):
    made(context)
    write_job("gallery", facts={"gallery": "trip"})
    answer = public.get("/api/galleries").json()
    (told,) = answer["galleries"]
    assert set(told) == {"name", "rev", "finished", "fits", "pictures"} and told["fits"]
    assert answer["live"] == answer["problems"] == {}
    for path in ("trip/thumb/0", "trip/classes"):
        assert public.get(f"/api/galleries/{path}").status_code == 200, path
    odd = json.dumps(public.get("/api/galleries/trip/oddities").json())
    assert "photos" not in odd and "trip/0" not in odd.replace("api/galleries/trip/thumb", "")
    for path in ("trip/picture/0", "trip/skipped"):
        assert public.get(f"/api/galleries/{path}").status_code == 403, path
    for path in ("need", "update", "trip/delete"):
        assert public.post(f"/api/galleries/{path}", json={"data": TRIP}).status_code == 403, path
    assert not started and open_gallery("trip")


def test_a_login_stands_before_all_of_it(context: Context):
    client = routes_of(context, login=lambda request: None)
    for path in ("galleries", "galleries/a/thumb/0", "galleries/a/picture/0", "galleries/a/classes", "classes/a",
                 "galleries/a/skipped", "galleries/a/oddities", "found/a", "walked/a", "explained/a"):  # fmt: skip
        assert client.get(f"/api/{path}").status_code == 401, path
    for path in ("galleries/need", "galleries/update", "galleries/a/delete", "found/a/export"):
        assert client.post(f"/api/{path}", json={}).status_code == 401, path
