from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from memssl_core.training.diagnostics import watch


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def test_gauge_falls_to_zero_in_every_collapse_and_is_one_when_every_row_has_its_slot():
    torch.manual_seed(0)
    block = torch.eye(8)
    same = unit(1, 1, 8).expand(2, 4, 8)
    collapsed_rows = watch(same, same, block, teacher_temperature=0.04)
    collapsed_keys = watch(unit(2, 4, 8), unit(2, 4, 8), unit(1, 8).expand(8, 8), teacher_temperature=0.04)
    healthy = watch(block.view(2, 4, 8), block.view(2, 4, 8), block, teacher_temperature=0.01)
    assert collapsed_rows["collapse_gauge"] == pytest.approx(0, abs=1e-5)
    assert collapsed_keys["collapse_gauge"] == pytest.approx(0, abs=1e-5)
    assert collapsed_keys["conditional_entropy"] == pytest.approx(1)
    assert healthy["collapse_gauge"] == pytest.approx(1, abs=1e-5)
    assert healthy["conditional_entropy"] == pytest.approx(0, abs=1e-5)
    assert healthy["marginal_entropy"] == pytest.approx(1)


def test_gauges_equal_sums_over_rows():
    torch.manual_seed(1)
    student, teacher, block = unit(3, 5, 6), unit(2, 5, 6), unit(7, 6)
    got = watch(student, teacher, block, teacher_temperature=0.1)
    rows = [torch.softmax(block @ v / 0.1, 0).tolist() for v in teacher.flatten(0, 1)]
    mean = [sum(r[k] for r in rows) / 10 for k in range(7)]
    conditional = -sum(p * math.log(p) for r in rows for p in r) / 10
    marginal = -sum(p * math.log(p) for p in mean)
    assert got["conditional_entropy"] == pytest.approx(conditional / math.log(7), rel=1e-5)
    assert got["marginal_entropy"] == pytest.approx(marginal / math.log(7), rel=1e-5)
    assert got["collapse_gauge"] == pytest.approx((marginal - conditional) / math.log(7), rel=1e-4)
    agreeing = [(block @ student[0, n]).argmax() == (block @ teacher[1, n]).argmax() for n in range(5)]
    assert got["agreement"] == pytest.approx(sum(map(int, agreeing)) / 5)
