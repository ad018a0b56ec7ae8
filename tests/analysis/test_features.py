"""Feature maps of pictures: the model's own numbers, and a frame that says where in the picture each cell lies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from analysis import Workbench
from analysis.workbench import MAX_INPUT_PIXELS
from memssl_core.errors import ModelError
from memssl_core.sources import open_model


@pytest.fixture(scope="module")
def swin() -> Workbench:
    return Workbench(open_model("random:swin_tiny_patch4_window7_224"))


def test_patch_tokens_lie_where_attention_has_its_patches(workbench, picture):
    cells, frame = workbench.features(picture, 96)
    pixels, same = workbench.pixels(picture, 96)
    assert frame == same and cells.shape == (frame.rows, frame.columns, 32) and cells.dtype == np.float32
    with torch.no_grad():
        tokens = workbench.model.backbone.forward_features(torch.from_numpy(pixels)[None])
    np.testing.assert_allclose(cells.reshape(-1, 32), tokens[0, 1:], atol=1e-5)


def test_a_hierarchical_model_has_a_map_of_any_picture(swin, picture):
    cells, frame = swin.features(picture, 128)
    assert cells.shape == (3, 4, 768) == (frame.rows, frame.columns, 768) and frame.patch_px == 32
    model: Any = swin.model.backbone
    with torch.no_grad():
        expected = model.forward_features(torch.from_numpy(swin.pixels(picture, 128)[0])[None])
    np.testing.assert_allclose(cells, expected[0], atol=1e-5)
    with pytest.raises(ModelError, match="feature map and no attention"):
        swin.attention(picture)


def test_a_large_picture_is_reduced_however_large_the_cells(swin):
    pixels, frame = swin.pixels(Image.new("RGB", (3000, 2000)))
    assert pixels[0].size <= MAX_INPUT_PIXELS and frame.rows * frame.columns < swin.max_tokens
    assert pixels[0].size > 0.9 * MAX_INPUT_PIXELS


def ramps(width: int, height: int) -> Image.Image:
    """Red rises by one a pixel from left to right, green from top to bottom."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0], picture[..., 1] = np.arange(width), np.arange(height)[:, None]
    return Image.fromarray(picture)


CASES = {
    "patches": ((8, 12), ""),
    "padded edges": ((3, 5), ""),
    "crop": ((5, 7), "center"),
    "squash": ((4, 4), "squash"),
}


@pytest.mark.parametrize("grid, own_size", CASES.values(), ids=CASES)
def test_the_frame_says_where_in_the_picture_each_cell_lies(workbench, monkeypatch, grid, own_size):
    transform = replace(workbench.model.transform, crop_mode=own_size or "center")
    bench = Workbench(replace(workbench.model, transform=transform))

    def means(backbone, pixels):
        if own_size and pixels.shape[2:] != (transform.crop_px, transform.crop_px):
            raise ModelError("This model takes only its own size.")
        return F.adaptive_avg_pool2d(pixels, grid)

    monkeypatch.setattr("analysis.workbench.feature_map", means)
    cells, frame = bench.features(ramps(180, 120))
    assert (frame.rows, frame.columns) == grid and (frame.width, frame.height) == (180, 120)
    seen = (cells * np.array(transform.std) + np.array(transform.mean)) * 255
    found = np.array([frame.centre_of(cell) for cell in range(grid[0] * grid[1])]).reshape(*grid, 2)
    inner = slice(1, -1)  # at the edges of the picture, resizing bends the ramps
    np.testing.assert_allclose(found[inner, inner], seen[inner, inner, :2], atol=1.5)
    assert frame.patch_at(*found[1, 2]) == frame.columns + 2
    if own_size:
        with pytest.raises(ModelError, match="only its own size"):
            bench.features(ramps(180, 120), 96)
