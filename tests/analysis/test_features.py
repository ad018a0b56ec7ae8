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
from analysis.tokens import MAX_INPUT_PIXELS
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


def test_facets_are_those_of_timm_block_by_block(workbench, picture):
    pixels = torch.from_numpy(workbench.pixels(picture, 96)[0])[None]
    backbone: Any = workbench.model.backbone
    with torch.no_grad():
        left = backbone.forward_intermediates(pixels, norm=False, intermediates_only=True)
        tokens = backbone.forward_intermediates(pixels, norm=False, intermediates_only=True, return_prefix_tokens=True)
    for layer in range(2):
        cells, _ = workbench.features(picture, 96, layer=layer)
        np.testing.assert_allclose(cells, left[layer][0].permute(1, 2, 0), atol=1e-5)
        rows = torch.cat([tokens[layer][1], tokens[layer][0].flatten(2).mT], 1)
        block = backbone.blocks[layer + 1]
        parts = block.attn.qkv(block.norm1(rows))[0, 1:].chunk(3, dim=1)
        for facet, expected in zip(("query", "key", "value"), parts, strict=True):
            cells, frame = workbench.features(picture, 96, facet=facet, layer=layer + 1)
            assert cells.shape[:2] == (frame.rows, frame.columns)
            np.testing.assert_allclose(cells.reshape(-1, 32), expected.detach(), atol=1e-5)


def test_a_stage_has_a_map_of_its_own(swin, picture):
    cells, frame = swin.features(picture, 128, layer=1)
    assert cells.shape == (12, 16, 192) == (frame.rows, frame.columns, 192)
    model: Any = swin.model.backbone
    with torch.no_grad():
        maps = model.forward_intermediates(
            torch.from_numpy(swin.pixels(picture, 128)[0])[None], norm=False, intermediates_only=True
        )
    np.testing.assert_allclose(cells, maps[1][0].permute(1, 2, 0), atol=1e-5)
    last = swin.features(picture, 128)[1]
    assert frame.box_of(0)[:2] == last.box_of(0)[:2] == (-0.5, -0.5)
    assert frame.box_of(12 * 16 - 1)[2:] == pytest.approx(last.box_of(11)[2:])


@pytest.mark.parametrize(
    "wrong, sentence",
    [({"layer": 4}, "stages 0 to 3"), ({"layer": -5}, "stages 0 to 3"), ({"facet": "key"}, "no key facet"),
     ({"facet": "soul"}, "no facet 'soul'"), ({"layer": 0, "size": 1024}, "Layer 0 has 256×256 cells")],
)  # fmt: skip
def test_what_a_model_does_not_have_is_said(swin, picture, wrong, sentence):
    with pytest.raises(ModelError, match=sentence):
        swin.features(picture.resize((256, 256)), **wrong)


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

    def means(backbone, pixels, layer):
        if own_size and pixels.shape[2:] != (transform.crop_px, transform.crop_px):
            raise ModelError("This model takes only its own size.")
        return F.adaptive_avg_pool2d(pixels, grid)

    monkeypatch.setattr("analysis.tokens.feature_map", means)
    monkeypatch.setattr("analysis.workbench.why_no_attention", lambda backbone: "It has a feature map.")
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
