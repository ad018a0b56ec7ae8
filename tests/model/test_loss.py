from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from memssl_core.model.loss import block_loss, block_loss_and_entropy, block_loss_reference
from tests.references import loss_by_loops, softmax

TEMPERATURES = {"student_temperature": 0.1, "teacher_temperature": 0.04}


def unit(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


@st.composite
def problems(draw, largest: int = 300):
    """Student, teacher, memory, order and block size: V 2-12, B 1-9, S 1-300, K not always a multiple of S, D 4-256."""
    block_size = draw(st.integers(1, largest))
    slots = draw(st.integers(block_size, 4 * block_size + 3))
    views, images, dim = draw(st.integers(2, 12)), draw(st.integers(1, 9)), draw(st.integers(4, 256))
    seed = draw(st.integers(0, 2**32))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(slots, generator=generator) if draw(st.booleans()) else None
    x, y, m = unit(views, images, dim, seed=seed), unit(2, images, dim, seed=seed + 1), unit(slots, dim, seed=seed + 2)
    return (x, y, m, order), block_size


def value_and_gradient(loss, x, *rest, **settings_):
    x = x.clone().requires_grad_()
    value = loss(x, *rest, **settings_)
    return value.detach(), torch.autograd.grad(value, x)[0]


@settings(max_examples=60)
@given(problems(), st.sampled_from([(0.1, 0.04), (0.1, 0.07), (0.01, 0.005)]))
def test_streaming_form_equals_the_definition(problem, temperatures):
    (x, y, m, order), block_size = problem
    kwargs = {
        "block_size": block_size,
        "student_temperature": temperatures[0],
        "teacher_temperature": temperatures[1],
    }
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        tensors = (x.to(dtype), y.to(dtype), m.to(dtype), order)
        value, gradient = value_and_gradient(block_loss, *tensors, **kwargs)
        expected, table = value_and_gradient(block_loss_reference, *tensors, **kwargs)
        if dtype is torch.float32:
            expected, table = value_and_gradient(block_loss_reference, x, y, m, order, **kwargs)
        floor = 1e-12 if dtype is torch.float64 else 1e-4
        for ours, theirs in ((value, expected), (gradient, table)):
            atol = floor * max(1.0, theirs.abs().max().item())
            torch.testing.assert_close(ours.double(), theirs.double(), rtol=tolerance, atol=atol)


@settings(max_examples=15)
@given(problems(largest=6))
def test_reference_equals_loops_over_every_triple(problem):
    (x, y, m, order), block_size = problem
    x, y, m = x[:4, :2, :8], y[:, :2, :8], m[:, :8]
    slots = list(range(len(m))) if order is None else order.tolist()
    expected = loss_by_loops(x.tolist(), y.tolist(), m.tolist(), slots, block_size=block_size, **TEMPERATURES)
    got = block_loss_reference(x, y, m, order, block_size=block_size, **TEMPERATURES).item()
    assert got == pytest.approx(expected, rel=1e-9)


def test_gradient_equals_finite_differences():
    x, y, m, order = unit(4, 2, 6, seed=0), unit(2, 2, 6, seed=1), unit(11, 6, seed=2), torch.randperm(11)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: block_loss(s, y, m, order, block_size=4, **TEMPERATURES), (x,))


@pytest.mark.parametrize("kappa", [0.02, 0.1])
def test_constant_memory_gives_the_logarithm_of_the_block_size(kappa):
    m = unit(1, 8, seed=3).repeat(64, 1)
    loss = block_loss(unit(3, 2, 8, seed=1), unit(2, 2, 8, seed=2), m, block_size=16, student_temperature=kappa,
                      teacher_temperature=kappa)  # fmt: skip
    assert loss.item() == pytest.approx(math.log(16), rel=1e-12)


def test_noise_memory_gives_the_expected_values():
    """At D 256 and S 16384: 8.93 for equal views at 0.04, 9.34 at 0.07, 9.90 for independent ones at 0.04."""
    m, x = unit(16384, 256, seed=0, dtype=torch.float32), unit(1, 64, 256, seed=1, dtype=torch.float32)
    other = unit(2, 64, 256, seed=2, dtype=torch.float32)
    same = {t: block_loss(x.repeat(2, 1, 1), x.repeat(2, 1, 1), m, block_size=16384, student_temperature=0.1,
                          teacher_temperature=t).item() for t in (0.04, 0.07)}  # fmt: skip
    apart = block_loss(x.repeat(2, 1, 1), other, m, block_size=16384, **TEMPERATURES).item()
    assert (same[0.04], same[0.07], apart) == pytest.approx((8.93, 9.34, 9.90), abs=0.02)


def test_entropy_is_the_teachers():
    x, y, m = unit(3, 2, 5, seed=0), unit(2, 2, 5, seed=1), unit(12, 5, seed=2)
    _, entropy = block_loss_and_entropy(x, y, m, block_size=4, **TEMPERATURES)
    rows = [softmax((m[b : b + 4] @ v / 0.04).tolist()) for b in (0, 4, 8) for v in y.flatten(0, 1)]
    assert entropy.item() == pytest.approx(-sum(p * math.log(p) for row in rows for p in row) / len(rows))


def test_teacher_and_memory_get_no_gradient_and_half_precision_is_taken():
    x, y, m = (unit(*s, seed=i).requires_grad_() for i, s in enumerate([(3, 2, 8), (2, 2, 8), (16, 8)]))
    block_loss(x, y, m, block_size=8, **TEMPERATURES).backward()
    assert x.grad is not None and y.grad is None and m.grad is None
    low = block_loss(x.bfloat16(), y.bfloat16(), m.float(), block_size=8, **TEMPERATURES)
    assert low.item() == pytest.approx(block_loss(x, y, m, block_size=8, **TEMPERATURES).item(), abs=0.1)


@pytest.mark.parametrize("change", ["block", "dim", "views", "images"])
def test_what_does_not_fit_is_refused(change):
    x, y, m = unit(3, 2, 8, seed=0), unit(2, 2, 8, seed=1), unit(16, 8, seed=2)
    bad = {
        "block": (x, y, m, 17),
        "dim": (x, y, m[:, :4], 8),
        "views": (x[:1], y[:1], m, 8),
        "images": (x[:, :1], y, m, 8),
    }
    *tensors, block_size = bad[change]
    for loss in (block_loss, block_loss_reference):
        with pytest.raises(ValueError):
            loss(*tensors, block_size=block_size, **TEMPERATURES)
