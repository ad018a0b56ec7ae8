"""Pictures for files: the strongest patch is the lightest, and every map has its tile."""

from __future__ import annotations

import numpy as np
from PIL import Image

from analysis.draw import attention_sheet, inferno, neighbours_sheet, overlay


def test_the_colours_rise_in_lightness():
    colours = inferno(np.linspace(0, 1, 200)).astype(float)
    assert (np.diff(colours @ (0.2126, 0.7152, 0.0722)) >= -1e-9).all()
    assert (inferno(np.array([-1.0, 2.0])) == inferno(np.array([0.0, 1.0]))).all()


def test_the_overlay_is_lightest_where_attention_is_strongest():
    weights = np.full((3, 4), 0.01)
    weights[1, 2] = 0.5
    drawn = np.asarray(overlay(Image.new("RGB", (80, 60), (90, 90, 90)), weights).convert("L"))
    assert drawn.shape == (60, 80)
    assert np.unravel_index(drawn.reshape(3, 20, 4, 20).mean((1, 3)).argmax(), (3, 4)) == (1, 2)


def test_sheets_hold_a_tile_for_each(workbench, picture):
    attention = workbench.attention(picture, query=[1, 2])
    one = attention_sheet(picture, attention, tile_px=100)
    assert one.width == 4 * 106 + 6  # picture, mean, two attention heads
    many = neighbours_sheet(picture, workbench.neighbours(picture, k=20), tile_px=96)
    assert many.width == 10 * 102 + 6 and many.height > 2 * 96
