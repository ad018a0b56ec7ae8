from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from memssl_core.config import PRESETS, TrainConfig
from memssl_core.errors import ConfigError
from memssl_core.training.optimizer import adamw, clip_each_tensor, set_rates
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


def test_published_presets_carry_the_published_table():
    small, base = PRESETS["vit-s16-800ep"], PRESETS["vit-b16-400ep"]
    shared = {"batch_size": 128, "memory_slots": 131072, "block_size": 16384, "local_views": 10, "drop_path": 0.1,
              "global_scale": (0.32, 1.0), "local_scale": (0.05, 0.32), "clip_norm": 3.0, "head_hidden": 2048,
              "projection_dim": 256, "head_batch_norm": False, "weight_decay_end": 0.4, "momentum_end": 1.0,
              "patch_drop": 0.0}  # fmt: skip
    for name, value in shared.items():
        assert getattr(small, name) == getattr(base, name) == value
    assert (small.epochs, small.lr, small.min_lr, small.warmup_epochs, small.momentum) == (800, 5e-4, 1e-6, 0, 0.992)
    assert (base.epochs, base.lr, base.min_lr, base.warmup_epochs, base.momentum) == (400, 7.5e-4, 2e-6, 10, 0.996)
    assert (small.teacher_temperature_warmup_epochs, base.teacher_temperature_warmup_epochs) == (30, 50)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"block_size": 300}, "block_size 300 is larger than memory_slots 256"),
        ({"lr": 0.0}, "lr"),
        ({"global_scale": (0.5, 0.2)}, "global_scale"),
        ({"batch_size": 1}, "head_batch_norm"),
        ({"momentum": 1.5}, "momentum"),
    ],
)
def test_impossible_settings_cannot_be_built(change, words):
    with pytest.raises(ConfigError, match=words):
        replace(PRESETS["smoke"], **change)


def test_biases_and_norms_are_not_decayed_but_token_and_positions_are():
    from memssl_core.model.pair import Pair

    student = Pair(PRESETS["smoke"]).student
    decayed, plain = (g["params"] for g in adamw(student).param_groups)
    names = {id(p): n for n, p in student.named_parameters()}
    assert {"backbone.cls_token", "backbone.pos_embed"} <= {names[id(p)] for p in decayed}
    assert all(p.ndim > 1 for p in decayed) and all(p.ndim == 1 for p in plain)
    assert len(decayed) + len(plain) == len(names)


def test_set_rates_leaves_the_second_group_undecayed():
    optimizer = adamw(nn.Linear(2, 2))
    set_rates(optimizer, rates_at(0, TrainConfig(), steps=10, steps_per_epoch=1))
    rates = [x for g in optimizer.param_groups for x in (g["lr"], g["weight_decay"])]
    assert rates == pytest.approx([2.5e-4, 0.04, 2.5e-4, 0.0])


def test_each_tensor_is_clipped_by_its_own_norm():
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    for parameter, gradient in zip(parameters, ([3.0, 4.0], [0.3, 0.4], [0.0, 0.0]), strict=True):
        parameter.grad = torch.tensor(gradient)
    norm, share = clip_each_tensor([*parameters, nn.Parameter(torch.zeros(1))], 3.0)
    assert norm == pytest.approx((25 + 0.25) ** 0.5) and share == pytest.approx(1 / 3)
    torch.testing.assert_close(parameters[0].grad, torch.tensor([3.0, 4.0]) * 3 / (5 + 1e-6))
    torch.testing.assert_close(parameters[1].grad, torch.tensor([0.3, 0.4]))
