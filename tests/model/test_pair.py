from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from memssl_core.config import PRESETS
from memssl_core.errors import ConfigError, ModelError
from memssl_core.model.backbone import create_backbone
from memssl_core.model.head import Head
from memssl_core.model.pair import Pair

SMOKE = replace(PRESETS["smoke"], head_batch_norm=False)


def views(config=SMOKE, images=3):
    torch.manual_seed(0)
    return torch.randn(2, images, 3, 64, 64), torch.randn(config.local_views, images, 3, 32, 32)


def test_pair_starts_equal_and_gives_unit_rows_view_by_view():
    pair = Pair(SMOKE)
    globals_, locals_ = views()
    student, teacher = pair(globals_, locals_)
    assert student.shape == (4, 3, SMOKE.projection_dim) and teacher.shape == (2, 3, SMOKE.projection_dim)
    torch.testing.assert_close(student.norm(dim=-1), torch.ones(4, 3))
    torch.testing.assert_close(student[:2], teacher)
    one = pair.student(locals_[1])
    torch.testing.assert_close(student[3], one)


def test_teacher_moves_by_the_formula_and_gets_no_gradient():
    pair = Pair(SMOKE)
    with torch.no_grad():
        for p in pair.student.parameters():
            p.add_(1.0)
    before = [p.clone() for p in pair.teacher.parameters()]
    pair.move_teacher(0.9)
    for old, new, student in zip(before, pair.teacher.parameters(), pair.student.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * student)
    student, _ = pair(*views())
    student.sum().backward()
    assert all(p.grad is None for p in pair.teacher.parameters())
    assert all(p.grad is not None for p in pair.student.parameters())


def test_patches_are_dropped_in_the_students_global_views_only():
    pair = Pair(replace(SMOKE, patch_drop=0.5))
    seen: list[int] = []
    pair.student.backbone.blocks[0].register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[1]))
    pair.teacher.backbone.blocks[0].register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[1]))
    pair(*views())
    assert seen == [65, 33, 17]  # teacher: all 64 patches; student: half of them; local views: all 16


def test_backbone_follows_the_config():
    backbone = Pair(PRESETS["demo"]).student.backbone
    assert (len(backbone.blocks), backbone.num_features, backbone.blocks[0].attn.num_heads) == (6, 128, 4)
    assert sum(p.numel() for p in backbone.parameters()) < 3e6
    assert backbone.cls_token.std().item() == pytest.approx(0.02, rel=0.4)


def test_head_has_the_published_size_and_its_norm_is_safe():
    assert sum(p.numel() for p in Head(384, 2048, 256).parameters()) == 5_509_376
    assert sum(p.numel() for p in Head(768, 2048, 256).parameters()) == 6_295_808
    head = Head(8, 16, 4)
    torch.testing.assert_close(head(torch.randn(2, 5, 8)).norm(dim=-1), torch.ones(2, 5))
    assert head(torch.zeros(1, 8)).isfinite().all()


@pytest.mark.parametrize(
    "name, args, words",
    [
        ("vit_tiny_patch16_2", {}, "vit_tiny_patch16_224"),
        ("vit_tiny_patch16_224", {"embed_dim": 50}, "cannot be built with {'embed_dim': 50}"),
        ("resnet10t", {"img_size": 64}, "resnet10t cannot be built"),
    ],
)
def test_a_backbone_that_cannot_be_built_is_named(name, args, words):
    with pytest.raises(ModelError, match=words):
        create_backbone(name, **args)


def test_training_needs_a_class_token():
    with pytest.raises(ConfigError, match="class token"):
        Pair(replace(SMOKE, backbone="vit_base_patch16_siglip_224", patch_size=None, width=None, depth=2))
