"""The tables of docs/METHOD.md, which carry the published settings, and the presets say the same."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from memssl_core.config import PRESETS, TrainConfig
from memssl_core.data import views
from memssl_core.training.schedules import rates_at

METHOD = (Path(__file__).resolve().parents[2] / "docs" / "METHOD.md").read_text(encoding="utf-8")
PUBLISHED = ("vit-s16-800ep", "vit-b16-400ep", "resnet50-100ep")
# What no published setting answers: of the machine, of what is logged, and where the views' table is asked instead.
NOT_PUBLISHED = {
    "patch_size",
    "width",
    "depth",
    "attention_heads",
    "checkpoint_blocks",
    "sgd_momentum",
    "steps",
    "device",
}
NOT_PUBLISHED |= {"precision", "threads", "workers", "log_every", "save_every", "probe_every", "probe_images"}
NOT_PUBLISHED |= {"snapshot_every"}
OPERATIONS = ("horizontal flip", "brightness", "grey", "Gaussian blur", "solarise at 128")  # in their order
OF_THE_VIEWS = {"colour_jitter", "grey", "blur_radius"}


def table(heading: str) -> tuple[list[str], dict[str, list[str]]]:
    """Column names and rows (first cell -> the others) of the table under a heading."""
    section = METHOD.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    (_, *columns), _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return columns, {first: rest for first, *rest in rows}


def values(cell: str) -> list[object]:
    """Numbers, yes and no and names of a cell, in order; a space between digits is no more than a separator."""
    joined = re.sub(r"(?<=\d) (?=\d{3}\b)", "", cell)
    words = re.findall(r"(?<![\w.])(?:\d+(?:\.\d+)?(?:e-?\d+)?|yes|no|[a-z]+\w*\d\w*|adamw|lars|sgd)(?![\w.])", joined)
    return [{"yes": True, "no": False}.get(w, float(w) if w[0].isdigit() else w) for w in words]


def flat(config: TrainConfig, names: list[str]) -> list[object]:
    found = [getattr(config, name) for name in names]
    return [x for value in found for x in (value if isinstance(value, tuple) else (value,))]


COLUMNS, SETTINGS = table("Settings")
NAMED = {row: re.findall(r"`(\w+)`", cells[-1]) for row, cells in SETTINGS.items()}
VIEWS = {row.split(",")[0].split(" ±")[0]: (row, [float(x) for x in cells]) for row, cells in table("Views")[1].items()}


def test_the_table_answers_for_every_setting():
    assert [*(f"`{name}`" for name in PUBLISHED), "setting"] == COLUMNS
    named = [name for names in NAMED.values() for name in names]
    assert len(named) == len(set(named))
    assert set(named) | OF_THE_VIEWS | NOT_PUBLISHED == {field.name for field in fields(TrainConfig)}
    for preset in PUBLISHED:
        config, plain = PRESETS[preset], TrainConfig()
        assert {name for name in NOT_PUBLISHED | OF_THE_VIEWS if getattr(config, name) != getattr(plain, name)} == set()


@pytest.mark.parametrize("row", [row for row, names in NAMED.items() if names])
def test_presets_equal_the_table(row):
    for preset, cell in zip(PUBLISHED, SETTINGS[row], strict=False):
        assert values(cell) == flat(PRESETS[preset], NAMED[row]), preset


def test_what_follows_from_the_settings_equals_the_table():
    (used,) = (cells for row, cells in SETTINGS.items() if row.startswith("which is"))
    for preset, cell, blocks in zip(PUBLISHED, used, SETTINGS["$N$"], strict=False):
        config = PRESETS[preset]
        at_peak = round(config.warmup_epochs * 100)
        now = rates_at(at_peak, config, steps=round(config.epochs * 100), steps_per_epoch=100)
        assert values(cell) == [pytest.approx(now.lr)]
        assert values(blocks) == [config.memory_slots / config.block_size]


class Scripted:
    """A generator that says yes to one operation only, at this draw of its chance."""

    def __init__(self, operation: int, draw: float) -> None:
        self.draws = iter([draw if i == operation else 1.0 for i in range(5)])

    def random(self) -> float:
        return next(self.draws)

    def uniform(self, low: float, high: float) -> float:
        return high

    def permutation(self, n: int) -> np.ndarray:
        return np.arange(n)


@pytest.mark.parametrize("kind, column", [(0, 0), (1, 1), ("local", 2)])
@pytest.mark.parametrize("operation, name", list(enumerate(OPERATIONS)))
def test_each_operation_is_as_likely_as_the_table_says(operation, name, kind, column):
    chance = VIEWS[name][1][column]
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)

    def is_changed(draw: float) -> bool:
        chances = {"blur": views._BLUR[kind], "solarise": views._SOLARISE[kind]}
        drawn = views._recolour(picture, Scripted(operation, draw), PRESETS["vit-s16-800ep"], **chances)  # type: ignore[arg-type]
        return not np.array_equal(np.asarray(drawn), noise)

    assert is_changed(max(chance - 1e-9, 0.0)) == (chance > 0)
    assert not is_changed(chance + 1e-9)


def test_strengths_sides_and_normalisation_equal_the_table():
    config = PRESETS["vit-s16-800ep"]
    assert VIEWS["random resized crop"][1] == [config.global_size, config.global_size, config.local_size]
    assert tuple(map(float, re.findall(r"±([\d.]+)", VIEWS["brightness"][0]))) == config.colour_jitter
    assert values(VIEWS["Gaussian blur"][0]) == list(config.blur_radius)
    assert values(VIEWS["less the mean 0.485"][0]) == [*views.MEAN, *views.STD]
    assert VIEWS["less the mean 0.485"][1] == [1, 1, 1]
