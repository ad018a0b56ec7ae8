"""The page's own modules against NumPy and the Python they speak with."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page

from memssl_core.data.images import Frame, fit_to_patches
from ui import wire


@pytest.fixture
def modules(page: Page, server: str) -> Page:
    page.goto(f"{server}healthz")  # a page of the same origin, without the app
    page.evaluate(
        """async () => { for (const name of ['maps', 'frame', 'wire'])
           window[name] = await import(`/ui/${name}.js`); }"""
    )
    return page


def mask_by_the_rule(weights: np.ndarray, mass: float) -> list[int]:
    """Ascending, normalised, cumulated; on where the running sum passes 1 - mass."""
    order = np.argsort(weights, kind="stable")
    running = np.cumsum(weights[order] / weights.sum())
    on = np.zeros(len(weights), int)
    on[order[running > 1 - mass + 1e-12]] = 1
    return on.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_numbers_of_a_map(modules: Page, seed: int):
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(48, 0.3)) * 0.9
    given = weights.tolist()
    for mass in (0.05, 0.333, 0.6, 0.95):
        on = modules.evaluate("([w, m]) => [...maps.massMask(Float64Array.from(w), m)]", [given, mass])
        assert on == mask_by_the_rule(weights, mass)
        assert weights[np.array(on, bool)].sum() >= mass * weights.sum() - 1e-12
    assert modules.evaluate("w => maps.massMask(Float64Array.from(w), 1)", given) is None
    share = weights / weights.sum()
    entropy = -(share * np.log2(share)).sum()
    assert modules.evaluate("w => maps.entropyBits(Float64Array.from(w))", given) == pytest.approx(entropy)
    quantile = np.quantile(np.array([weights, weights[::-1] * 2], np.float32), 0.995)
    found = modules.evaluate("([a, b]) => maps.quantile([a, b], 0.995)", [given, (weights[::-1] * 2).tolist()])
    assert found == pytest.approx(float(quantile), rel=1e-5)
    assert modules.evaluate("w => maps.strongest(Float64Array.from(w))", given) == weights.argmax()


def test_the_contour_goes_round_what_is_on(modules: Page):
    lines = modules.evaluate("maps.contour(Uint8Array.from([0, 1, 0, 0, 1, 1]), 2, 3)")
    lengths = [abs(x1 - x0) + abs(y1 - y0) for x0, y0, x1, y1 in lines]
    assert set(lengths) == {1} and len(lines) == 8  # three patches in an L have eight outer sides


@pytest.mark.parametrize(
    "frame",
    [
        fit_to_patches(Image.new("RGB", (321, 240)), patch_px=8, size=96, max_tokens=400)[1],
        Frame(width=200, height=100, rows=4, columns=4, patch_px=16, scale_x=0.64, scale_y=0.64, left_px=32, top_px=0),
    ],
)
def test_a_click_means_what_the_frame_means(modules: Page, frame: Frame):
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 1, (200, 2))
    found = modules.evaluate(
        "([told, points]) => { const it = frame.framed(told); return points.map(([x, y]) => it.at(x, y)); }",
        [asdict(frame), points.tolist()],
    )
    assert found == [frame.patch_at(x * frame.width - 0.5, y * frame.height - 0.5) for x, y in points]
    box = modules.evaluate("told => frame.framed(told).box(5)", asdict(frame))
    edges = np.array(frame.box_of(5)) + 0.5  # from pixel centres to edges
    assert box == pytest.approx((edges / [frame.width, frame.height, frame.width, frame.height]).tolist())


def test_bytes_are_read_and_other_versions_refused(modules: Page):
    rows = np.random.default_rng(0).dirichlet(np.ones(7), (2, 3)).astype(np.float32)
    data = wire.pack(rows, {"grid": [2, 3], "n_prefix": 1})
    read = """bytes => { const it = wire.unpack(Uint8Array.from(bytes).buffer);
                         return [[...it.map(1, 2)], [...it.map(0, -1)]]; }"""
    head, mean = modules.evaluate(read, list(data))
    assert head == pytest.approx(rows[1, 2, 1:].tolist()) and mean == pytest.approx(rows[0, :, 1:].mean(0).tolist())
    refused = "bytes => { try { wire.unpack(Uint8Array.from(bytes).buffer); } catch (error) { return error.message; } }"
    assert "Load the page again" in modules.evaluate(refused, list(data[:4] + b"\x02" + data[5:]))
