"""Attention as people ask for it: queries, shapes, sums, and the sentences that refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bundle.making import small_bundle
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from analysis import Workbench
from analysis.attention import parse_query, strongest_heads
from analysis.tokens import MAX_KEPT
from memssl_core.errors import MemsslError, ModelError
from memssl_core.sources import open_model


@pytest.mark.parametrize("size", [(130, 90), (8, 300), (64, 64), (77, 31)])
def test_rows_sum_to_one_for_pictures_of_any_shape(workbench, size):
    image = Image.effect_noise(size, 90).convert("RGB")
    found = workbench.attention(image)
    rows, columns = found.grid
    assert found.rows.shape == (2, 1, 1 + rows * columns) and found.rows.dtype == np.float32
    assert found.pixels.shape == (3, 8 * rows, 8 * columns)
    assert (found.frame.width, found.frame.height) == size
    np.testing.assert_allclose(found.rows.sum(-1), 1, atol=1e-5)
    assert found.maps().shape == (2, 1, rows, columns)


def test_a_pixel_and_its_patch_are_the_same_query(workbench, picture):
    frame = workbench.pixels(picture)[1]
    for patch in (0, 7, frame.rows * frame.columns - 1):
        by_patch = workbench.attention(picture, 1, patch)
        by_pixel = workbench.attention(picture, 1, frame.centre_of(patch))
        assert by_patch.queries == by_pixel.queries == (1 + patch,)
        np.testing.assert_array_equal(by_patch.rows, by_pixel.rows)


def test_several_queries_are_each_alone(workbench, picture):
    together = workbench.attention(picture, 0, ["cls", 5, (60.0, 40.0)]).rows
    alone = [workbench.attention(picture, 0, query).rows[:, 0] for query in ("cls", 5, (60.0, 40.0))]
    np.testing.assert_allclose(together, np.stack(alone, 1), atol=1e-6)


def test_layers_count_from_either_end(workbench, picture):
    np.testing.assert_array_equal(workbench.attention(picture).rows, workbench.attention(picture, 2).rows)
    assert workbench.attention(picture, -3).layers == (0,)
    assert np.abs(workbench.attention(picture, 0).rows - workbench.attention(picture, 2).rows).max() > 1e-4


def test_all_layers_at_once(workbench, picture):
    whole = workbench.attention_all(picture, 3)
    assert whole.rows.shape == (3, 2, 1 + whole.grid[0] * whole.grid[1]) and whole.layers == (0, 1, 2)
    for layer in range(3):
        np.testing.assert_array_equal(whole.rows[layer], workbench.attention(picture, layer, 3).rows[:, 0])


def test_the_mean_is_the_mean_over_all_patches(workbench, picture):
    found = workbench.attention(picture, 1, "mean", size=200)
    patches = found.grid[0] * found.grid[1]
    each = workbench.attention(picture, 1, list(range(patches)), size=200).rows
    np.testing.assert_allclose(found.rows, each.mean(1, keepdims=True), atol=1e-6)
    assert found.queries == () and found.summary()["queries"] == "mean"
    np.testing.assert_array_equal(workbench.attention_all(picture, "mean", 200).rows[1], found.rows[:, 0])


def test_the_size_is_the_long_side_and_the_limit_holds(workbench, folder, picture):
    assert workbench.attention(picture, size=64).grid == (6, 8)
    few = Workbench(workbench.model, max_tokens=20)
    rows, columns = few.attention(picture).grid
    assert rows * columns <= 20 and columns > rows


def test_asking_again_gives_the_same_rows_from_the_cache(workbench, picture, monkeypatch):
    first = workbench.attention(picture, 1, 4).rows
    monkeypatch.setattr("analysis.tokens.walk", lambda *args: pytest.fail("the model ran again"))
    np.testing.assert_array_equal(workbench.attention(picture, 1, 4).rows, first)
    other = Image.fromarray(255 - np.asarray(picture))
    with pytest.raises(pytest.fail.Exception):
        workbench.attention(other)


def test_a_key_stands_for_the_picture(workbench, picture, monkeypatch):
    rows = workbench.attention_all(picture, 4, key="mine").rows
    nearest = workbench.neighbours(picture, key="mine").ids
    monkeypatch.setattr("analysis.workbench.picture_key", lambda image: pytest.fail("the pixels were read"))
    np.testing.assert_array_equal(workbench.attention_all(picture, 4, key="mine").rows, rows)
    np.testing.assert_array_equal(workbench.neighbours(picture, key="mine").ids, nearest)


def test_the_same_picture_in_every_form(workbench, picture, picture_file):
    forms = [picture, np.asarray(picture), str(picture_file), picture_file, picture_file.read_bytes()]
    rows = [workbench.attention(form, 1, 4).rows for form in forms]
    assert all((row == rows[0]).all() for row in rows)


def test_a_model_without_class_token(tmp_path, picture):
    small_bundle(class_token=False, global_pool="avg").save(tmp_path / "b")
    workbench = Workbench(open_model(str(tmp_path / "b")))
    with pytest.raises(ModelError, match="no class token.*'mean'"):
        workbench.attention(picture)
    mean = workbench.attention(picture, query="mean")
    assert mean.n_prefix == 0 and mean.rows.shape[1:] == (1, mean.grid[0] * mean.grid[1])


def test_register_tokens(tmp_path, picture):
    small_bundle(reg_tokens=2).save(tmp_path / "b")
    workbench = Workbench(open_model(str(tmp_path / "b")))
    found = workbench.attention(picture, query=["register:0", "register:1", 0])
    assert found.n_prefix == 3 and found.queries == (1, 2, 3)
    with pytest.raises(ModelError, match="no register:2; this model has 2 register tokens"):
        workbench.attention(picture, query="register:2")


REFUSED = {
    "layer": ({"layer": 3}, "no layer 3; this model has transformer blocks 0 to 2"),
    "patch": ({"query": 10**6}, "no patch 1000000; this picture has patches 0 to"),
    "negative patch": ({"query": -1}, "no patch -1"),
    "pixel": ({"query": (400, 10)}, r"\(400, 10\) lies outside the picture of 130×90 pixels"),
    "no pixel": ({"query": (float("nan"), 10)}, "lies outside"),
    "register": ({"query": "register:0"}, "this model has 0 register tokens"),
    "word": ({"query": "dog"}, "'dog' is no query; write"),
    "nothing": ({"query": []}, "is no query"),
    "size": ({"size": 0}, "size is 0; choose"),
}


@pytest.mark.parametrize("question, sentence", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_asked_is_refused_in_a_sentence(workbench, picture, question, sentence):
    with pytest.raises(ModelError, match=sentence):
        workbench.attention(picture, **question)


def test_one_query_for_all_layers(workbench, picture):
    with pytest.raises(ModelError, match="2 queries"):
        workbench.attention_all(picture, [1, 2])


def test_queries_as_people_write_them():
    assert parse_query("cls") == "cls" and parse_query("17") == 17 and parse_query("register:3") == "register:3"
    assert parse_query(" 12, 7.5 ") == (12, 7.5)
    assert parse_query("cls; 4;1,2") == ["cls", 4, (1, 2)]


@given(st.text(max_size=12))
def test_any_text_is_a_query_or_one_sentence(text):
    try:
        parse_query(text)
    except MemsslError as mistake:
        assert "is no query; write" in str(mistake)


def test_the_summary_is_plain_and_right(workbench, picture):
    found = workbench.attention(picture, 0, [3, 4])
    summary = found.summary()
    assert np.shape(summary["patch_mass"]) == np.shape(summary["entropy"]) == (2, 2)
    np.testing.assert_allclose(1 - np.array(summary["patch_mass"]), found.rows[..., 0], atol=1e-5)
    patch = summary["strongest_patch"][1][0]
    assert found.rows[1, 0, 1:].max() == found.rows[1, 0, 1 + patch]
    assert summary["strongest_px"][1][0] == list(found.frame.centre_of(patch))


def test_norms_are_lengths_of_the_patches_that_leave_each_block(workbench, picture):
    backbone = workbench.model.backbone
    pixels = torch.from_numpy(workbench.pixels(picture, 96)[0])[None]
    with torch.no_grad():
        maps = backbone.forward_intermediates(pixels, norm=False, intermediates_only=True)
    whole = workbench.attention_all(picture, size=96)
    assert whole.norms.shape == (3, whole.grid[0] * whole.grid[1]) and whole.norms.dtype == np.float32
    for layer in range(3):
        lengths = maps[layer][0].flatten(1).norm(dim=0)
        np.testing.assert_allclose(whole.norms[layer], lengths, rtol=1e-5)
        np.testing.assert_array_equal(workbench.attention(picture, layer, size=96).norms, whole.norms[[layer]])


@given(st.integers(1, 5), st.integers(1, 9), st.floats(0.05, 1), st.integers(0, 2**31))
def test_the_strongest_head_of_each_patch(heads, patches, mass, seed):
    weights = np.random.default_rng(seed).uniform(0.01, 1, (heads, patches)).astype(np.float32)
    for patch, owner in enumerate(strongest_heads(weights, mass)):
        up_to = [sum(weight for weight in row if weight <= row[patch]) for row in weights.tolist()]
        keeping = [head for head in range(heads) if up_to[head] > (1 - mass) * sum(weights[head].tolist())]
        assert owner == max(keeping, key=lambda head: weights[head, patch], default=-1)


def test_many_small_uploads_are_not_kept(workbench):
    bench = Workbench(workbench.model)
    noise = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), np.uint8)
    for index, pixels in enumerate(noise):
        bench.attention(pixels, key=f"picture {index}")
        bench.head_row(pixels, 0, key=f"picture {index}")
    assert len(bench._tokens._kept) <= MAX_KEPT
    bench.attention(noise[-1], key="picture 59")  # and the last one is
    assert ("picture 59", None) in bench._tokens._kept


def test_many_threads_share_one_workbench(workbench, picture):
    from concurrent.futures import ThreadPoolExecutor

    pictures = [Image.fromarray(np.roll(np.asarray(picture), shift, 1)) for shift in range(0, 40, 10)]
    alone = [Workbench(workbench.model).attention(one, 1).rows for one in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda one: workbench.attention(one, 1).rows, pictures * 3))
    for index, rows in enumerate(together):
        np.testing.assert_allclose(rows, alone[index % 4], atol=1e-6)
    assert torch.is_grad_enabled()
