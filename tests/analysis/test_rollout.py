"""Rollout against a plain loop over full matrices, and what must always hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bundle.making import small_bundle
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from analysis import Workbench
from analysis.rollout import rolled_rows
from memssl_core.errors import ModelError
from memssl_core.model.features import BlockTokens
from memssl_core.sources import open_model


def rollout_by_loop(workbench, picture, size, start) -> np.ndarray:
    """[L, N, N]: the product of 0.5 A + 0.5 I up to each block; zero before `start`."""
    grid = workbench.attention(picture, 0, 0, size).grid
    tokens = ["cls", *range(grid[0] * grid[1])]
    layers = workbench.model.card["blocks"]
    product, products = np.eye(len(tokens)), []
    for layer in range(layers):
        mean = workbench.attention(picture, layer, tokens, size).rows.astype(np.float64).mean(0)
        if layer >= start:
            product = (0.5 * mean + 0.5 * np.eye(len(tokens))) @ product
        products.append(product if layer >= start else np.zeros_like(product))
    return np.stack(products)


@pytest.mark.parametrize("start", [0, 1, -1])
def test_rollout_is_the_plain_product(workbench, picture, start):
    full = rollout_by_loop(workbench, picture, 96, start % 3)
    patches = full.shape[1] - 1
    for query, row in [("cls", full[:, 0]), (5, full[:, 6]), ("mean", full[:, 1:].mean(1))]:
        found = workbench.rollout(picture, query, 96, start=start)
        assert found.rows.shape == (3, 1 + patches) and found.rows.dtype == np.float32
        np.testing.assert_allclose(found.rows, row, atol=1e-6)
        assert found.start == start % 3 and not found.rows[: found.start].any()
        assert found.maps().shape == (3, *found.grid) and found.n_prefix == 1
        assert found.queries == workbench.attention(picture, 0, query, 96).queries


class Given(nn.Module):
    """An attention module whose rows are given: [heads, N, N]."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows


@given(
    st.integers(1, 4), st.integers(1, 3), st.integers(1, 9), st.integers(0, 3), st.integers(0, 2**31), st.integers(1, 4)
)
def test_rows_stay_distributions_whatever_the_attention(layers, heads, tokens, start, seed, most):
    generator = torch.Generator().manual_seed(seed)
    attentions = [Given(torch.rand(heads, tokens, tokens, generator=generator).softmax(-1)) for _ in range(layers)]
    query = torch.rand(tokens, generator=generator)
    query /= query.sum()

    def chunks(attention, entered, rows):
        for index in rows.split(most):
            yield index, attention.rows[None, :, index]

    blocks = [BlockTokens(torch.zeros(1, tokens, 2), torch.zeros(1, tokens, 2))] * layers
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.rollout.attention_chunks", chunks)
        rows = rolled_rows(attentions, blocks, query, min(start, layers - 1))
    start = min(start, layers - 1)
    torch.testing.assert_close(rows[start:].sum(1), torch.ones(layers - start))
    product = torch.eye(tokens)
    for layer in range(start, layers):
        product = (attentions[layer].rows.mean(0) + torch.eye(tokens)) / 2 @ product
        torch.testing.assert_close(rows[layer], query @ product)


def test_attention_to_itself_alone_stays_where_it_is():
    eye = Given(torch.eye(5)[None])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.rollout.attention_chunks", lambda a, e, rows: [(rows, a.rows[None, :, rows])])
        rows = rolled_rows([eye] * 3, [None] * 3, torch.eye(5)[2], 0)
    torch.testing.assert_close(rows, torch.eye(5)[2].repeat(3, 1))


def test_registers_and_refusals(tmp_path, picture):
    small_bundle(reg_tokens=2, class_token=False, global_pool="avg").save(tmp_path / "b")
    workbench = Workbench(open_model(str(tmp_path / "b")))
    found = workbench.rollout(picture, "register:1", 64)
    assert found.n_prefix == 2 and found.queries == (1,)
    np.testing.assert_allclose(found.rows.sum(1), 1, atol=1e-5)
    with pytest.raises(ModelError, match="no class token"):
        workbench.rollout(picture)
    with pytest.raises(ModelError, match="no layer 3; this model has transformer blocks 0 to 2"):
        workbench.rollout(picture, 0, start=3)
    with pytest.raises(ModelError, match="2 queries"):
        workbench.rollout(picture, [1, 2])
