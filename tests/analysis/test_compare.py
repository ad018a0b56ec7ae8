"""Two models compared: memories against sets and loops, maps against fine grids, probes against the definitions."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import tyro
from bundle.making import NOISE_SLOTS, SLOTS, small_bundle, small_memory
from data.painting import paint
from hypothesis import given
from hypothesis import strategies as st

from analysis import Workbench
from analysis.cli_compare import compare
from analysis.compare import Look, compare_maps, compare_memories, compare_probe, map_overlap, same_place
from analysis.neighbours import SlotSearch
from analysis.probe import Probed, probe_features, probe_images
from memssl_core.data.images import decode_image
from memssl_core.errors import ModelError
from memssl_core.evaluation.geometry import cka, mutual_knn
from memssl_core.sources import open_model


def opened(folder, **changes) -> Workbench:
    """A small model of seed 1 whose memory is changed."""
    bundle = small_bundle(seed=1)
    replace(bundle, memory=replace(small_memory(seed=1), **changes)).save(folder)
    return Workbench(open_model(str(folder)))


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "other"
    shown = [f"drawn:7:20/{slot % 30}" if slot < SLOTS - NOISE_SLOTS else None for slot in range(SLOTS)]
    bundle = small_bundle(seed=1, patch_size=16, num_heads=4, depth=2)
    replace(bundle, memory=replace(small_memory(seed=1), uri=shown)).save(folder)
    return folder


@pytest.fixture(scope="module")
def other(other_folder) -> Workbench:
    """Patch 16, 4 attention heads, 2 transformer blocks; remembers 30 pictures, 20 of which the first does too."""
    return Workbench(open_model(f"bundle:{other_folder}"))


@pytest.fixture(scope="module")
def without_attention() -> Workbench:
    return Workbench(open_model("random:resnet10t"))


# Memories


def pictures_by_hand(workbench, picture, k):
    """uris of the k nearest pictures, by sorting all written slots."""
    memory = workbench.model.memory
    scores = memory.vectors @ workbench.projection(picture)
    uris = []
    for slot in np.argsort(-scores, kind="stable"):
        uri = memory.uri[slot].as_py()
        if uri and uri not in uris:
            uris.append(uri)
    return uris[:k]


@pytest.mark.parametrize("k", [1, 5, 12, 25, 100])
def test_memories_that_two_models_share(workbench, other, picture, k):
    found = compare_memories(workbench, other, picture, k)
    a, b = (pictures_by_hand(each, picture, k) for each in (workbench, other))
    assert [row["uri"] for row in found.rows_a] == a and [row["uri"] for row in found.rows_b] == b
    assert found.same_a.tolist() == [uri in b for uri in a] and found.same_b.tolist() == [uri in a for uri in b]
    assert found.shared == len(set(a) & set(b)) and found.share == found.shared / max(len(a), len(b))
    assert (found.common, found.words) == (20, None)
    told = found.summary()
    assert [row["uri"] for row in told["b"]] == b and [row["same"] for row in told["a"]] == found.same_a.tolist()
    assert json.dumps(told, allow_nan=False) and told["share"] == found.share
    assert (np.diff(found.scores_a) <= 0).all() and len(found.scores_b) == len(b)


def test_a_model_shares_all_memories_with_itself(workbench, picture):
    found = compare_memories(workbench, workbench, picture, 6)
    assert (found.share, found.shared, found.common) == (1, 6, 20)
    assert found.same_a.all() and found.chance == pytest.approx(6 / 20)


def test_chance_is_what_random_lists_share(workbench, other, picture):
    found = compare_memories(workbench, other, picture, 8)
    rng = np.random.default_rng(0)
    draws = [len({*rng.permutation(20)[:8]} & {*rng.permutation(30)[:8]}) / 8 for _ in range(4000)]
    assert found.chance == pytest.approx(np.mean(draws), abs=0.01)


def test_image_ids_serve_where_there_are_no_uris(workbench, tmp_path, picture):
    nameless = opened(tmp_path / "b", uri=[None] * SLOTS)
    found = compare_memories(nameless, nameless, picture, 10)
    assert (found.share, found.common) == (1, 20)
    found = compare_memories(workbench, nameless, picture, 10)
    assert (found.share, found.common) == (None, 0) and found.words.startswith("No picture is in both memories")
    assert len(found.rows_a) == len(found.rows_b) == 10 and not found.same_a.any()


def test_image_ids_of_different_data_are_different_pictures(workbench, tmp_path, picture):
    one = opened(tmp_path / "one", uri=[None] * SLOTS)
    two = opened(tmp_path / "two", uri=[None] * SLOTS)
    one.model.card["data"], two.model.card["data"] = "one", "another"
    assert compare_memories(one, two, picture).common == 0
    one.model.card["data"] = two.model.card["data"] = None  # nobody knows
    assert compare_memories(one, two, picture).common == 0
    assert compare_memories(one, one, picture).common == 20


def test_unknown_pictures_are_never_the_same(tmp_path, picture):
    unknown = {"uri": [None] * SLOTS, "image_id": np.full(SLOTS, -2)}
    one, two = opened(tmp_path / "one", **unknown), opened(tmp_path / "two", **unknown)
    found = compare_memories(one, two, picture, 10)
    assert found.common == 0 and len(found.rows_a) == 10


def test_a_side_without_memory_is_told_in_one_sentence(workbench, without_attention, picture):
    found = compare_memories(workbench, without_attention, picture, 5)
    assert found.words.startswith(without_attention.model.name) and "has no memory" in found.words
    assert len(found.rows_a) == 5 and found.rows_b == [] and found.share is None and found.chance is None


def test_an_empty_memory_is_told_too(workbench, tmp_path, picture):
    empty = opened(tmp_path / "b", image_id=np.full(SLOTS, -1), written=0, cursor=0)
    assert "still empty" in compare_memories(empty, workbench, picture).words


def test_k_is_at_least_one(workbench, picture):
    with pytest.raises(ModelError, match="k is 0"):
        compare_memories(workbench, workbench, picture, 0)


def test_of_the_slots_of_a_picture_the_nearest_answers(workbench, picture):
    search = SlotSearch(workbench.model.memory, "memory")
    slots = search.nearest(workbench.projection(picture), SLOTS).ids
    first = {slot % 20: slot for slot in reversed(slots.tolist())}
    found = compare_memories(workbench, workbench, picture, 20)
    assert sorted(row["slot"] for row in found.rows_a) == sorted(first.values())


# Maps


def overlap_on_a_fine_grid(a, b) -> float:
    """Both maps repeated to the least common size, and the smaller of the two summed cell by cell."""
    rows, columns = (np.lcm(a.shape[axis], b.shape[axis]) for axis in (0, 1))
    total = 0.0
    for y in range(rows):
        for x in range(columns):
            cells = [m[y * m.shape[0] // rows, x * m.shape[1] // columns] / m.sum() * m.size for m in (a, b)]
            total += min(cells) / (rows * columns)
    return total


@given(sides=st.tuples(*[st.integers(1, 9)] * 4), seed=st.integers(0, 99))
def test_overlap_of_maps_on_different_grids(sides, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.exponential(size=sides[:2]), rng.exponential(size=sides[2:])
    assert map_overlap(a, b) == pytest.approx(overlap_on_a_fine_grid(a, b), abs=1e-12)
    assert map_overlap(b, 3 * a) == pytest.approx(map_overlap(a, b), abs=1e-12)
    assert 0 <= map_overlap(a, b) <= 1 + 1e-12


def test_known_overlaps():
    left, right = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    assert map_overlap(left, left) == 1 and map_overlap(left, right) == 0
    assert map_overlap(left, np.ones((3, 5))) == 0.5
    assert map_overlap(np.array([[1, 0, 0]]), np.array([[1, 0]])) == pytest.approx(2 / 3)
    assert map_overlap(np.eye(2), np.kron(np.eye(2), np.ones((3, 2)))) == pytest.approx(1)


@pytest.mark.parametrize("weights", [np.zeros((2, 2)), np.array([[1.0, -0.1]]), np.full((2, 2), np.nan), np.ones(3)])
def test_what_is_no_map(weights):
    with pytest.raises(ValueError, match="maps must be"):
        map_overlap(weights, np.ones((2, 2)))


def test_two_models_are_asked_from_the_same_place(workbench, other, picture):
    a, b, overlap = compare_maps(workbench, other, picture, 37)
    first, place = workbench.attention(picture, query=37), workbench.pixels(picture)[1].centre_of(37)
    second = other.attention(picture, query=other.pixels(picture)[1].patch_at(*place))
    assert (a.shape, b.shape) == (first.grid, second.grid) == ((11, 16), (6, 8))
    np.testing.assert_allclose(a, first.maps().mean((0, 1)))
    np.testing.assert_allclose(b, second.maps().mean((0, 1)))
    assert overlap == pytest.approx(overlap_on_a_fine_grid(a, b))
    assert compare_maps(workbench, workbench, picture)[2] == pytest.approx(1)


def test_each_model_has_a_look_of_its_own(workbench, other, picture):
    a, b, _ = compare_maps(workbench, other, picture, "mean", Look(0, 1, 64), Look(1, "max", 96))
    np.testing.assert_allclose(a, workbench.attention(picture, 0, "mean", 64).maps()[1, 0])
    np.testing.assert_allclose(b, other.attention(picture, 1, "mean", 96).maps()[:, 0].max(0))
    with pytest.raises(ModelError, match="There is no attention head 2; this block has 0 to 1"):
        compare_maps(workbench, other, picture, look=Look(head=2))
    with pytest.raises(ModelError, match="There is no attention head -1"):
        compare_maps(workbench, other, picture, look=Look(head=-1))


def test_only_a_patch_becomes_a_place(workbench, picture):
    frame = workbench.pixels(picture)[1]
    assert same_place("cls", frame) == "cls" and same_place((3.0, 4.0), frame) == (3.0, 4.0)
    assert same_place(0, frame) == frame.centre_of(0) and same_place(10_000, frame) == 10_000
    assert same_place([5, "cls"], frame) == [frame.centre_of(5), "cls"]


def test_the_model_that_has_no_such_map_is_named(workbench, other, without_attention, picture):
    named = Workbench(replace(other.model, name="the other"))
    with pytest.raises(ModelError, match="^the other: There is no layer 2"):
        compare_maps(workbench, named, picture, look=Look(2))
    with pytest.raises(ModelError, match="resnet10t.*: This model .* has a feature map"):
        compare_maps(workbench, without_attention, picture)


# Probes


def probed(n=30, width=6, blocks=2, seed=0, noise=0.5):
    """Rows that two seeds share in part."""
    common, rng = np.random.default_rng(99).normal(size=(n, 4)), np.random.default_rng(seed)
    parts = [common @ rng.normal(size=(4, width)) + noise * rng.normal(size=(n, width)) for _ in range(blocks + 1)]
    return Probed(np.float32(parts[0]), np.float32(np.stack(parts[1:], 1)))


def test_a_probe_is_judged_by_the_protocols():
    a, b = probed(), probed(width=9, blocks=3, seed=1)
    found = compare_probe(a, b, 5)
    assert found.cka == pytest.approx(cka(a.embedding, b.embedding))
    assert found.mutual_knn == pytest.approx(mutual_knn(a.embedding, b.embedding, 5))
    assert (found.k, found.n, found.chance) == (5, 30, 5 / 29)
    expected = [[cka(a.layers[:, i], b.layers[:, j]) for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(found.layers, expected, atol=1e-12)
    for i in range(30):
        share = len({*found.neighbours_a[i]} & {*found.neighbours_b[i]}) / 5
        assert found.kept[i] == pytest.approx(share) and i not in found.neighbours_a[i]
    assert (np.diff(found.kept[found.order]) >= 0).all() and sorted(found.order) == list(range(30))


def test_nothing_changes_between_a_model_and_itself():
    found = compare_probe(probed(), probed())
    assert found.cka == pytest.approx(1) and found.mutual_knn == 1
    assert found.layers.diagonal() == pytest.approx(1) and found.order.tolist() == list(range(30))


@given(seed=st.integers(0, 50))
def test_the_order_of_pictures_changes_nothing(seed):
    a, b, order = probed(), probed(seed=1), np.random.default_rng(seed).permutation(30)
    found = compare_probe(a, b, 4)
    turned = compare_probe(*(Probed(one.embedding[order], one.layers[order]) for one in (a, b)), 4)
    assert turned.cka == pytest.approx(found.cka) and turned.mutual_knn == pytest.approx(found.mutual_knn)
    np.testing.assert_allclose(turned.layers, found.layers, atol=1e-9)
    np.testing.assert_array_equal(turned.kept, found.kept[order])
    np.testing.assert_array_equal(order[turned.neighbours_a], found.neighbours_a[order])


def test_two_pictures_that_changed_places_are_found_first():
    a = probed(60)
    rows = a.embedding.copy()
    far = int(np.argmin(rows @ rows[7]))
    rows[[7, far]] = rows[[far, 7]]
    found = compare_probe(a, Probed(rows, None), 6)
    assert {7, far} == {*found.order[:2].tolist()} and found.layers is None


def test_blocks_are_compared_on_a_sample_of_many_pictures(monkeypatch):
    monkeypatch.setattr("analysis.compare.LAYER_PICTURES", 10)
    a, b = probed(), probed(seed=1)
    assert compare_probe(a, b).layers[1, 0] == pytest.approx(cka(a.layers[::3, 1], b.layers[::3, 0]))


def test_k_is_cut_to_half_of_the_others():
    found = compare_probe(probed(8), probed(8, seed=1))
    assert found.k == 3 and found.neighbours_b.shape == (8, 3)


def test_a_collapsed_model_has_no_figure_in_json():
    flat = Probed(np.ones((30, 6), np.float32), np.ones((30, 2, 6), np.float32))
    told = compare_probe(probed(), flat).summary([f"p{i}" for i in range(30)], most=3)
    assert told["cka"] is None and told["layers"] == [[None, None]] * 2 and len(told["changed"]) == 3
    assert json.dumps(told, allow_nan=False) and told["changed"][0]["name"].startswith("p")


def test_what_cannot_be_judged():
    with pytest.raises(ModelError, match="3 pictures and k 10 cannot be compared"):
        compare_probe(probed(3), probed(3))
    with pytest.raises(ModelError, match="k 0 cannot be compared"):
        compare_probe(probed(), probed(), 0)
    with pytest.raises(ValueError, match="30 pictures cannot be compared with 29"):
        compare_probe(probed(), probed(29))


# The verb


def run(*words: object) -> None:
    tyro.extras.subcommand_cli_from_dict({"compare": compare, "none": lambda: None}, args=["compare", *map(str, words)])


@pytest.fixture
def asked(folder, other_folder, picture_file):
    return [picture_file, "--model", folder, "--other", other_folder]


def test_compare_as_json(asked, workbench, other, picture, tmp_path, capsys):
    run(*asked, "--query", 37, "--k", 5, "--probe", "drawn", "--pictures", 12, "--json", "--out", tmp_path / "a.png")
    told = json.loads(capsys.readouterr().out)
    assert told["maps"]["overlap"] == pytest.approx(compare_maps(workbench, other, picture, 37)[2])
    assert told["memories"] == compare_memories(workbench, other, picture, 5).summary()
    images = probe_images("drawn", 12)
    pictures = [images.read(at) for at in range(12)]
    found = compare_probe(*(probe_features(each, pictures) for each in (workbench, other)))
    assert told["probe"]["cka"] == pytest.approx(found.cka) and np.shape(told["probe"]["layers"]) == (3, 2)
    assert told["probe"]["changed"][0]["name"] == f"drawn:7:{found.order[0]}"
    sheet = np.asarray(decode_image(tmp_path / "a.png"))
    assert sheet.shape == (90, 2 * 130 + 4, 3)
    assert (sheet[16, 44] == 255).all() and (sheet[15, 134 + 40] == 255).all()  # squares around the patches asked


def test_looks_of_each_model(asked, workbench, other, picture, capsys):
    run(*asked, "--layer", 1, "--head", 0, "--size", 64, "--other-layer", 0, "--other-head", "max", "--json")
    told = json.loads(capsys.readouterr().out)["maps"]
    expected = compare_maps(workbench, other, picture, look=Look(1, 0, 64), other=Look(0, "max", 64))[2]
    assert told["overlap"] == pytest.approx(expected)
    assert (told["a"], told["b"]) == (
        {"layer": 1, "head": 0, "size": 64},
        {"layer": 0, "head": "max", "size": 64},
    )


def test_compare_for_people(asked, capsys):
    run(*asked, "--probe", "memory")
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("attention: overlap 0.")
    assert lines[2].endswith("of A last block mean and B last block mean, query cls")
    assert "of 20 are shared (chance" in lines[3] and lines[3].endswith("20 pictures are in both")
    assert lines[4].startswith("over 20 pictures: debiased CKA") and "mutual 9-NN" in lines[4]
    assert len(lines) == 6 + 10


def test_compare_table(asked, photos, tmp_path, capsys):
    paint(photos, "cat/5.png", "cat/6.png", "cat/7.png")
    (photos / "cat" / "5.png").write_bytes(b"")
    run(*asked, "--probe", photos, "--out", tmp_path / "changed.csv")
    with (tmp_path / "changed.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == [str(rank) for rank in range(1, 8)]
    assert all(len(row["neighbours_a"].split("; ")) == 3 for row in rows)
    assert {row["picture"] for row in rows} == {f"cat/{i}.png" for i in (0, 1, 6, 7)} | {
        f"dog/{i}.png" for i in (2, 3, 4)
    }
    assert "5.png" in capsys.readouterr().err


def test_a_model_without_attention_leaves_the_rest(asked, tmp_path, capsys):
    asked[-1] = "random:resnet10t"
    run(*asked, "--probe", "drawn", "--pictures", 6)
    told = capsys.readouterr().out
    assert "has a feature map and no attention" in told and "has no memory" in told and "over 6 pictures" in told
    with pytest.raises(ModelError, match="There are no two maps to draw"):
        run(*asked, "--out", tmp_path / "a.png")


def test_a_table_needs_a_probe(asked, tmp_path):
    with pytest.raises(ModelError, match="add --probe drawn"):
        run(*asked, "--out", tmp_path / "a.csv")
    with pytest.raises(ModelError, match="add --probe drawn"):
        run(*asked, "--pictures", 9)


def test_a_picture_written_carries_no_place(asked, picture, tmp_path):
    exif = picture.getexif()
    exif.get_ifd(0x8825)[2] = (52.0, 30.0, 0.0)
    exif[0x010F] = "maker"
    asked[0] = tmp_path / "there.jpg"
    picture.save(asked[0], exif=exif)
    run(*asked, "--out", tmp_path / "maps.jpg")
    assert b"maker" not in (tmp_path / "maps.jpg").read_bytes() and b"Exif" not in (tmp_path / "maps.jpg").read_bytes()
