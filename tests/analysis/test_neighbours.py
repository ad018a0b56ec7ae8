"""Neighbours against brute force in NumPy; the two spaces stay apart; what has no memory says so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from bundle.making import NOISE_SLOTS, SLOTS, small_bundle, small_memory, thumbnail

from analysis import Workbench
from memssl_core.data.images import decode_image
from memssl_core.errors import ModelError
from memssl_core.sources import open_model


def brute_force(rows, query, written):
    scores = (rows / np.linalg.norm(rows, axis=1, keepdims=True)) @ (query / np.linalg.norm(query))
    order = [slot for slot in np.argsort(-scores, kind="stable") if written[slot]]
    return np.array(order), scores


@pytest.mark.parametrize("space", ["memory", "embedding"])
def test_neighbours_are_those_of_brute_force(workbench, picture, space):
    memory = workbench.model.memory
    rows, query = (
        (memory.vectors, workbench.projection(picture))
        if space == "memory"
        else (memory.embeddings, workbench.embedding(picture))
    )
    order, scores = brute_force(rows, query, memory.image_id != -1)
    found = workbench.neighbours(picture, space, 12)
    np.testing.assert_array_equal(found.ids, order[:12])
    np.testing.assert_allclose(found.scores, scores[order[:12]], atol=1e-5)
    assert (found.space, found.exact) == (space, True)
    assert (np.diff(found.scores) <= 0).all()


def test_the_two_spaces_differ(workbench, picture):
    memory, embedding = (workbench.neighbours(picture, space, 10).ids for space in ("memory", "embedding"))
    assert memory.tolist() != embedding.tolist()


def test_embedding_and_projection_are_the_models_own(workbench, picture):
    model = workbench.model
    with torch.no_grad():
        embedding = model.backbone(model.transform(decode_image(picture))[None])
        projection = model.head(embedding)
    np.testing.assert_allclose(workbench.embedding(picture), embedding[0], atol=1e-6)
    np.testing.assert_allclose(workbench.projection(picture), projection[0], atol=1e-6)
    assert np.linalg.norm(workbench.projection(picture)) == pytest.approx(1, abs=1e-5)
    workbench.embedding(picture)[:] = 0  # the caller's array, not the cache's
    np.testing.assert_allclose(workbench.embedding(picture), embedding[0], atol=1e-6)


def test_rows_tell_where_a_neighbour_came_from(workbench, picture):
    found = workbench.neighbours(picture, k=5)
    memory = workbench.model.memory
    for slot, row, record in zip(found.ids, found.rows, found.records(), strict=True):
        assert row["slot"] == record["id"] == slot
        assert row["uri"] == f"drawn:7:20/{slot % 20}" and row["step"] == slot // 10
        assert row["has_thumbnail"] and memory.thumbnail(slot) == thumbnail(int(slot) * 5)
        assert record["box"] == memory.box[slot].tolist() and "has_thumbnail" not in record


def test_k_is_cut_to_the_written_slots(workbench, picture):
    found = workbench.neighbours(picture, k=10_000)
    assert len(found.ids) == SLOTS - NOISE_SLOTS == len(set(found.ids))
    assert found.ids.max() < SLOTS - NOISE_SLOTS
    with pytest.raises(ModelError, match="k is 0"):
        workbench.neighbours(picture, k=0)


def opened(bundle, tmp_path):
    bundle.save(tmp_path / "b")
    return Workbench(open_model(str(tmp_path / "b")))


def test_a_model_without_memory(tmp_path, picture):
    with pytest.raises(ModelError, match="no memory"):
        opened(small_bundle(with_memory=False), tmp_path).neighbours(picture)


def test_a_memory_without_embeddings(tmp_path, picture):
    bundle = small_bundle()
    workbench = opened(replace(bundle, memory=replace(bundle.memory, embeddings=None)), tmp_path)
    assert len(workbench.neighbours(picture).ids) == 20
    with pytest.raises(ModelError, match="no embeddings, so only the memory space"):
        workbench.neighbours(picture, "embedding")


def test_a_picture_without_embedding_never_answers(tmp_path, picture):
    bundle = small_bundle()
    embeddings = bundle.memory.embeddings.copy()
    embeddings[5] = 0
    workbench = opened(replace(bundle, memory=replace(bundle.memory, embeddings=embeddings)), tmp_path)
    assert 5 not in workbench.neighbours(picture, "embedding", SLOTS).ids
    assert 5 in workbench.neighbours(picture, "memory", SLOTS).ids


def test_a_model_without_head_remembers_embeddings_and_says_so(tmp_path, picture):
    bundle = small_bundle()
    config = bundle.config | {"memssl": bundle.config["memssl"] | {"head": None}}
    memory = replace(small_memory(dim=32), embeddings=None)
    workbench = opened(replace(bundle, config=config, head=None, student=None, memory=memory), tmp_path)
    embedding = workbench.embedding(picture)
    cosines = memory.vectors @ (embedding / np.linalg.norm(embedding))
    expected = np.argsort(-cosines[: SLOTS - NOISE_SLOTS])[:5]
    for space in ("memory", "embedding"):
        found = workbench.neighbours(picture, space, k=5)
        assert found.space == "embedding" and found.ids.tolist() == expected.tolist()
        np.testing.assert_allclose(found.scores, cosines[expected], atol=1e-3)


def test_a_memory_that_is_all_noise(tmp_path, picture):
    bundle = small_bundle()
    memory = replace(bundle.memory, image_id=np.full(SLOTS, -1), written=0, cursor=0)
    with pytest.raises(ModelError, match="still empty"):
        opened(replace(bundle, memory=memory), tmp_path).neighbours(picture)


def test_an_unknown_space(workbench, picture):
    with pytest.raises(ModelError, match="no space 'map'; choose memory or embedding"):
        workbench.neighbours(picture, "map")
