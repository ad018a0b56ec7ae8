from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from memssl_core.config import PRESETS
from memssl_core.errors import ConfigError, ModelError
from memssl_core.model.backbone import create_backbone, embed, embedding_width
from memssl_core.model.pair import Pair

SMOKE = replace(PRESETS["smoke"], head_batch_norm=False)
OWN_SIZES = replace(SMOKE, patch_size=None, width=None, depth=None, attention_heads=None)
EVA = replace(SMOKE, backbone="eva02_tiny_patch14_224")  # drops patches by another timm layer, for its rotary positions
SWIN = replace(OWN_SIZES, backbone="swin_tiny_patch4_window7_224", width=24)
FAMILIES = {
    "resnet18": (replace(OWN_SIZES, backbone="resnet18"), {}),
    "swin_tiny": (SWIN, {"img_size": 64, "embed_dim": 24}),
    "convnext_atto": (replace(OWN_SIZES, backbone="convnext_atto"), {}),
    "efficientnet": (replace(OWN_SIZES, backbone="test_efficientnet"), {}),
    "mobilenetv3, a map narrower than its embedding": (replace(OWN_SIZES, backbone="mobilenetv3_small_050"), {}),
}


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


@pytest.mark.parametrize("config", [SMOKE, EVA])
def test_patches_are_dropped_in_the_students_global_views_only(config):
    pair = Pair(replace(config, patch_drop=0.5))
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


@pytest.mark.parametrize("family", FAMILIES)
def test_any_family_that_gives_one_embedding_trains(family):
    config, sizes = FAMILIES[family]
    pair = Pair(config)
    student, teacher = pair(*views(config))
    assert student.shape == (4, 3, 64) and teacher.shape == (2, 3, 64)
    student[..., 0].sum().backward()
    assert [name for name, p in pair.student.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert pair.model_args == sizes


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_was_built_with_builds_it_again(family):
    config, _ = FAMILIES[family]
    pair, pixels = Pair(config).eval(), torch.randn(2, 3, 64, 64)
    again = create_backbone(config.backbone, **pair.model_args).eval()
    again.load_state_dict(pair.teacher.backbone.state_dict())
    torch.testing.assert_close(embed(again, pixels), embed(pair.teacher.backbone, pixels))
    assert pair.teacher.head.in_dim == embedding_width(again) == embed(again, pixels).shape[1]


def test_only_the_student_has_stochastic_depth():
    config = replace(SWIN, drop_path=0.3)  # which has 0.1 where it is told nothing
    rates: dict[str, Any] = {
        name: [module.drop_prob for module in network.modules() if isinstance(module, DropPath)]
        for name, network in Pair(config).named_children()
    }
    assert max(rates["student"]) == pytest.approx(0.3) and not any(rates["teacher"])


@pytest.mark.parametrize(
    "change, words",
    [
        ({"backbone": "resnet18", "width": 64, "patch_drop": 0.5}, "resnet18 has no width, patch_drop; set"),
        ({"backbone": "convnext_atto", "depth": 2, "attention_heads": 2}, "has no depth, attention_heads;"),
        ({"backbone": "test_vit_relpos"}, "test_vit_relpos cannot read views of local_size 32"),
        ({"backbone": "test_vit", "global_size": 60}, "test_vit cannot read views of global_size 60"),
        ({"backbone": "dla46_c", "checkpoint_blocks": True}, "dla46_c cannot checkpoint its blocks"),
    ],
)
def test_what_a_family_lacks_is_said_in_one_sentence(change, words):
    with pytest.raises(ConfigError, match=words):
        Pair(replace(OWN_SIZES, **change))


def test_a_fixed_size_is_enough_without_local_views():
    student, _ = Pair(replace(OWN_SIZES, backbone="test_vit_relpos", local_views=0))(torch.randn(2, 3, 3, 64, 64), [])
    assert student.shape == (2, 3, 64)


def test_all_groups_go_through_the_head_at_once():
    network, heads = Pair(PRESETS["smoke"]).student, []
    network.head.register_forward_pre_hook(lambda _, x: heads.append(x[0]))
    groups = torch.randn(4, 3, 64, 64), torch.randn(3, 3, 32, 32), torch.randn(2, 3, 48, 48)
    rows = network(*groups)
    assert [len(x) for x in heads] == [9] and rows.shape == (9, 64)
    torch.testing.assert_close(heads[0], torch.cat([embed(network.backbone, pixels) for pixels in groups]))


def test_a_wrapper_of_the_student_is_called_in_its_place():
    class Wrapper(nn.Module):
        def forward(self, *groups):
            seen.append([tuple(pixels.shape) for pixels in groups])
            return -pair.student(*groups)

    seen: list[list[tuple[int, ...]]] = []
    pair = Pair(SMOKE)
    wrapped, teacher = pair(*views(), student=Wrapper())
    student, same = pair(*views())
    assert seen == [[(6, 3, 64, 64), (6, 3, 32, 32)]]
    assert torch.equal(wrapped, -student) and torch.equal(teacher, same)


def test_checkpointed_blocks_give_the_same_gradients():
    config, gradients, calls = replace(SMOKE, patch_drop=0.5, drop_path=0.4), [], []
    for checkpoint_blocks in (False, True):
        torch.manual_seed(0)
        pair = Pair(replace(config, checkpoint_blocks=checkpoint_blocks))
        counted: list[int] = []
        pair.student.backbone.blocks[1].register_forward_pre_hook(lambda *_, counted=counted: counted.append(1))
        pair(*views())[0][..., 0].sum().backward()
        gradients.append([p.grad for p in pair.student.parameters()])
        calls.append(len(counted))
    assert calls == [2, 4]  # global and local views; and once more each in the backward pass
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_teachers_statistics_are_those_of_its_own_batches():
    pair = Pair(replace(FAMILIES["efficientnet"][0], head_batch_norm=True))
    alone = Pair(replace(FAMILIES["efficientnet"][0], head_batch_norm=True)).teacher
    alone.load_state_dict(pair.teacher.state_dict())
    globals_, locals_ = views()
    with torch.no_grad():
        for p in pair.student.parameters():
            p.mul_(1.5)
    pair(globals_, locals_)
    pair.move_teacher(0.9)
    alone(globals_.flatten(0, 1))
    for name, statistic in pair.teacher.named_buffers():
        assert torch.equal(statistic, alone.get_buffer(name)), name
        assert "num_batches" in name or not torch.equal(statistic, pair.student.get_buffer(name)), name


def test_a_float64_pair_stays_float64():
    pair = Pair(FAMILIES["resnet18"][0]).double()
    assert {x.dtype for x in pair(*(v.double() for v in views()))} == {torch.float64}
