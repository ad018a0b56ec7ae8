"""DINO's way with position embeddings, written here with a plain loop over the bicubic kernel."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

from memssl_core.errors import ModelError
from memssl_core.model.backbone import create_backbone
from memssl_core.model.positions import original_positions

TINY: dict[str, Any] = {"depth": 2, "img_size": 112, "embed_dim": 48, "num_heads": 3}  # a grid of 7 x 7


def cubic(t: float, a: float = -0.75) -> float:
    t = abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def resampled(values: np.ndarray, n: int) -> np.ndarray:
    """[g, ...] -> [n, ...] along the first axis: bicubic, edges repeated, by the factor (n + 0.1) / g."""
    g = len(values)
    rows = []
    for i in range(n):
        x = (i + 0.5) * g / (n + 0.1) - 0.5
        near = range(math.floor(x) - 1, math.floor(x) + 3)
        rows.append(sum(cubic(x - j) * values[min(max(j, 0), g - 1)] for j in near))
    return np.stack(rows)


@pytest.mark.parametrize("rows, columns", [(3, 3), (6, 10), (9, 4), (7, 8)])
def test_positions_are_those_of_the_formula(rows, columns):
    table = torch.randn(1, 1 + 49, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grid = table[0, 1:].reshape(7, 7, 5).numpy()
    expected = resampled(resampled(grid, rows).swapaxes(0, 1), columns).swapaxes(0, 1)
    found = original_positions(table, rows, columns)
    assert torch.equal(found[:, 0], table[:, 0])
    np.testing.assert_allclose(found[0, 1:].reshape(rows, columns, 5), expected, rtol=1e-9, atol=1e-9)


def test_the_original_way_differs_only_at_other_sizes():
    torch.manual_seed(0)
    timms = create_backbone("vit_tiny_patch16_224", **TINY).eval()
    timms.pos_embed.data.normal_()  # type: ignore[union-attr, operator]
    original = create_backbone("vit_tiny_patch16_224", positions="original", **TINY).eval()
    original.load_state_dict(timms.state_dict())
    with torch.no_grad():
        own, other = torch.randn(1, 3, 112, 112), torch.randn(1, 3, 48, 80)
        torch.testing.assert_close(timms(own), original(own), rtol=0, atol=1e-6)
        assert (timms(other) - original(other)).norm() / timms(other).norm() > 1e-3
        torch.testing.assert_close(copy.deepcopy(original)(other), original(other))


@pytest.mark.parametrize(
    "name, args",
    [("vit_tiny_patch16_224", {"reg_tokens": 2}), ("vit_small_patch16_dinov3", {"depth": 1}), ("resnet10t", {})],
)
def test_only_models_built_as_those_were_may_have_it(name, args):
    with pytest.raises(ModelError, match="plain vision transformer"):
        create_backbone(name, positions="original", **args)
