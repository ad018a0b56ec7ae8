from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from memssl_core.config import PRESETS, TrainConfig
from memssl_core.model.pair import Pair
from memssl_core.training.optimizer import clip_each_tensor, make_optimizer, set_rates
from memssl_core.training.schedules import Rates, rates_at


def test_biases_and_norms_are_not_decayed_but_token_and_positions_are():
    student = Pair(PRESETS["smoke"]).student
    decayed, plain = (g["params"] for g in make_optimizer(student, PRESETS["smoke"]).param_groups)
    names = {id(p): n for n, p in student.named_parameters()}
    assert {"backbone.cls_token", "backbone.pos_embed"} <= {names[id(p)] for p in decayed}
    assert all(p.ndim > 1 for p in decayed) and all(p.ndim == 1 for p in plain)
    assert len(decayed) + len(plain) == len(names)


@pytest.mark.parametrize("kind", ["adamw", "lars", "sgd"])
def test_set_rates_leaves_the_second_group_undecayed(kind):
    optimizer = make_optimizer(nn.Linear(2, 2), replace(TrainConfig(), optimizer=kind))
    set_rates(optimizer, rates_at(0, TrainConfig(), steps=10, steps_per_epoch=1))
    rates = [x for g in optimizer.param_groups for x in (g["lr"], g["weight_decay"])]
    assert rates == pytest.approx([2.5e-4, 0.04, 2.5e-4, 0.0])


def adamw_by_hand(w, g, state, lr, decay):
    """Loshchilov and Hutter 2019, algorithm 2, with the published run's (0.9, 0.999) and 1e-8."""
    t, m, v = (state + [0, 0.0, 0.0])[:3]
    t, m, v = t + 1, 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    step = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return w - lr * step - lr * decay * w, [t, m, v]


def lars_by_hand(w, g, state, lr, decay):
    """You, Gitman and Ginsburg 2017: local rate 0.001 |w| / (|g| + decay |w|); momentum 0.9. 1-d tensors: plain SGD."""
    rate = 0.001 * w.norm() / (g.norm() + decay * w.norm()) if w.ndim > 1 else 1.0
    v = 0.9 * (state or [0.0])[0] + rate * (g + decay * w)
    return w - lr * v, [v]


def sgd_by_hand(w, g, state, lr, decay):
    v = 0.9 * (state or [0.0])[0] + g + decay * w
    return w - lr * v, [v]


@pytest.mark.parametrize("decay", [0.0, 1e-6, 0.05])
@pytest.mark.parametrize("kind, by_hand", [("adamw", adamw_by_hand), ("lars", lars_by_hand), ("sgd", sgd_by_hand)])
def test_steps_are_those_of_the_definition(kind, by_hand, decay):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)).double()
    optimizer = make_optimizer(network, replace(TrainConfig(), optimizer=kind))
    expected = {name: (p.detach().clone(), []) for name, p in network.named_parameters()}
    for step in range(4):
        lr = 0.1 * (step + 1)
        set_rates(optimizer, Rates(lr, decay, 0.99, 0.1, 0.04))
        for name, p in network.named_parameters():
            p.grad = torch.randn_like(p)
            w, state = expected[name]
            expected[name] = by_hand(w, p.grad, state, lr, decay if p.ndim > 1 else 0.0)
        optimizer.step()
    for name, p in network.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name][0], rtol=1e-7, atol=1e-9, msg=name)


def test_lars_steps_as_the_official_code_does_at_the_recipes_decay():
    """There the ratio is 0.001 |w| / |g + decay w|: the same to a part in a million."""
    torch.manual_seed(0)
    config = PRESETS["resnet50-100ep"]
    layer = nn.Linear(6, 5, bias=False).double()
    optimizer, w, v = make_optimizer(layer, config), layer.weight.detach().clone(), torch.zeros(5, 6).double()
    set_rates(optimizer, Rates(0.15, config.weight_decay, 0.99, 0.1, 0.04))
    for _ in range(5):
        layer.weight.grad = torch.randn_like(w)
        update = layer.weight.grad + config.weight_decay * w
        v = config.sgd_momentum * v + update * 0.001 * w.norm() / update.norm()
        w = w - 0.15 * v
        optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), w, rtol=1e-6, atol=1e-9)


def test_sgd_momentum_is_the_settings():
    for kind in ("lars", "sgd"):
        groups = make_optimizer(nn.Linear(2, 2), replace(TrainConfig(), optimizer=kind, sgd_momentum=0.5)).param_groups
        assert {group["momentum"] for group in groups} == {0.5}


def test_each_tensor_is_clipped_by_its_own_norm():
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    for parameter, gradient in zip(parameters, ([3.0, 4.0], [0.3, 0.4], [0.0, 0.0]), strict=True):
        parameter.grad = torch.tensor(gradient)
    norm, share, largest = clip_each_tensor([*parameters, nn.Parameter(torch.zeros(1))], 3.0)
    assert norm == pytest.approx((25 + 0.25) ** 0.5) and share == pytest.approx(1 / 3) and largest == 5
    torch.testing.assert_close(parameters[0].grad, torch.tensor([3.0, 4.0]) * 3 / (5 + 1e-6))
    torch.testing.assert_close(parameters[1].grad, torch.tensor([0.3, 0.4]))
