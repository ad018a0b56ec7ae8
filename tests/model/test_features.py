"""Attention rows against timm's own unfused attention; the walk against timm's forward."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch

from memssl_core.errors import ModelError
from memssl_core.model.features import attention_rows, block_inputs, n_prefix, patch_px, walk, why_no_attention

VARIANTS = {
    "plain": {},
    "registers": {"reg_tokens": 2},
    "qk_norm": {"qk_norm": True},
    "no_class_token": {"class_token": False, "global_pool": "avg"},
    "layer_scale_no_bias": {"init_values": 0.5, "qkv_bias": False},
    "pre_norm": {"pre_norm": True, "no_embed_class": True},
}
SMALL = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "img_size": 64}
SMALL |= {"num_classes": 0, "dynamic_img_size": True}


def small_vit(**variant) -> Any:
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", **SMALL, **variant)
    for parameter in vit.parameters():  # so that norms, scales and biases matter
        parameter.data += 0.3 * torch.randn_like(parameter)
    return vit.eval()


def unfused_attention(vit, pixels):
    """[B, heads, N, N] of every block: what timm's softmax hands to its dropout when fused attention is off."""
    vit, maps = copy.deepcopy(vit), []
    for block in vit.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, inputs, output: maps.append(output))
    with torch.no_grad():
        vit.forward_features(pixels)
    return maps


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("height, width", [(64, 64), (24, 72)])
def test_rows_and_tokens_are_those_of_timm(variant, height, width):
    vit = small_vit(**variant)
    pixels = torch.randn(2, 3, height, width)
    with torch.no_grad():
        inputs, final = walk(vit, pixels)
        torch.testing.assert_close(final, vit.forward_features(pixels))
    n_tokens = height * width // 64 + n_prefix(vit)
    rows = [0, 5, n_tokens - 1]
    expected = unfused_attention(vit, pixels)
    assert len(inputs) == len(expected) == 3
    for block, tokens, full in zip(vit.blocks, inputs, expected, strict=True):
        got = attention_rows(block, tokens, rows)
        assert got.shape == (2, 4, 3, n_tokens)
        torch.testing.assert_close(got, full[:, :, rows])
        torch.testing.assert_close(got.sum(-1), torch.ones(2, 4, 3))


def test_prefix_tokens_and_patch_side():
    assert n_prefix(small_vit()) == 1 and n_prefix(small_vit(reg_tokens=2)) == 3
    assert n_prefix(small_vit(class_token=False, global_pool="avg")) == 0
    assert patch_px(small_vit()) == 8


def test_a_walk_leaves_no_trace_on_the_model():
    vit = small_vit()
    before = vit.state_dict()
    block_inputs(vit, torch.randn(1, 3, 64, 64))
    assert not any(module._forward_hooks for module in vit.modules())
    assert all(torch.equal(value, before[key]) for key, value in vit.state_dict().items())


@pytest.mark.parametrize(
    "name, args",
    [
        ("resnet10t", {}),
        ("eva02_tiny_patch14_224", {"depth": 1}),  # rotary
        ("vit_base_patch16_224", SMALL | {"attn_layer": "diff"}),
    ],
)
def test_other_architectures_are_refused_with_a_sentence(name, args):
    model = timm.create_model(name, **args)
    reason = why_no_attention(model)
    assert reason and reason.endswith(".") and reason.count("Attention maps") == 1
    with pytest.raises(ModelError, match="Attention maps"):
        walk(model, torch.zeros(1, 3, 64, 64))


def test_gated_attention_is_refused():
    vit = small_vit()
    vit.blocks[1].attn.gate = torch.nn.Linear(32, 32)
    assert "gated" in str(why_no_attention(vit))
    assert why_no_attention(small_vit()) is None
