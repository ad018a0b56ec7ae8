from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memssl_core.config import PRESETS
from memssl_core.training.schedules import rates_at, scheduled


@given(st.integers(2, 200), st.integers(0, 60), st.floats(0.01, 2), st.floats(0, 2))
def test_schedule_equals_the_published_table(steps, warmup, base, end):
    warmup = min(warmup, steps - 1)
    t = np.arange(steps - warmup)
    table = np.concatenate([np.linspace(0, base, warmup), end + 0.5 * (base - end) * (1 + np.cos(np.pi * t / len(t)))])
    assert [scheduled(s, steps, base, end, warmup) for s in range(steps)] == pytest.approx(table.tolist(), abs=1e-12)


def test_rates_of_the_published_small_run():
    config, steps_per_epoch = PRESETS["vit-s16-800ep"], 10_009
    steps = 800 * steps_per_epoch

    def at(step):
        return rates_at(step, config, steps=steps, steps_per_epoch=steps_per_epoch)

    assert at(0).lr == pytest.approx(2.5e-4) and at(steps - 1).lr == pytest.approx(1e-6, rel=1e-3)
    assert at(0).weight_decay == pytest.approx(0.04) and at(steps - 1).weight_decay == pytest.approx(0.4)
    assert at(0).momentum == pytest.approx(0.992) and at(steps // 2).momentum == pytest.approx(0.996)
    assert at(0).teacher_temperature == 0.04 and at(30 * steps_per_epoch).teacher_temperature == pytest.approx(0.07)
    assert at(15 * steps_per_epoch).teacher_temperature == pytest.approx(0.055, rel=1e-4)
    assert at(0).student_temperature == 0.1


def test_rates_of_the_recipe_of_the_codes_defaults():
    config, steps_per_epoch = PRESETS["resnet50-100ep"], 10_009
    rates = [
        rates_at(step, config, steps=100 * steps_per_epoch, steps_per_epoch=steps_per_epoch)
        for step in (0, 10 * steps_per_epoch - 1, 100 * steps_per_epoch - 1)
    ]
    assert [now.lr for now in rates] == pytest.approx([0.0, 0.3 * 128 / 256, 4.8e-3], rel=1e-6)
    assert {now.weight_decay for now in rates} == {1e-6}
    assert rates[0].momentum == 0.99 and rates[-1].momentum == pytest.approx(1.0)


def test_accumulation_changes_no_rate():
    whole, parts = PRESETS["demo"], replace(PRESETS["demo"], accumulate=4)
    assert rates_at(7, parts, steps=50, steps_per_epoch=9) == rates_at(7, whole, steps=50, steps_per_epoch=9)
