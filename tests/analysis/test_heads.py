"""The table of attention heads against silencing each by hand and asking the memory anew."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from bundle.making import small_bundle, small_memory
from hypothesis import given
from hypothesis import strategies as st
from references import dot, effect_by_loops

from analysis import Workbench
from analysis.heads import effect_on_memories, head_row, head_table
from memssl_core.config import TrainConfig
from memssl_core.errors import MemsslError, ModelError
from memssl_core.sources import open_model


def embeddings_by_hand(workbench, picture, block: int) -> list[np.ndarray]:
    """The embedding as it is, then with each attention head of a block set to zero in a full forward pass."""
    backbone = workbench.model.backbone
    attn, pixels = backbone.blocks[block].attn, workbench.model.transform(picture)[None]
    found = []
    for head in (None, *range(attn.num_heads)):

        def silence(module, arguments, head=head):
            rows = arguments[0].clone()
            if head is not None:
                rows[..., head * attn.head_dim : (head + 1) * attn.head_dim] = 0
            return (rows,)

        hook = attn.proj.register_forward_pre_hook(silence)
        with torch.no_grad():
            found.append(backbone(pixels)[0])
        hook.remove()
    return found


@pytest.fixture(scope="module")
def lively(tmp_path_factory) -> Workbench:
    """A model whose projections point everywhere, so that a silent head changes which memories answer."""
    bundle = small_bundle()
    for name, weights in bundle.head.items():
        if name.endswith("weight"):
            weights -= weights.mean(1, keepdim=True)
    folder = tmp_path_factory.mktemp("lively") / "b"
    bundle.save(folder)
    return Workbench(open_model(str(folder)))


@pytest.mark.parametrize("block", [0, 1, 2])
def test_a_row_is_silencing_by_hand(lively, picture, block):
    model = lively.model
    whole, *silenced = embeddings_by_hand(lively, picture, block)
    slots = lively.slots("memory")[1].tolist()
    with torch.no_grad():
        cosines = [[dot(row.tolist(), slot) for slot in slots] for row in model.head(torch.stack([whole, *silenced]))]
    row = head_row(lively, picture, block, top=7)
    assert (row.block, row.top, row.slots, row.temperature) == (block, 7, 43, 0.07)
    for head, (embedding, seen) in enumerate(zip(silenced, cosines[1:], strict=True)):
        kl, kept = effect_by_loops(cosines[0], seen, 0.07, 7)
        assert row.kl[head] == pytest.approx(kl, rel=1e-3) and row.kl[head] > 5e-4
        assert row.kept[head] == pytest.approx(kept, abs=1e-6)
        moved = 1 - torch.cosine_similarity(whole, embedding, dim=0).item()
        assert row.moved[head] == pytest.approx(moved, abs=1e-5)


def test_the_table_is_its_rows_told_as_they_come(workbench, picture):
    told = []
    table = head_table(workbench, picture, top=5, emit=lambda event, **facts: told.append((event, facts["step"])))
    assert told == [("progress", 1), ("progress", 2), ("progress", 3)] and table.blocks == (0, 1, 2)
    for block in range(3):
        row = workbench.head_row(picture, block - 3, 5)
        for name in ("kl", "kept", "moved"):
            np.testing.assert_array_equal(getattr(table, name)[block], getattr(row, name))
    lines = list(table.rows)
    assert len(lines) == 6 and lines[3][:2] == [1, 1] and float(lines[3][2]) == pytest.approx(table.kl[1, 1], rel=1e-6)
    assert json.loads(json.dumps(table.summary()))["kept"] == table.kept.tolist()


def test_the_front_of_the_network_runs_once(workbench, picture, monkeypatch):
    first = workbench.head_row(picture, 2)
    monkeypatch.setattr("analysis.tokens.pass_through", lambda *args: pytest.fail("the front ran again"))
    np.testing.assert_array_equal(workbench.head_row(picture, 2).kl, first.kl)
    workbench.head_row(picture, 0)


def test_stopping_says_so(workbench, picture):
    asked = iter([False, True])
    with pytest.raises(MemsslError, match="Stopped; no table was made"):
        workbench.head_table(picture, should_stop=lambda: next(asked))


def test_without_a_memory_the_embedding_speaks(tmp_path, picture):
    small_bundle(with_memory=False).save(tmp_path / "b")
    table = Workbench(open_model(str(tmp_path / "b"))).head_table(picture)
    assert table.kl is table.kept is table.temperature is None and table.slots == 0
    assert table.moved.shape == (3, 2) and (table.moved > 0).all()
    assert list(table.rows)[0][2:4] == [None, None] and table.summary()["kl"] is None


def test_an_empty_memory_counts_as_none(tmp_path, picture):
    bundle = small_bundle()
    bundle.memory.image_id[:] = -1
    bundle.save(tmp_path / "b")
    assert Workbench(open_model(str(tmp_path / "b"))).head_row(picture, 0).kl is None


def test_a_memory_of_embeddings_at_the_published_temperature(workbench, tmp_path, picture):
    model = open_model("random:vit_tiny_patch16_224")
    model.as_bundle(small_memory(dim=192, width=192)).save(tmp_path / "b")
    bench = Workbench(open_model(str(tmp_path / "b")))
    row = bench.head_row(picture, 11, 5)
    assert bench.model.head is None and row.temperature == TrainConfig.teacher_temperature == 0.07
    whole, *silenced = (row / row.norm() for row in embeddings_by_hand(bench, picture, 11))
    slots = bench.slots("embedding")[1]
    for head, embedding in enumerate(silenced):
        cosines = [(slots @ one.numpy()).tolist() for one in (whole, embedding)]
        assert row.kl[head] == pytest.approx(effect_by_loops(*cosines, 0.07, 5)[0], abs=1e-5)


@given(st.integers(1, 12), st.integers(1, 15), st.integers(0, 2**31))
def test_effects_are_those_of_loops(slots, top, seed):
    whole, silenced = np.random.default_rng(seed).uniform(-1, 1, (2, slots)).astype(np.float32)
    kl, kept = effect_on_memories(whole, np.stack([silenced, whole]), 0.04, top)
    expected = effect_by_loops(whole.tolist(), silenced.tolist(), 0.04, top)
    np.testing.assert_allclose((kl[0], kept[0]), expected, rtol=1e-4, atol=1e-5)
    assert kl[1] == 0 and kept[1] == 1


def test_equal_memories_stay_together():
    """The same picture in several slots: none of them has left the top when one of their equals took its place."""
    cosines = np.array([0.5, 0.5, 0.5, 0.2, 0.1], np.float32)
    assert effect_on_memories(cosines, cosines[None, [2, 0, 1, 4, 3]], 0.1, 2)[1] == 1


def test_what_cannot_be_asked(workbench, picture):
    with pytest.raises(ModelError, match="no layer 3; this model has transformer blocks 0 to 2"):
        workbench.head_row(picture, 3)
    with pytest.raises(ModelError, match="top is 0; count at least 1 memory"):
        workbench.head_table(picture, 0)
    with pytest.raises(ModelError, match="feature map and no attention"):
        Workbench(open_model("random:resnet10t")).head_table(picture)
