"""Attention rows against timm's own unfused attention; walk and feature map against timm's forward."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

from memssl_core.errors import ModelError
from memssl_core.model.backbone import create_backbone, embed, embedding_width
from memssl_core.model.features import (
    attention_chunks,
    attention_rows,
    facet_of,
    feature_map,
    n_layers,
    n_prefix,
    patch_px,
    walk,
    why_no_attention,
)

VARIANTS = {
    "plain": {},
    "registers": {"reg_tokens": 2},
    "qk_norm": {"qk_norm": True},
    "no_class_token": {"class_token": False, "global_pool": "avg"},
    "layer_scale_no_bias": {"init_values": 0.5, "qkv_bias": False},
    "pre_norm": {"pre_norm": True, "no_embed_class": True},
    "scale_norm": {"qk_norm": True, "scale_attn_norm": True},
}
SMALL: dict[str, Any] = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "img_size": 64}
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
    for block, entered, full in zip(vit.blocks, inputs, expected, strict=True):
        got = attention_rows(block.attn, entered, rows)
        assert got.shape == (2, 4, 3, n_tokens)
        torch.testing.assert_close(got, full[:, :, rows])
        torch.testing.assert_close(got.sum(-1), torch.ones(2, 4, 3))


@given(st.lists(st.integers(0, 39), max_size=60), st.integers(1, 50))
def test_rows_in_chunks_are_the_rows_in_their_order(rows, most):
    vit = small_vit(reg_tokens=3)
    with torch.no_grad():
        entered = walk(vit, torch.randn(2, 3, 32, 72))[0][1]
    chunks = list(attention_chunks(vit.blocks[1].attn, entered, torch.tensor(rows, dtype=torch.int64), most))
    assert [int(index) for some, _ in chunks for index in some] == rows
    assert all(len(some) <= most for some, _ in chunks)
    for some, part in chunks:
        torch.testing.assert_close(part, attention_rows(vit.blocks[1].attn, entered, some))


def test_prefix_tokens_and_patch_side():
    assert n_prefix(small_vit()) == 1 and n_prefix(small_vit(reg_tokens=2)) == 3
    assert n_prefix(small_vit(class_token=False, global_pool="avg")) == 0
    assert patch_px(small_vit()) == 8


FAMILIES = {
    "plain": ("vit_tiny_patch16_224", {"depth": 3}),
    "registers": ("vit_tiny_patch16_224", {"depth": 3, "reg_tokens": 4}),
    "no class token": ("vit_tiny_patch16_224", {"depth": 3, "class_token": False, "global_pool": "avg"}),
    "rope, separate projections": ("vit_small_patch16_dinov3", {"depth": 3, "embed_dim": 96, "num_heads": 3}),
    "rope and registers": ("vit_small_patch16_dinov3", {"depth": 2, "embed_dim": 96, "num_heads": 3, "qk_norm": True}),
    "rope, biased queries": ("eva02_tiny_patch14_224", {"depth": 3}),
    "rope, scale norm": (
        "vit_small_patch16_dinov3",
        {"depth": 3, "embed_dim": 96, "num_heads": 3, "qk_norm": True, "scale_attn_inner": True},
    ),
    "rope in AttentionRope, norms": (
        "vit_small_patch16_rope_224",
        {"depth": 3, "embed_dim": 96, "num_heads": 3, "qk_norm": True, "scale_attn_inner": True},
    ),
    "queries that share a key": (
        "eva02_tiny_patch14_224",
        {"depth": 2, "attn_type": "rope", "num_kv_heads": 1, "qkv_fused": False},
    ),
    "rope in AttentionRope": ("vit_small_patch16_rope_224", {"depth": 3, "embed_dim": 96, "num_heads": 3}),
    "rope of its own a head": ("vit_small_patch16_rope_mixed_224", {"depth": 3, "embed_dim": 96, "num_heads": 3}),
}


@pytest.mark.parametrize("name, args", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("height, width", [(224, 224), (96, 96), (160, 240)])
def test_every_family_attends_as_timm_says(name, args, height, width):
    torch.manual_seed(0)
    vit: Any = create_backbone(name, **args).eval()
    for parameter in vit.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    side = patch_px(vit)
    pixels = torch.randn(1, 3, height // side * side, width // side * side)
    with torch.no_grad():
        inputs, final = walk(vit, pixels)
        expected = unfused_attention(vit, pixels)
        torch.testing.assert_close(final, vit.forward_features(pixels))
    n_tokens = (height // side) * (width // side) + n_prefix(vit)
    rows = [0, n_prefix(vit), 17, n_tokens - 1]
    for block, entered, full in zip(vit.blocks, inputs, expected, strict=True):
        got = attention_rows(block.attn, entered, rows)
        torch.testing.assert_close(got, full[:, :, rows], rtol=0, atol=1e-5)
        torch.testing.assert_close(got.sum(-1), torch.ones(got.shape[:3]))


def facets_by_timm(vit, tokens: torch.Tensor, layer: int) -> dict[str, torch.Tensor]:
    """What the first linear layers of an attention module give, caught on their way out."""
    attn, caught = vit.blocks[layer].attn, {}
    layers = (
        {"all": attn.qkv} if attn.qkv is not None else {"query": attn.q_proj, "key": attn.k_proj, "value": attn.v_proj}
    )
    hooks = [
        module.register_forward_hook(lambda m, i, output, name=name: caught.update({name: output}))
        for name, module in layers.items()
    ]
    with torch.no_grad():
        vit.forward_features(tokens)
    for hook in hooks:
        hook.remove()
    if "all" in caught:
        caught = dict(zip(("query", "key", "value"), caught["all"].chunk(3, dim=-1), strict=True))
    return caught


@pytest.mark.parametrize("name, args", FAMILIES.values(), ids=FAMILIES)
def test_facets_and_block_outputs_of_every_family(name, args):
    torch.manual_seed(0)
    vit: Any = create_backbone(name, **args).eval()
    side = patch_px(vit)
    pixels = torch.randn(2, 3, 4 * side, 6 * side)
    assert n_layers(vit) == len(vit.blocks)
    with torch.no_grad():
        blocks, final = walk(vit, pixels)
        maps = vit.forward_intermediates(pixels, norm=False, intermediates_only=True)
        torch.testing.assert_close(final, vit.forward_features(pixels))
    for layer, (block, expected) in enumerate(zip(blocks, maps, strict=True)):
        torch.testing.assert_close(block.left[:, n_prefix(vit) :].mT, expected.flatten(2))
        biased = getattr(vit.blocks[layer].attn, "q_bias", None) is not None  # timm adds it on the way: below
        for facet, rows in facets_by_timm(vit, pixels, layer).items() if not biased else ():
            torch.testing.assert_close(facet_of(vit.blocks[layer].attn, block.tokens, facet), rows)


def test_biases_beside_the_fused_layer_are_added():
    vit: Any = create_backbone("eva02_tiny_patch14_224", depth=1, qkv_fused=True).eval()
    attn, tokens = vit.blocks[0].attn, torch.randn(1, 5, 192)
    torch.nn.init.normal_(attn.q_bias)
    torch.nn.init.normal_(attn.v_bias)
    full = attn.qkv(tokens) + torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    for facet, rows in zip(("query", "key", "value"), full.chunk(3, dim=-1), strict=True):
        torch.testing.assert_close(facet_of(attn, tokens, facet), rows)


def test_two_threads_walk_one_model_apart():
    vit, pictures, found = small_vit(), torch.randn(2, 1, 3, 64, 64), {}
    alone = [walk(vit, picture)[0] for picture in pictures]

    def go(index):
        found[index] = [walk(vit, pictures[index])[0] for _ in range(20)]

    threads = [threading.Thread(target=go, args=[index]) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, walks in found.items():
        for inputs in walks:
            assert len(inputs) == 3
            for entered, known in zip(inputs, alone[index], strict=True):
                torch.testing.assert_close(entered.tokens, known.tokens)


def test_another_thread_may_be_inside_the_model_while_a_walk_ends():
    vit, picture = small_vit(), torch.randn(1, 3, 64, 64)
    expected, main, inside, walked, found = (
        vit(picture),
        threading.get_ident(),
        threading.Event(),
        threading.Event(),
        [],
    )

    def hold_the_other(*_):  # it has listed the hooks of the module by now, the walk's among them
        if threading.get_ident() != main:
            inside.set()
            walked.wait(20)

    def start_the_other(*_):
        if threading.get_ident() == main:
            other.start()
            assert inside.wait(20)

    other = threading.Thread(target=lambda: found.append(vit(picture)))
    vit.blocks[0].attn.register_forward_pre_hook(hold_the_other)
    vit.norm.register_forward_pre_hook(start_the_other)
    inputs, _ = walk(vit, picture)
    walked.set()
    other.join(20)
    assert len(inputs) == 3
    torch.testing.assert_close(found[0], expected)


def test_a_walk_leaves_no_trace_on_the_model():
    vit = small_vit()
    before = vit.state_dict()
    walk(vit, torch.randn(1, 3, 64, 64))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in vit.modules())
    assert all(torch.equal(value, before[key]) for key, value in vit.state_dict().items())


@pytest.mark.parametrize(
    "name, side",
    [("resnet10t", 32), ("swin_tiny_patch4_window7_224", 32), ("mobilenetv3_small_050", 32), ("convnext_atto", 32)],
)
def test_other_architectures_have_a_feature_map_instead(name, side):
    model: Any = create_backbone(name).eval()
    assert patch_px(model) == side and n_prefix(model) == 0
    with torch.no_grad():
        maps = [feature_map(model, torch.randn(1, 3, 64, 64), layer) for layer in range(n_layers(model))]
    assert [one.shape[2] for one in maps] == [64 // stage["reduction"] for stage in model.feature_info]
    pixels = torch.randn(1, 3, 4 * side, 6 * side)
    with torch.no_grad():
        cells = feature_map(model, pixels)
        assert cells.shape == (1, model.num_features, 4, 6)
        assert embed(model, pixels).shape == (1, embedding_width(model))
        if name == "swin_tiny_patch4_window7_224":  # whose last map is [B, rows, columns, C]
            torch.testing.assert_close(cells.mean((2, 3)), embed(model, pixels))
    reason = why_no_attention(model)
    assert reason and reason.endswith(".") and "feature map" in reason
    with pytest.raises(ModelError, match="feature map"):
        walk(model, pixels)


def test_a_token_model_has_its_patches_as_feature_map():
    vit = small_vit(reg_tokens=2)
    pixels = torch.randn(2, 3, 24, 72)
    with torch.no_grad():
        cells, tokens = feature_map(vit, pixels), vit.forward_features(pixels)
    assert cells.shape == (2, 32, 3, 9)
    torch.testing.assert_close(cells[1, :, 2, 4], tokens[1, 3 + 2 * 9 + 4])


@pytest.mark.parametrize("name, first", [("cait_xxs24_224", 1), ("resmlp_12_224", 0), ("test_vit_relpos", 0)])
def test_other_models_of_tokens_have_them_as_feature_map(name, first):
    model: Any = create_backbone(name).eval()
    size = model.pretrained_cfg["input_size"][1]
    pixels = torch.randn(1, 3, size, size)
    with torch.no_grad():
        cells, tokens = feature_map(model, pixels), model.forward_features(pixels)[:, first:]
    assert cells.shape[2] == cells.shape[3] == size // patch_px(model)
    torch.testing.assert_close(cells.flatten(2).mT, tokens)


OTHER_FORMS = {"coat_lite_tiny": 7, "levit_128": 4, "pit_ti_224": 7, "volo_d1_224": 14, "hiera_tiny_224": 7}


@pytest.mark.parametrize("name, side", OTHER_FORMS.items())
def test_the_last_map_of_models_that_end_in_other_forms(name, side):
    with torch.device("meta"):
        model = create_backbone(name).eval()
        assert feature_map(model, torch.empty(2, 3, 224, 224)).shape == (2, model.num_features, side, side)


def test_an_encoder_that_does_not_pool_has_no_embedding():
    with torch.device("meta"), pytest.raises(ModelError, match="no embedding of a whole picture"):
        embed(create_backbone("deepseek_vit_412m_enc", depth=1).eval(), torch.empty(1, 3, 224, 224))


def test_a_model_of_one_size_says_so():
    model = create_backbone("cait_xxs24_224").eval()
    with pytest.raises(ModelError, match="cannot read a picture of 96×64 pixels"):
        feature_map(model, torch.zeros(1, 3, 64, 96))


def test_variants_of_attention_are_refused_with_a_sentence():
    model = timm.create_model("vit_base_patch16_224", **SMALL, attn_layer="diff")
    reason = why_no_attention(model)
    assert reason and reason.endswith(".") and reason.count("Attention maps") == 1
    with pytest.raises(ModelError, match="Attention maps"):
        walk(model, torch.zeros(1, 3, 64, 64))


def test_gated_attention_is_refused():
    vit = small_vit()
    vit.blocks[1].attn.gate = torch.nn.Linear(32, 32)
    assert "gated" in str(why_no_attention(vit))
    assert why_no_attention(small_vit()) is None
