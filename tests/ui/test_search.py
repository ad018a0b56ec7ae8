"""What the tab Search answers, without a browser."""

from __future__ import annotations

import csv
import io
import json
import shutil
import zipfile
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from browser.pictures import photo, turned, upload
from browser.run_folders import routes_of
from fastapi.testclient import TestClient
from PIL import Image

from analysis import Gallery, Workbench
from analysis.gallery import delete_gallery, open_gallery
from analysis.search import great_circle, groups, less_like, mean_of
from analysis.update import encoder_of, update_gallery
from memssl_core import paths
from memssl_core.bundle.table import MemoryTable
from memssl_core.errors import MemsslError, ModelError
from ui import wire
from ui.context import Context, handler
from ui.search import show


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Class folders a and b of four pictures each, two of b nearly those of a, one with EXIF; a copy in each."""
    root = tmp_path / "album"
    for name in "ab":
        (root / name).mkdir(parents=True)
    for seed in range(4):
        photo(96, 64, seed).save(root / "a" / f"{seed}.png")
        photo(64, 96, 10 + seed).save(root / "b" / f"{seed}.png")
    (root / "b" / "turned.jpg").write_bytes(turned(photo(96, 64, 20))["buffer"])
    photo(96, 64, 0).resize((90, 60)).save(root / "b" / "almost.png")
    shutil.copy(root / "a" / "1.png", root / "b" / "copy of 1.png")
    return root


@pytest.fixture
def mine(ready: Future, album: Path) -> Context:
    """A page that may read the album, of which there is the gallery `mine`."""
    context = Context("small", ready, roots={"album": album})
    assert update_gallery("mine", str(album), encoder_of(context.workbench().model))
    return context


@pytest.fixture
def workbench(mine: Context) -> Workbench:
    return mine.workbench()


GALLERY = {"kind": "gallery", "name": "mine"}
MEMORY = {"kind": "memory", "space": "memory"}
EMBEDDING = {"kind": "memory", "space": "embedding"}


def result(context: Context, asked: dict[str, Any], visit: tuple[str, ...] = ()) -> dict[str, Any]:
    return json.loads(context.results.get(show(context, visit, asked)["key"]) or b"")


@dataclass(frozen=True, eq=False)
class Rows:
    """The least of what is searched."""

    vectors: np.ndarray
    index = None

    def keep(self) -> None:
        return None


def ask(place: dict, *queries: dict, **more: Any) -> dict[str, Any]:
    return {"ask": "search", "place": place, "queries": list(queries), "k": 8, **more}


def added(context: Context, path: Path) -> str:
    return context.pictures.add(path.read_bytes(), path.name).handle


def unit_rows(gallery: Gallery) -> np.ndarray:
    rows = gallery.vectors.astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def best(rows: np.ndarray, query: np.ndarray, k: int) -> list[int]:
    return np.argsort(-(rows @ (query / np.linalg.norm(query))), kind="stable")[:k].tolist()


def test_a_picture_of_the_gallery_finds_itself_first(mine: Context, album: Path):
    handle = added(mine, album / "a" / "1.png")
    told = result(mine, ask(GALLERY, {"handle": handle}, k=200), (handle,))
    first = told["results"][0]
    assert first["score"] > 0.999 and first["paths"] == ["a/1.png", "b/copy of 1.png"] and first["more_paths"] == 0
    assert (first["width"], first["height"], first["class_name"]) == (96, 64, "a")
    assert told["total"] == told["kept"] == len(told["results"]) == 10 and told["exact"] and told["recall"] is None
    assert told["query"] == "1.png" and not told["combined"] and told["place"]["name"] == "mine"
    scores = [one["score"] for one in told["results"]]
    assert scores == sorted(scores, reverse=True)


def test_results_are_those_of_brute_force_in_every_space(mine: Context, workbench: Workbench):
    gallery, chelsea = open_gallery("mine"), mine.pictures.get("chelsea")
    assert chelsea is not None
    embedding, projection = workbench.embedding(chelsea.data), workbench.projection(chelsea.data)
    told = result(mine, ask(GALLERY, {"handle": "chelsea"}))
    assert [one["id"] for one in told["results"]] == best(unit_rows(gallery), embedding, 8)
    for place, query in ((MEMORY, projection), (EMBEDDING, embedding)):
        slots, rows = workbench.slots(place["space"])
        told = result(mine, ask(place, {"handle": "chelsea"}))
        assert [one["id"] for one in told["results"]] == slots[best(rows, query, 8)].tolist()
        assert told["total"] == 62 and {"image_id", "step"} <= told["results"][0].keys()


def test_a_result_searches_again_anywhere(mine: Context, workbench: Workbench):
    gallery, memory = open_gallery("mine"), workbench.model.memory
    assert memory is not None and memory.embeddings is not None
    found = result(mine, ask(GALLERY, {"handle": "chelsea"}))
    row = found["results"][3]["id"]
    again = result(mine, ask(found["place"], {"id": row}))
    assert again["results"][0]["id"] == row and again["query"] == gallery.uri(row).rpartition("/")[2]
    slots, rows = workbench.slots("embedding")
    elsewhere = result(mine, ask(EMBEDDING, {"id": row, "place": found["place"]}))
    assert [one["id"] for one in elsewhere["results"]] == slots[best(rows, unit_rows(gallery)[row], 8)].tolist()
    slots, rows = workbench.slots("memory")
    projected = result(mine, ask(MEMORY, {"id": row, "place": found["place"]}))  # of the picture itself
    query = workbench.projection(gallery.original(row))
    assert [one["id"] for one in projected["results"]] == slots[best(rows, query, 8)].tolist()
    of_slot = result(mine, ask(GALLERY, {"id": 5, "place": MEMORY}))
    assert [one["id"] for one in of_slot["results"]] == best(unit_rows(gallery), memory.embeddings[5], 8)
    assert result(mine, ask(MEMORY, {"id": 5}))["results"][0]["id"] == 5


def test_pictures_are_combined_and_turned_away_from(mine: Context, workbench: Workbench):
    rows = unit_rows(open_gallery("mine"))
    pictures = [mine.pictures.get(name) for name in ("chelsea", "rocket", "coffee")]
    a, b, c = (workbench.embedding(picture.data) for picture in pictures if picture)
    queries = [{"handle": "chelsea"}, {"handle": "rocket"}]
    told = result(mine, ask(GALLERY, *queries))
    assert told["combined"] and [one["id"] for one in told["results"]] == best(rows, mean_of([a, b]), 8)
    told = result(mine, ask(GALLERY, *queries, less=[{"handle": "coffee"}]))
    assert [one["id"] for one in told["results"]] == best(rows, less_like(mean_of([a, b]), [c]), 8)
    assert "−" in told["query"] and told["combined"]


def test_filters_say_how_many_pass(mine: Context):
    told = result(mine, ask(GALLERY, {"handle": "chelsea"}, class_name="a"))
    assert told["kept"] == len(told["results"]) == 4 and {one["class_name"] for one in told["results"]} == {"a"}
    told = result(mine, ask(GALLERY, {"handle": "chelsea"}, words="COPY"))
    assert told["kept"] == 1 and told["total"] == 10 and "copy of 1" in str(told["results"][0]["paths"])
    told = result(mine, ask(MEMORY, {"handle": "chelsea"}, class_name="fish", k=200))
    assert {one["class_name"] for one in told["results"]} == {"fish"} and told["kept"] == len(told["results"])
    with pytest.raises(ModelError, match="change the filters"):
        show(mine, (), ask(GALLERY, {"handle": "chelsea"}, class_name="c"))


def test_near_duplicates_are_grouped(mine: Context, workbench: Workbench):
    slots, rows = workbench.slots("memory")
    told = result(mine, ask(MEMORY, {"handle": "drawn-1"}, k=40))
    scores = rows @ rows.T
    np.fill_diagonal(scores, -1)
    assert told["duplicate"] == pytest.approx(max(0.98, 1 - (1 - np.median(scores.max(1))) / 3), abs=1e-6)
    mine.shelves._thresholds[mine.shelves.memory(workbench, "memory")] = 0.9
    told = result(mine, ask(MEMORY, {"handle": "drawn-1"}, k=41))
    vectors = rows[[slots.tolist().index(one["id"]) for one in told["results"]]]
    reached = np.linalg.matrix_power((vectors @ vectors.T >= 0.9).astype(float), 41) > 0
    assert len(told["groups"]) > 1 and all(len(group) > 1 for group in told["groups"])
    for rank, one in enumerate(told["results"]):
        assert one["group"] == np.flatnonzero(reached[rank])[0]
    assert [group[0] for group in told["groups"]] == sorted({group[0] for group in told["groups"]})


def test_where_all_are_alike_few_are_near_duplicates(context: Context):
    rng = np.random.default_rng(0)
    for spread, expected in ((0.02, False), (1.0, True)):  # around one direction, in all directions
        rows = np.eye(1, 32) + spread * rng.standard_normal((400, 32))
        rows[1] = rows[0] + 1e-3 * rows[0, ::-1]
        rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        threshold = context.shelves.duplicate(Rows(rows))  # type: ignore[arg-type]
        assert (threshold == 0.98) is expected
        assert [len(group) for group in groups(rows, threshold) if len(group) > 1] == [2]
    assert context.shelves.duplicate(Rows(rows[:1])) == 0.98  # type: ignore[arg-type]


def test_a_walk_leads_along_the_great_circle(mine: Context, workbench: Workbench):
    a, b = (mine.pictures.get(name) for name in ("chelsea", "rocket"))
    assert a and b
    asked = {"ask": "walk", "place": GALLERY, "a": {"handle": "chelsea"}, "b": {"handle": "rocket"}, "n": 5}
    told = result(mine, asked)
    angles, _ = great_circle(workbench.embedding(a.data), workbench.embedding(b.data), 5)
    assert told["angle"] == pytest.approx(np.degrees(angles[-1]), abs=1e-3)
    assert [point["at"] for point in told["points"]] == [0, 0.25, 0.5, 0.75, 1]
    assert len({point["id"] for point in told["points"]}) == 5 and all(point["thumb"] for point in told["points"])
    with pytest.raises(ModelError, match="fewer steps"):
        show(mine, (), {**asked, "n": 24})


def test_an_explanation_is_the_cosine_of_each_patch(mine: Context, workbench: Workbench):
    gallery, chelsea = open_gallery("mine"), mine.pictures.get("chelsea")
    found = result(mine, ask(GALLERY, {"handle": "chelsea"}))
    row = found["results"][0]["id"]
    asked = {"ask": "explain", "place": found["place"], "queries": [{"handle": "chelsea"}], "id": row}
    arrays, facts = wire.unpack(mine.results.get(show(mine, (), asked)["key"]) or b"")
    assert chelsea is not None
    query = workbench.embedding(chelsea.data)
    cells, frame = workbench.features(gallery.original(row), size=max(facts["rows"], facts["columns"]) * 8)
    expected = [[cell @ query / np.linalg.norm(cell) / np.linalg.norm(query) for cell in line] for line in cells]
    np.testing.assert_allclose(arrays["heat"], expected, atol=2e-3)
    assert (facts["low"], facts["high"]) == (arrays["heat"].min(), arrays["heat"].max())
    assert facts["original"] and facts["picture"] == found["results"][0]["picture"]
    assert (facts["frame"]["width"], facts["frame"]["height"]) == (facts["width"], facts["height"])
    slot = {**asked, "place": MEMORY, "id": 5}
    _, facts = wire.unpack(mine.results.get(show(mine, (), slot)["key"]) or b"")
    assert not facts["original"] and facts["picture"].startswith("api/thumb/") and facts["width"] == 48


def test_a_gallery_that_was_updated_answers_old_ids_while_it_is_kept(mine: Context, album: Path, workbench: Workbench):
    old = result(mine, ask(GALLERY, {"handle": "chelsea"}))
    photo(96, 64, 99).save(album / "a" / "new.png")
    update_gallery("mine", None, encoder_of(workbench.model))
    new = result(mine, ask(old["place"], {"id": old["results"][0]["id"]}))
    assert new["total"] == 11 and new["place"]["rev"] != old["place"]["rev"]
    mine.shelves.forget("mine")
    with pytest.raises(ModelError, match="updated since"):
        show(mine, (), ask(old["place"], {"id": old["results"][1]["id"]}))
    delete_gallery("mine")
    update_gallery("mine", str(album), encoder_of(workbench.model))  # its first state has the same number again
    assert result(mine, ask(GALLERY, {"handle": "chelsea"}))["place"]["rev"] not in (
        old["place"]["rev"],
        new["place"]["rev"],
    )


def test_a_gallery_of_another_model_is_not_searched(mine: Context, album: Path, workbench: Workbench):
    other = replace(encoder_of(workbench.model), model_hash="another")
    update_gallery("theirs", str(album), other)
    with pytest.raises(ModelError, match="not by this model"):
        show(mine, (), ask({"kind": "gallery", "name": "theirs"}, {"handle": "chelsea"}))


WRONG = [
    {"ask": "dream"}, {"ask": None}, {"ask": ["search"]}, {"place": None}, {"place": {"kind": "disk"}},
    {"place": {"kind": "memory", "space": "dreams"}}, {"queries": []}, {"queries": [{"handle": "chelsea"}] * 9},
    {"queries": [{}]}, {"queries": [{"handle": "chelsea", "id": 1}]}, {"queries": [{"id": "1"}]},
    {"queries": [{"id": -1}]}, {"queries": [{"id": True}]}, {"queries": [{"id": 10**30}]}, {"queries": "chelsea"},
    {"queries": [{"handle": "somebody else's"}]}, {"queries": [{"id": 10}]}, {"queries": [{"id": 63, "place": MEMORY}]},
    {"k": 0}, {"k": 201}, {"k": "8"}, {"k": 8.5}, {"less": [{"handle": "chelsea"}] * 9}, {"exact": "yes"},
    {"class_name": "x" * 301}, {"words": "x" * 301}, {"class_name": 7}, {"model": "nobody"}, {"model": 7},
    {"place": {"kind": "gallery", "name": "nobody"}}, {"place": {"kind": "gallery", "name": "../mine"}},
    {"place": {"kind": "gallery", "name": "mine", "rev": "0"}, "queries": [{"id": 1}]},
    {"place": {"kind": "gallery", "name": ""}}, {"place": {"kind": "gallery", "name": "a\0"}},
]  # fmt: skip


def test_a_wrong_question_is_a_sentence(mine: Context):
    for wrong in WRONG:
        answer = handler(mine, show)((), gr.EventData(None, ask(GALLERY, {"handle": "chelsea"}, ticket=3) | wrong))
        assert answer["ticket"] == 3 and "key" not in answer, wrong
        text = answer["error"]["text"]
        assert len(text) > 20 and "went wrong" not in answer["error"]["title"], (wrong, answer)
        assert str(paths.home()) not in text


def test_uploads_are_those_of_the_visit(mine: Context, album: Path):
    handle = added(mine, album / "a" / "1.png")
    assert result(mine, ask(GALLERY, {"handle": handle}), (handle,))["results"]
    with pytest.raises(MemsslError, match="no longer kept"):  # though the very answer is there
        show(mine, (), ask(GALLERY, {"handle": handle}))


# Over HTTP


def test_results_travel_and_are_taken_away(mine: Context, album: Path):
    client = routes_of(mine)
    (album / "a" / "=1+1.png").write_bytes(upload(photo(2400, 40, 50), "x.png", "PNG")["buffer"])
    update_gallery("mine", None, encoder_of(mine.workbench().model))
    key = show(mine, (), ask(GALLERY, {"handle": "chelsea"}, k=200))["key"]
    told = client.get(f"/api/found/{key}").json()
    assert client.get(f"/api/found/{key}", headers={"If-None-Match": f'"{key}"'}).status_code == 304
    for one in told["results"]:
        small = Image.open(io.BytesIO(client.get(f"/{one['thumb']}").content))
        large = Image.open(io.BytesIO(client.get(f"/{one['picture']}").content))
        assert max(small.size) <= 256 and not small.getexif() and not large.getexif() and max(large.size) <= 2048
        assert abs(one["width"] * large.height - one["height"] * large.width) <= max(one["width"], one["height"])
    take = lambda **asked: client.post(f"/api/found/{key}/export", json=asked)
    rows = list(csv.DictReader(io.StringIO(take().text)))
    assert [float(row["score"]) for row in rows] == pytest.approx([one["score"] for one in told["results"]])
    assert not any(cell.startswith("=") for row in rows for cell in row.values()) and rows[0]["query"] == told["query"]
    ids = [one["id"] for one in told["results"][2:4]]
    with zipfile.ZipFile(io.BytesIO(take(kind="zip", ids=ids).content)) as file:
        assert file.namelist() == ["found.csv", "0001.webp", "0002.webp"]
    with zipfile.ZipFile(io.BytesIO(take(kind="zip", pictures=True, ids=ids).content)) as file:
        assert file.namelist() == ["found.csv", "0001.jpg", "0002.jpg"]
    assert take(kind="exe").status_code == take(ids=["x"]).status_code == 422
    other = show(mine, (), {"ask": "walk", "place": GALLERY, "a": {"id": 1}, "b": {"id": 2}, "n": 3})["key"]
    for wrong in (other, "0" * 32, "..", "x"):
        assert client.post(f"/api/found/{wrong}/export", json={}).status_code in (404, 410), wrong


def test_a_search_reads_no_pictures_of_a_memory(mine: Context, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(MemoryTable, "thumbnail", None)  # of a checkpoint it would read the original
    assert all(one["thumb"] for one in result(mine, ask(MEMORY, {"handle": "chelsea"}))["results"])


def test_results_of_a_memory_are_taken_away(mine: Context):
    client, key = routes_of(mine), show(mine, (), ask(MEMORY, {"id": 3}))["key"]
    with zipfile.ZipFile(
        io.BytesIO(client.post(f"/api/found/{key}/export", json={"kind": "zip", "pictures": True}).content)
    ) as file:
        assert len(file.namelist()) == 9 and file.namelist()[1] == "0001.jpg"
    handle = mine.opened().handle
    names = client.get(f"/api/classes/{handle}").json()
    assert "fish" in names["classes"] and names["classes"] == sorted(names["classes"]) and names["more"] == 0
    assert "not open here" in client.get("/api/classes/nobody").json()["error"]["text"]


def test_visitors_from_elsewhere_see_last_names_and_thumbnails(mine: Context, ready: Future, album: Path):
    public = Context("small", ready, public=True, roots={"album": album})
    client: TestClient = routes_of(public)
    key = show(public, (), ask(GALLERY, {"handle": "chelsea"}))["key"]
    told = client.get(f"/api/found/{key}").json()
    assert {one["uri"] for one in told["results"]} <= {path.name for path in album.rglob("*.*")}
    assert all(one["paths"] == [] and one["picture"] is None and one["more_paths"] == 0 for one in told["results"])
    assert str(album) not in str(told) and "a/" not in client.post(f"/api/found/{key}/export", json={}).text
    first = told["results"][0]
    assert client.get(f"/{first['thumb']}").status_code == 200
    assert client.get(f"/{first['thumb'].replace('thumb', 'picture')}").status_code == 403
    with pytest.raises(ModelError, match="Paths are not shown"):
        show(public, (), ask(GALLERY, {"handle": "chelsea"}, words="a/"))
    asked = {"ask": "explain", "place": told["place"], "queries": [{"handle": "chelsea"}], "id": first["id"]}
    _, facts = wire.unpack(public.results.get(show(public, (), asked)["key"]) or b"")
    assert not facts["original"] and facts["picture"] == first["thumb"]
    with zipfile.ZipFile(
        io.BytesIO(client.post(f"/api/found/{key}/export", json={"kind": "zip", "pictures": True}).content)
    ) as file:
        assert all(name.endswith((".webp", ".csv")) for name in file.namelist())
