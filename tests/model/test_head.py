from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from memssl_core.model.head import Head


def test_head_has_the_published_size_and_its_norm_is_safe():
    assert sum(p.numel() for p in Head(384, 2048, 256).parameters()) == 5_509_376
    assert sum(p.numel() for p in Head(768, 2048, 256).parameters()) == 6_295_808
    head = Head(8, 16, 4)
    torch.testing.assert_close(head(torch.randn(2, 5, 8)).norm(dim=-1), torch.ones(2, 5))
    assert head(torch.zeros(1, 8)).isfinite().all()


@pytest.mark.parametrize("batch_norm", [False, True])
def test_head_is_what_its_docstring_says_and_float64_stays_exact(batch_norm):
    torch.manual_seed(0)
    head, embeddings = Head(3, 5, 4, batch_norm=batch_norm).double(), torch.randn(6, 3, dtype=torch.float64)
    rows = embeddings
    for i in range(3):
        weight, bias = (head.state_dict()[f"mlp.{i * (3 if batch_norm else 2)}.{part}"] for part in ("weight", "bias"))
        rows = rows @ weight.T + bias
        if i < 2 and batch_norm:
            rows = (rows - rows.mean(0)) / (rows.var(0, correction=0) + 1e-5).sqrt()
        if i < 2:
            rows = rows * 0.5 * (1 + torch.erf(rows / math.sqrt(2)))
    projections = head(embeddings)
    assert projections.dtype == torch.float64
    torch.testing.assert_close(projections, rows / rows.norm(dim=1, keepdim=True), rtol=1e-12, atol=1e-12)


def test_lower_precision_ends_in_float32_rows_of_unit_length():
    head, embeddings = Head(8, 16, 4, batch_norm=True), torch.randn(6, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = head(embeddings)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(6))
    assert F.cosine_similarity(rows, head(embeddings)).min() > 0.98
