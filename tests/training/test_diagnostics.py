from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from memssl_core.model.head import Head
from memssl_core.model.memory import Memory
from memssl_core.model.pair import Network
from memssl_core.training import diagnostics
from memssl_core.training.diagnostics import memory_facts, probe_facts, watch


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
    assert collapsed_rows["spread"] == pytest.approx(1) == collapsed_rows["alignment"]
    assert collapsed_keys["collapse_gauge"] == pytest.approx(0, abs=1e-5)
    assert collapsed_keys["conditional_entropy"] == pytest.approx(1)
    assert collapsed_keys["perplexity"] == pytest.approx(8, rel=1e-4)
    assert healthy["collapse_gauge"] == pytest.approx(1, abs=1e-5)
    assert healthy["conditional_entropy"] == pytest.approx(0, abs=1e-5)
    assert healthy["marginal_entropy"] == pytest.approx(1)
    assert healthy["perplexity"] == pytest.approx(1, rel=1e-4)
    assert healthy["spread"] == pytest.approx(0, abs=1e-6)


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
    assert got["perplexity"] == pytest.approx(math.exp(conditional), rel=1e-5)
    ranked = [(block @ student[0, n]).argsort(descending=True).tolist() for n in range(5)]
    strongest = [int((block @ teacher[1, n]).argmax()) for n in range(5)]
    assert got["agreement"] == pytest.approx(sum(r[0] == k for r, k in zip(ranked, strongest, strict=True)) / 5)
    assert got["agreement_top5"] == pytest.approx(sum(k in r[:5] for r, k in zip(ranked, strongest, strict=True)) / 5)
    pairs = [float(student[i, n] @ teacher[j, n]) for i in range(3) for j in range(2) if i != j for n in range(5)]
    assert got["alignment"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    apart = [float(teacher[1, n] @ teacher[1, m]) for n in range(5) for m in range(5) if n != m]
    assert got["spread"] == pytest.approx(sum(apart) / len(apart), abs=1e-6)


def test_noise_gives_the_figures_that_are_expected_of_it():
    """Computed apart from this code: 512 rows against 16 384 slots of noise at teacher temperature 0.04."""
    torch.manual_seed(0)
    rows = unit(2, 256, 256)
    got = watch(rows, rows, unit(16_384, 256), teacher_temperature=0.04)
    assert got["conditional_entropy"] == pytest.approx(0.876, abs=2e-3)
    assert got["marginal_entropy"] == pytest.approx(0.999, abs=1e-3)
    assert got["collapse_gauge"] * math.log(512) == pytest.approx(1.2, abs=0.02)


def test_one_picture_and_one_slot_are_no_division_by_zero():
    one = watch(unit(2, 1, 4), unit(2, 1, 4), unit(1, 4), teacher_temperature=0.04)
    assert math.isnan(one.pop("spread")) and all(map(math.isfinite, one.values()))
    assert one["conditional_entropy"] == one["collapse_gauge"] == 0


def test_a_memory_of_noise_then_of_one_key_then_of_orthogonal_keys():
    memory = Memory(64, 64, generator=torch.Generator().manual_seed(0))
    rows, ids = torch.eye(64)[:8], torch.arange(8)
    noise = memory_facts(memory, rows, ids)
    assert noise["mean_key_norm"] == pytest.approx(64**-0.5, rel=0.2)
    assert (noise["memory_fill"], noise["memory_age_steps"], noise["self_match_rate"]) == (0, 0, 0)
    for step in range(4):
        memory.push(torch.eye(64)[:1].expand(8, 64), torch.arange(100, 108), step=step)
    half = memory_facts(memory, rows, ids)
    assert (half["memory_fill"], half["memory_age_steps"]) == (0.5, 1.5)
    assert (noise["memory_written"], half["memory_written"]) == (0, 32)
    for step in range(4, 12):
        memory.push(torch.eye(64)[:1].expand(8, 64), torch.arange(100, 108), step=step)
    one = memory_facts(memory, rows, ids)
    assert one["memory_fill"] == 1 and one["memory_age_steps"] == (64 / 8 - 1) / 2
    assert one["mean_key_norm"] == pytest.approx(1) and one["self_match_rate"] == 0
    for step in range(12, 20):
        first = (step - 12) * 8
        memory.push(torch.eye(64)[first : first + 8], torch.arange(first, first + 8), step=step)
    assert memory_facts(memory, rows, ids)["mean_key_norm"] == pytest.approx(64**-0.5, rel=1e-5)
    memory.written.fill_(2**40 + 1)  # a long run: no float32 holds it
    assert memory_facts(memory, rows, ids)["memory_written"] == 2**40 + 1


def test_self_matches_are_counted_in_the_whole_memory(monkeypatch):
    torch.manual_seed(0)
    memory = Memory(10, 16)
    keys = unit(10, 16)
    memory.push(keys, torch.arange(20, 30), step=0)
    asked = torch.cat([keys[:3], unit(1, 16)])
    ids = torch.tensor([20, 21, 99, 98])  # two know themselves, one is another's key, one is new
    assert memory_facts(memory, asked, ids)["self_match_rate"] == 0.5
    monkeypatch.setattr(diagnostics, "_CHUNK_ELEMENTS", 10)  # one row at a time
    assert memory_facts(memory, asked, ids)["self_match_rate"] == 0.5


def network() -> Network:
    torch.manual_seed(3)
    return Network(nn.Identity(), Head(6, 8, 4, batch_norm=True)).train()


def test_lag_is_the_share_of_the_student_that_the_teacher_lacks():
    student, teacher = network(), network()
    with torch.no_grad():
        for p in teacher.parameters():
            p.mul_(0.9)
    embeddings = torch.randn(5, 6)
    assert probe_facts(student, teacher, embeddings, step=0)[0]["teacher_lag"] == pytest.approx(0.1, rel=1e-5)
    assert probe_facts(student, student, embeddings, step=0)[0]["teacher_lag"] == 0


def test_drift_is_one_for_a_teacher_that_rests_and_minus_one_for_one_that_turned_round():
    teacher, embeddings = network(), torch.randn(5, 6)
    facts, first = probe_facts(teacher, teacher, embeddings, step=10)
    assert "drift" not in facts
    facts, second = probe_facts(teacher, teacher, embeddings, step=30, earlier=first)
    assert facts["drift"] == pytest.approx(1) and facts["drift_steps"] == 20
    with torch.no_grad():
        for p in teacher.head.mlp[-1].parameters():
            p.neg_()
    facts, _ = probe_facts(teacher, teacher, embeddings, step=31, earlier=second)
    assert facts["drift"] == pytest.approx(-1) and facts["drift_steps"] == 1
    fewer, _ = probe_facts(teacher, teacher, embeddings[:4], step=32, earlier=second)
    assert "drift" not in fewer  # a picture cannot be read any more


def test_projections_of_a_probe_leave_the_head_as_it_was():
    teacher, embeddings = network(), torch.randn(50, 6)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    facts, kept = probe_facts(teacher, teacher, embeddings, step=0)
    assert teacher.head.training and all(torch.equal(v, teacher.state_dict()[k]) for k, v in before.items())
    assert kept.projections.norm(dim=1) == pytest.approx(torch.ones(50), abs=1e-5)
    assert 1 <= facts["rankme_projection"] <= 4
    with torch.no_grad():
        teacher.head.mlp[-1].weight.zero_()
        teacher.head.mlp[-1].bias.fill_(1.0)
    collapsed, _ = probe_facts(teacher, teacher, embeddings, step=0)
    assert collapsed["rankme_projection"] == pytest.approx(1, abs=1e-3)
