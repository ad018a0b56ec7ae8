from __future__ import annotations

import csv
import io
import json
import math
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from data.painting import encoded
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from analysis import cli, search
from analysis.exports import found_csv, found_zip
from analysis.index import IndexFacts, Ivf
from analysis.search import explain, great_circle, groups, less_like, mean_of, memory_rows, oddities, unit, walk
from analysis.update import encoder_of, update_gallery
from memssl_core.data.images import decode_image
from memssl_core.errors import ModelError


def unit_rows(count: int, width: int = 5, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


@dataclass
class Rows:
    """Rows with nothing else; row i is of class i mod 3."""

    vectors: np.ndarray
    live: np.ndarray | None = None
    index: Ivf | None = None
    asked: list = field(default_factory=list)

    def keep(self, class_name=None, path=None):
        if class_name is None:
            return self.live
        return np.arange(len(self.vectors)) % 3 == int(class_name)

    def describe(self, rows):
        return [{"id": int(row), "uri": f"{row}.png", "class_name": str(row % 3)} for row in rows]

    def thumbnail(self, row):
        return encoded(row)


def refusal(act) -> str:
    with pytest.raises(ModelError) as caught:
        act()
    return str(caught.value)


# One query


@pytest.mark.parametrize("class_name", [None, "1"])
def test_search_equals_brute_force(class_name):
    rows, query = Rows(unit_rows(50)), 7 * np.random.default_rng(1).standard_normal(5)
    cosines = rows.vectors.astype(np.float64) @ query / np.linalg.norm(query)
    if class_name:
        cosines[np.arange(50) % 3 != 1] = -2
    found = search.search(rows, query, 8, class_name=class_name)
    np.testing.assert_array_equal(found.rows, np.argsort(-cosines)[:8])
    np.testing.assert_allclose(found.scores, np.sort(cosines)[::-1][:8], atol=1e-6)
    assert found.exact and found.recall is None and found.time_s > 0
    first = found.records(rows)[0]
    assert (first["rank"], first["id"], first["score"]) == (1, found.rows[0], pytest.approx(found.scores[0], abs=1e-6))


def test_the_very_picture_stands_first_whatever_rounding_says():
    vectors = np.repeat(unit_rows(1), 4, axis=0)
    for itself in range(4):
        found = search.search(Rows(vectors), vectors[0].astype(np.float32), 4, itself=itself)
        assert found.rows[0] == itself and sorted(found.rows) == [0, 1, 2, 3]
    assert search.search(Rows(vectors), vectors[0].astype(np.float32), 2, itself=3).rows.tolist() == [3, 0]


class Index:
    """Finds the first rows only."""

    def __init__(self, count):
        self.count = count

    def search(self, queries, count, params):
        found = np.full((len(queries), count), -1)
        found[:, : self.count] = np.arange(self.count)
        return None, found


def test_the_very_picture_stands_first_only_where_it_may_and_belongs():
    rows = Rows(np.tile(unit_rows(1), (6, 1)), live=np.arange(6) != 5)
    assert search.search(rows, rows.vectors[0], 2, itself=5).rows.tolist() == [0, 1]
    rows = Rows(unit_rows(50))
    assert 5 not in search.search(rows, -rows.vectors[5], 2, itself=5).rows  # not the picture after all


def test_the_index_answers_for_many_rows_unless_told_otherwise(monkeypatch):
    facts = IndexFacts(rows=50, trained_rows=50, lists=4, probes=1, recall=0.96, queries=9)
    rows, query = Rows(unit_rows(50), index=Ivf(facts, Index(20))), np.ones(5)
    assert search.search(rows, query, 5).exact  # few rows
    monkeypatch.setattr(search, "EXACT_UP_TO", 10)
    found = search.search(rows, query, 5)
    assert not found.exact and found.recall == 0.96 and found.rows.max() < 20
    assert search.search(rows, query, 5, exact=True).exact
    assert search.search(rows, query, 30).exact  # the index finds too few
    monkeypatch.setattr(search, "EXACT_UP_TO", 17)
    assert search.search(rows, query, 5, class_name="0").exact  # few are left by the filter


def test_what_cannot_be_searched():
    rows = Rows(unit_rows(6), live=np.zeros(6, bool))
    assert "ask for 1 to" in refusal(lambda: search.search(rows, np.ones(5), 0))
    assert "ask for 1 to" in refusal(lambda: search.search(rows, np.ones(5), 10_000))
    assert "different models" in refusal(lambda: search.search(rows, np.ones(4), 3))
    assert "change the filters" in refusal(lambda: search.search(rows, np.ones(5), 3))
    for nothing in (np.zeros(5), np.full(5, np.nan)):
        assert "no embedding" in refusal(lambda nothing=nothing: search.search(rows, nothing, 3))


# Queries made of several


def test_mean_and_less_like():
    a, b, c = (np.array(v, float) for v in ([3, 0, 0], [0, 5, 0], [0, 0, 9]))
    np.testing.assert_allclose(mean_of([a, b]), [math.sqrt(0.5), math.sqrt(0.5), 0], atol=1e-6)
    expected = np.array([1, -0.25, -0.25]) / math.sqrt(1 + 2 / 16)
    np.testing.assert_allclose(less_like(a, [b, c], 0.5), expected, atol=1e-6)
    np.testing.assert_allclose(less_like(a, [], 0.5), [1, 0, 0])
    assert "cancel" in refusal(lambda: mean_of([a, -a])) and "cancel" in refusal(lambda: less_like(a, [a], 1.0))
    assert "weight" in refusal(lambda: less_like(a, [b], -1.0))


@given(st.integers(0, 1000), st.integers(2, 12))
def test_the_great_circle(seed, n):
    a, b = np.random.default_rng(seed).standard_normal((2, 6))
    angles, points = great_circle(a, b, n)
    whole = math.acos(float(unit(a).astype(float) @ unit(b)))
    np.testing.assert_allclose(angles, [whole * i / (n - 1) for i in range(n)], atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(points[[0, -1]], [unit(a), unit(b)], atol=1e-5)
    for angle, point in zip(angles, points, strict=True):  # in the plane of both, between them
        assert math.acos(np.clip(point @ unit(a), -1, 1)) == pytest.approx(angle, abs=2e-3)
        assert math.acos(np.clip(point @ unit(b), -1, 1)) == pytest.approx(whole - angle, abs=2e-3)


def test_ways_that_are_none():
    same, a = great_circle(np.ones(3), 2 * np.ones(3), 4), np.array([1.0, 2, 3])
    np.testing.assert_allclose(same[1], np.full((4, 3), math.sqrt(1 / 3)), atol=1e-6)
    assert "opposites" in refusal(lambda: great_circle(a, -a, 3))
    assert "2 to 100" in refusal(lambda: great_circle(a, a + 1, 1))
    assert "only 4" in refusal(lambda: walk(Rows(unit_rows(4)), unit_rows(1)[0], unit_rows(2)[1], 5))


@given(st.integers(0, 500))
def test_a_walk_makes_the_best_pairs_first(seed):
    rows, n = Rows(unit_rows(12, 4, seed)), 6
    a, b = rows.vectors[3].astype(float), rows.vectors[8].astype(float)
    way = walk(rows, a, b, n)
    _, points = great_circle(a, b, n)
    pairs = [(float(points[p] @ rows.vectors[r].astype(np.float32)), p, r) for p in range(n) for r in range(12)]
    chosen: dict[int, int] = {}
    for _, point, row in sorted(pairs, key=lambda pair: -pair[0]):
        if point not in chosen and row not in chosen.values():
            chosen[point] = row
    assert way.rows.tolist() == [chosen[point] for point in range(n)]
    assert (way.rows[0], way.rows[-1]) == (3, 8) and len({*way.rows.tolist()}) == n
    assert (np.diff(way.angles) > 0).all()


# Results


@given(st.integers(0, 1000), st.floats(0.3, 0.99))
def test_groups_equal_a_union_find(seed, threshold):
    vectors = unit_rows(15, 3, seed)
    rows = vectors.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    leader = [*range(15)]

    def find(i):
        return i if leader[i] == i else find(leader[i])

    for i in range(15):
        for j in range(i):
            if rows[i] @ rows[j] >= threshold:
                leader[max(find(i), find(j))] = min(find(i), find(j))
    expected = {}
    for i in range(15):
        expected.setdefault(find(i), []).append(i)
    assert [group.tolist() for group in groups(vectors, threshold)] == [*expected.values()]


def test_equal_pictures_are_one_group_even_at_one():
    vectors = np.repeat(unit_rows(2), 2, axis=0)
    assert [group.tolist() for group in groups(vectors, 1.0)] == [[0, 1], [2, 3]]
    assert "threshold" in refusal(lambda: groups(vectors, 0))


@pytest.mark.parametrize("gone", [False, True])
def test_oddities_equal_brute_force(gone, monkeypatch):
    monkeypatch.setattr(search, "JUDGED_AT_ONCE", 7)
    rows = Rows(np.concatenate([unit_rows(30), unit_rows(3)]))  # the last three are there twice
    rows.live = np.arange(33) % 5 != 0 if gone else None
    kept = np.arange(33) if rows.live is None else np.flatnonzero(rows.live)
    cosines = rows.vectors.astype(np.float64) @ rows.vectors.T.astype(np.float64)
    means = {r: np.mean(sorted((cosines[r, o] for o in kept if o != r), reverse=True)[:4]) for r in kept}
    found = oddities(rows, 6, 4)
    assert found.rows.tolist() == sorted(means, key=means.__getitem__)[:6] and found.judged == len(kept)
    np.testing.assert_allclose(found.scores, sorted(means.values())[:6], atol=1e-5)


def test_oddities_of_very_many_are_those_of_a_sample(monkeypatch):
    monkeypatch.setattr(search, "JUDGED_AT_MOST", 10)
    found = oddities(Rows(unit_rows(40)), 40, 3)
    assert found.judged == 10 and len({*found.rows.tolist()}) == 10
    assert "nothing to compare" in refusal(lambda: oddities(Rows(unit_rows(1))))
    assert "Stopped" in refusal(lambda: oddities(Rows(unit_rows(9)), should_stop=lambda: True))


def test_explain_is_the_cosine_of_each_patch(workbench, picture):
    query = workbench.embedding(picture)
    result = Image.fromarray(np.random.default_rng(3).integers(0, 256, (40, 64, 3), np.uint8))
    heat, (cells, _) = explain(workbench, query, result), workbench.features(result)
    for row in range(heat.shape[0]):
        for column in range(heat.shape[1]):
            a, b = cells[row, column].astype(float), query.astype(float)
            assert heat[row, column] == pytest.approx(a @ b / math.sqrt((a @ a) * (b @ b)), abs=1e-5)
    assert heat.shape == (5, 8)
    assert "different widths" in refusal(lambda: explain(workbench, np.ones(7), result))


@pytest.mark.parametrize("space", ["memory", "embedding"])
def test_a_memory_is_searched_as_its_neighbours_are(workbench, picture, space):
    query = workbench.projection(picture) if space == "memory" else workbench.embedding(picture)
    rows, neighbours = memory_rows(workbench, space), workbench.neighbours(picture, space, 9)
    found = search.search(rows, query, 9)
    np.testing.assert_allclose(found.scores, neighbours.scores, atol=1e-5)
    assert [record["id"] for record in found.records(rows)] == neighbours.ids.tolist()
    owls = search.search(rows, query, 50, class_name="owl", path="7:20/4").records(rows)
    assert owls and all(one["class_name"] == "owl" and "drawn:7:20/4" in one["uri"] for one in owls)
    assert rows.thumbnail(owls[0]["id"]) == workbench.model.memory.thumbnail(owls[0]["id"])


# A gallery, and the command line


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for number in range(8):
        small = np.random.default_rng(number).integers(0, 256, (5, 6, 3), np.uint8)
        path = root / ("even", "odd")[number % 2] / f"Photo {number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(small).resize((60 + number, 50)).save(path)
    return root


@pytest.fixture
def opened(photos, workbench, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMSSL_HOME", str(tmp_path / "home"))
    return update_gallery("mine", str(photos), encoder_of(workbench.model))


def test_a_picture_in_the_gallery_finds_itself_first(opened, photos, workbench):
    for path in photos.rglob("*.png"):
        found = search.search(opened, workbench.embedding(path), 3, itself=opened.row_of(path.read_bytes()))
        assert opened.uri(found.rows[0]) == path.relative_to(photos).as_posix()
        assert found.scores[0] == pytest.approx(1, abs=1e-3)


def test_filters_of_a_gallery(opened, photos, workbench):
    query = workbench.embedding(photos / "even/Photo 0.png")
    even = search.search(opened, query, 50, class_name="even")
    assert {opened.class_name(row) for row in even.rows} == {"even"} and len(even.rows) == 4
    assert [opened.uri(row) for row in search.search(opened, query, 9, path="photo 3").rows] == ["odd/Photo 3.png"]
    assert "change the filters" in refusal(lambda: search.search(opened, query, 9, path="photo 3", class_name="even"))


def told(capsys, *words: str):
    assert cli.main([*words]) == 0
    return capsys.readouterr().out


def test_search_on_the_command_line(opened, photos, folder, workbench, tmp_path, capsys):
    first, second = str(photos / "even/Photo 0.png"), str(photos / "odd/Photo 1.png")
    words = ["--gallery", "mine", "--model", f"bundle:{folder}", "--json"]
    both = json.loads(told(capsys, "search", first, second, *words, "--k", "3"))
    assert [one["query"] for one in both] == [first, second]
    assert [one["found"][0]["uri"] for one in both] == ["even/Photo 0.png", "odd/Photo 1.png"]
    assert all(len(one["found"]) == 3 and one["exact"] for one in both)
    (mean,) = json.loads(told(capsys, "search", first, second, "--mean", *words, "--k", "8"))
    expected = search.search(opened, mean_of([workbench.embedding(first), workbench.embedding(second)]), 8)
    assert [row["id"] for row in mean["found"]] == expected.rows.tolist()
    (less,) = json.loads(told(capsys, "search", first, "--less", second, "--weight", "0.3", *words))
    expected = search.search(opened, less_like(workbench.embedding(first), [workbench.embedding(second)], 0.3), 20)
    assert [row["id"] for row in less["found"]] == expected.rows.tolist()
    (way,) = json.loads(told(capsys, "search", first, second, "--walk", "4", *words))
    assert [row["uri"] for row in way["found"]][::3] == ["even/Photo 0.png", "odd/Photo 1.png"]
    (folded,) = json.loads(told(capsys, "search", first, "--fold", "0.1", *words))
    assert sum(1 + row["alike"] for row in folded["found"]) == 8
    assert "8 of gallery mine, exact" in told(capsys, "search", first, *words[:-1])
    assert "of the memory, embedding space" in told(capsys, "search", first, *words[2:-1], "--space", "embedding")


def test_files_of_results(opened, photos, folder, tmp_path, capsys):
    words = [
        "search",
        str(photos / "even/Photo 0.png"),
        "--gallery",
        "mine",
        "--model",
        str(folder),
        "--k",
        "3",
        "--out",
    ]
    told(capsys, *words, str(tmp_path / "a.png"))
    told(capsys, *words, str(tmp_path / "a.csv"))
    told(capsys, *words, str(tmp_path / "a.zip"))
    assert decode_image(tmp_path / "a.png").width > 300
    rows = [*csv.DictReader((tmp_path / "a.csv").open())]
    assert [row["rank"] for row in rows] == ["1", "2", "3"] and rows[0]["uri"] == "even/Photo 0.png"
    with zipfile.ZipFile(tmp_path / "a.zip") as file:
        assert file.namelist() == ["found.csv", "0001.webp", "0002.webp", "0003.webp"]
        assert decode_image(file.read("0001.webp")).size == (60, 50)


def test_a_table_for_spreadsheets_holds_no_formula():
    records = [{"query": "=1+1", "rank": 1, "score": 0.5, "id": 3, "uri": "@x\n\udcff", "class_name": None}]
    (row,) = csv.DictReader(io.StringIO(found_csv(records).decode()))
    assert row == {"query": "'=1+1", "rank": "1", "score": "0.5", "id": "3", "uri": "'@x\n?", "class_name": ""}
    with zipfile.ZipFile(io.BytesIO(found_zip(records, lambda record: b""))) as file:
        assert file.namelist() == ["found.csv"]


def test_a_gallery_on_the_command_line(photos, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MEMSSL_HOME", str(tmp_path / "home"))
    words, job = ["gallery", "mine", "--data", str(photos), "--model", str(folder)], tmp_path / "job"
    need = json.loads(told(capsys, *words, "--need", "--json", "--job", str(job)))
    assert (need["pictures"], need["new"]) == (8, 8) and json.loads((job / "result.json").read_bytes()) == need
    assert "8 files, 8 different pictures, 0 skipped" in told(capsys, *words, "--job", str(job))
    assert json.loads((job / "status.json").read_bytes())["state"] == "finished"
    assert json.loads(told(capsys, "gallery", "mine", "--json"))["state"] == 2  # its own data and model
    assert cli.main(["gallery", "mine", "--model", "random:vit_tiny_patch16_224"]) == 1
    assert "not by this model" in capsys.readouterr().err
    assert cli.main(["search", str(photos / "even/Photo 0.png"), "--gallery", "mine", "--model", "embedded"]) == 1
    assert "not by this model" in capsys.readouterr().err
    assert told(capsys, "gallery", "mine", "--delete") == "deleted gallery mine\n"
    assert cli.main(["search", "x.png", "--gallery", "mine"]) == 1
    assert "There is no gallery mine" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["search"], ["search", "no.png"], ["search", "no.png", "--out", "x.txt"]])
def test_mistakes_are_one_sentence(words, folder, capsys):
    assert cli.main([*words, "--model", str(folder)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
