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
        """async () => { for (const name of ['asking', 'maps', 'measures', 'frame', 'wire', 'matching'])
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


@pytest.mark.parametrize("seed", range(3))
def test_measures_of_a_block_are_what_numpy_finds(modules: Page, seed: int):
    rows = np.random.default_rng(seed).dirichlet(np.full(49, 0.2), (2, 3)).astype(np.float32)
    data = wire.pack({"rows": rows, "norms": np.ones((2, 48), np.float32)}, {"grid": [6, 8], "n_prefix": 1})
    found = modules.evaluate(
        """bytes => { const it = measures.measured(wire.attentionMaps(wire.unpack(Uint8Array.from(bytes).buffer)));
           const tops = (head) => [[true, true], [true, false], [false, true], [false, false]].map(([shared, clip]) =>
             it.top(1, head, { shared, clip }));
           return [1, 2].map(() => ({ tops: [tops(2), tops("mean")], peak: it.peak(1, 2), bits: it.bits(1, 2),
             order: [...it.order(1, 2)], on: [...it.mask(1, 2, 0.6)], all: it.mask(1, 2, 1) })); }""",
        list(data),
    )
    assert found[0] == found[1]  # the second time from what is kept
    told, patches = found[0], rows[1, :, 1:].astype(float)
    for (shared, shared_most, own, own_most), weights in zip(told["tops"], (patches[2], patches.mean(0)), strict=True):
        assert shared == pytest.approx(np.quantile(patches, 0.995), rel=1e-5)
        assert own == pytest.approx(np.quantile(weights, 0.995), rel=1e-5)
        assert (shared_most, own_most) == pytest.approx((patches.max(), weights.max()), rel=1e-6)
    assert told["peak"] == patches[2].argmax() and told["order"] == np.argsort(patches[2], kind="stable").tolist()
    assert told["on"] == mask_by_the_rule(patches[2], 0.6) and told["all"] is None
    share = patches[2] / patches[2].sum()
    assert told["bits"] == pytest.approx(-(share * np.log2(share)).sum(), rel=1e-5)


def test_the_patches_of_another_size_are_foretold(modules: Page):
    rng = np.random.default_rng(0)
    for width, height, cells in zip(*rng.integers((8, 8, 4), (900, 900, 64), (60, 3)).T.tolist(), strict=True):
        patch = int(rng.choice([8, 14, 16]))
        frame = fit_to_patches(Image.new("L", (width, height)), patch_px=patch, size=cells * patch, max_tokens=4096)[1]
        told = {"width": width, "height": height, "patch_px": patch}
        found = modules.evaluate("([told, size]) => frame.gridAt(told, size)", [told, cells * patch])
        assert found == {"rows": frame.rows, "columns": frame.columns}


def test_the_middle_of_a_patch_on_the_edge_of_another_grid_is_in_the_patch_after_it(modules: Page):
    picture = Image.new("L", (500, 375))
    few, many = (fit_to_patches(picture, patch_px=14, size=size, max_tokens=4096)[1] for size in (448, 896))
    assert (2 * few.rows, 2 * few.columns) == (many.rows, many.columns)
    expected = [
        (2 * row + 1) * many.columns + 2 * column + 1 for row in range(few.rows) for column in range(few.columns)
    ]
    assert [many.patch_at(*few.centre_of(patch)) for patch in range(few.rows * few.columns)] == expected
    found = modules.evaluate(
        """told => { const [few, many] = told.map(frame.framed);
           const middle = ([x0, y0, x1, y1]) => [(x0 + x1) / 2, (y0 + y1) / 2];
           return Array.from({ length: few.rows * few.columns }, (_, i) => many.at(...middle(few.box(i)))); }""",
        [asdict(few), asdict(many)],
    )
    assert found == expected


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
    centre = modules.evaluate("told => frame.framed(told).centre(5)", asdict(frame))
    assert centre == pytest.approx(frame.centre_of(5))
    edges = np.array(frame.box_of(5)) + 0.5  # from pixel centres to edges
    assert box == pytest.approx((edges / [frame.width, frame.height, frame.width, frame.height]).tolist())


def test_bytes_are_read_and_other_versions_refused(modules: Page):
    rows = np.random.default_rng(0).dirichlet(np.ones(7), (2, 3)).astype(np.float32)
    half = np.array([0, -1.5, 6e-8, 65504, 1 / 3], np.float16)
    norms = np.arange(12, dtype=np.float32).reshape(2, 6)
    arrays = {"odd": np.ones(3, np.uint8), "half": half, "rows": rows, "norms": norms}
    data = wire.pack(arrays, {"grid": [2, 3], "n_prefix": 1})
    halves = modules.evaluate("bytes => [...wire.unpack(Uint8Array.from(bytes).buffer).arrays.half]", list(data))
    assert halves == half.astype(float).tolist()
    read = """bytes => { const it = wire.attentionMaps(wire.unpack(Uint8Array.from(bytes).buffer));
                         const found = [it.map(1, 2), it.map(0, 'mean'), it.row(1, 'max'), it.prefix(0, 1)];
                         const none = it.map(0, 'rollout');
                         it.rolled = { start: 0, rows: Float32Array.from({ length: 14 }, (_, i) => i) };
                         const more = [it.norms(1), it.map(1, 'rollout')];
                         return [...found, ...more].map((values) => [...values]).concat([none]); }"""
    head, mean, largest, prefix, lengths, rollout, none = modules.evaluate(read, list(data))
    assert head == pytest.approx(rows[1, 2, 1:].tolist()) and mean == pytest.approx(rows[0, :, 1:].mean(0).tolist())
    assert largest == rows[1].max(0).tolist() and prefix == rows[0, 1, :1].tolist() and lengths == norms[1].tolist()
    assert rollout == list(range(8, 14)) and none is None
    refused = "bytes => { try { wire.unpack(Uint8Array.from(bytes).buffer); } catch (error) { return error.message; } }"
    assert "Load the page again" in modules.evaluate(refused, list(data[:4] + b"\x03" + data[5:]))


def test_one_question_is_under_way_and_of_a_kind_the_latest_waits(modules: Page):
    found = modules.evaluate(
        """async () => {
             const [sent, props] = [[], {}];
             let told;
             const trigger = (event, question) => sent.push([event, question]);
             const { ask } = asking.questions({ props, trigger, watch: (name, hear) => { told = hear; } });
             const [left, right] = [{ kind: "left" }, { kind: "right", event: "seen" }];
             const asks = [ask({ ask: "maps", n: 0 }), ask({ ask: "maps", n: 1 }), ask({ n: 2 }, left),
                           ask({ ask: "maps", n: 3 }), ask({ n: 4 }, right), ask({ n: 5 }, left)];
             const answer = (value) => { props.value = value; told(); };
             answer({ ticket: 99 }); // of a question that nobody waits for
             for (let i = 0; i < sent.length; i++) answer({ ticket: sent[i][1].ticket, to: sent[i][1].n });
             return [sent.map(([event, { n }]) => [event, n]), (await Promise.all(asks)).map((one) => one?.to ?? null)];
           }"""
    )
    assert found == [[["asked", 0], ["asked", 3], ["asked", 5], ["seen", 4]], [0, None, None, 3, 4, 5]]


@pytest.mark.parametrize("seed", range(3))
def test_numbers_of_matches(modules: Page, seed: int):
    rng = np.random.default_rng(seed)
    a, b = (rng.normal(size=(count, 6)) for count in (12, 20))
    a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (a, b))
    call = "([a, b, i]) => [...matching.cosines(Float32Array.from(a), i, Float32Array.from(b), 6)]"
    found = modules.evaluate(call, [a.ravel().tolist(), b.ravel().tolist(), 7])
    assert found == pytest.approx((b @ a[7]).tolist(), abs=1e-6)

    rows, columns, patch, radius = 4, 5, int(rng.integers(20)), int(rng.integers(3))
    row, column = np.divmod(np.arange(20), columns)
    away = np.maximum(abs(row - patch // columns), abs(column - patch % columns))
    on = modules.evaluate("given => [...matching.apart(...given)]", [patch, rows, columns, radius])
    assert on == (away > radius).astype(int).tolist()
    order = modules.evaluate("([v, on]) => matching.ranked(Float32Array.from(v), on)", [found, on])
    assert order == [i for i in np.argsort(-np.array(found), kind="stable").tolist() if on[i]]

    patches, truth = rng.integers(0, 20, (9, 2)), rng.integers(-1, 20, 20)
    off = modules.evaluate(
        "([p, t]) => Array.from({length: 9}, (_, i) => matching.offBy(p, i, t, 5))",
        [patches.ravel().tolist(), truth.tolist()],
    )
    for (left, right), said in zip(patches.tolist(), off, strict=True):
        true = truth[left]
        far = max(abs(right // 5 - true // 5), abs(right % 5 - true % 5))
        assert said == (None if true < 0 else far)
    fronts = rng.integers(0, 2, (2, 20))
    kept = modules.evaluate("([p, f]) => matching.inFront(p, f)", [patches.ravel().tolist(), fronts.tolist()])
    assert kept == np.flatnonzero(fronts[0][patches[:, 0]] & fronts[1][patches[:, 1]]).tolist()
    assert modules.evaluate("p => matching.inFront(p, null).length", patches.ravel().tolist()) == 9

    scores = rng.uniform(0.2, 1, 50)
    counts = modules.evaluate("s => matching.histogram(s, 0.2, 8)", [*scores.tolist(), 1.0, 0.2])
    assert counts == np.histogram([*scores, 1.0, 0.2], 8, (0.2, 1))[0].tolist()


def test_the_nearest_line_is_found_within_reach(modules: Page):
    lines = [[0, 0, 100, 0], [0, 50, 100, 50], [0, 100, 100, 60]]
    near = lambda x, y: modules.evaluate("([x, y, lines]) => matching.nearestLine(x, y, lines, 10)", [x, y, lines])
    assert [near(50, 4), near(50, 47), near(30, 90), near(50, 25), near(-4, 104)] == [0, 1, 2, None, 2]


def test_stills_are_spread_over_the_run_and_only_the_newest_slots_stand_out(modules: Page):
    spread = "async ([steps, most]) => (await import('/ui/film.js')).evenly(steps, most)"
    rng = np.random.default_rng(0)
    for count in (0, 1, 7, 8, 9, 60):
        steps = np.sort(rng.choice(10_000, count, replace=False)).tolist()
        chosen = modules.evaluate(spread, [steps, 8])
        assert set(chosen) <= set(steps) and chosen == sorted(set(chosen)) and len(chosen) == min(count, 8)
        assert not steps or (chosen[0], chosen[-1]) == (steps[0], steps[-1])
    assert modules.evaluate(spread, [list(range(0, 701, 10)), 8]) == list(range(0, 701, 100))
    levels = """async ([slots, cursor, total, age, fresh]) => {
      const { keysAgo, levelsOf } = await import('/ui/turning.js');
      const ago = keysAgo(slots, cursor, total);
      return [[...ago], [...levelsOf({ age, fresh }, ago, total).levels]];
    }"""
    total, cursor, slots = 64, 5, np.arange(0, 64, 2)
    age = np.where(slots == 40, 0, 255)  # one slot is noise
    for written, stand_out in ((6, 6), (30, 8)):  # keys since the snapshot before; at most an eighth of the ring
        ago, found = modules.evaluate(
            levels, [slots.tolist(), cursor, total, age.tolist(), ((cursor - 1 - slots) % total < written).tolist()]
        )
        expected = [(cursor - 1 - slot) % total for slot in slots]
        assert ago == expected
        newest = [254 if a >= stand_out else 255 for a in expected]
        assert found == [0 if slot == 40 else level for slot, level in zip(slots, newest, strict=True)]
