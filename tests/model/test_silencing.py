"""Silencing an attention head against doing it by hand: its slice set to zero inside a full forward pass."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from memssl_core.errors import ModelError
from memssl_core.model import silencing
from memssl_core.model.backbone import create_backbone, embed
from memssl_core.model.features import patch_px
from memssl_core.model.silencing import pass_through, silenced_outputs

ROPE = {"depth": 3, "embed_dim": 96, "num_heads": 3}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "class token": ("vit_tiny_patch16_224", {"depth": 3}),
    "mean pooling, registers": ("vit_tiny_patch16_224", {"depth": 3, "reg_tokens": 2, "global_pool": "avg"}),
    "pooling by attention": ("vit_base_patch16_siglip_224", ROPE),
    "two class tokens": ("deit_tiny_distilled_patch16_224", {"depth": 2}),
    "scale norm": ("vit_tiny_patch16_224", {"depth": 3, "scale_attn_norm": True, "qk_norm": True, "init_values": 0.5}),
    "EvaAttention": ("vit_small_patch16_dinov3", ROPE),
    "EvaAttention, scale norm": ("vit_small_patch16_dinov3", ROPE | {"scale_attn_inner": True, "qk_norm": True}),
    "norms after": ("eva02_tiny_patch14_224", {"depth": 2, "use_post_norm": True}),
    "AttentionRope": ("vit_small_patch16_rope_224", ROPE),
    "AttentionRope, scale norm": ("vit_small_patch16_rope_224", ROPE | {"scale_attn_inner": True}),
    "rope of its own a block": ("vit_small_patch16_rope_mixed_224", ROPE),
}


def backbone_of(name: str, args: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    backbone = create_backbone(name, **args).eval()
    for parameter in backbone.parameters():  # so that norms, scales and biases matter
        parameter.data += 0.05 * torch.randn_like(parameter)
    return backbone


def pixels_of(backbone: Any, rows: int = 5, columns: int = 4) -> torch.Tensor:
    side = patch_px(backbone)
    return torch.randn(1, 3, rows * side, columns * side)


def silenced_by_hand(backbone: Any, pixels: torch.Tensor, block: int, head: int) -> torch.Tensor:
    """[C]: one head's slice of what the heads gave is set to zero inside a full forward pass."""
    attn = backbone.blocks[block].attn
    width = attn.head_dim

    def silence(module, arguments):
        together = arguments[0].clone()
        together[..., head * width : (head + 1) * width] = 0
        return (together,)

    first_after_heads = attn.norm if not isinstance(attn.norm, torch.nn.Identity) else attn.proj
    hook = first_after_heads.register_forward_pre_hook(silence)
    with torch.no_grad():
        row = embed(backbone, pixels)[0]
    hook.remove()
    return row


@pytest.mark.parametrize("name, args", KINDS.values(), ids=KINDS)
def test_every_head_of_every_block_is_silenced_as_by_hand(name, args):
    backbone = backbone_of(name, args)
    pixels = torch.randn(1, 3, 224, 224) if "siglip" in name else pixels_of(backbone)
    passage = pass_through(backbone, pixels)
    with torch.no_grad():
        torch.testing.assert_close(passage.embedding, embed(backbone, pixels), rtol=0, atol=1e-5)
    for block in range(len(backbone.blocks)):
        got = silenced_outputs(backbone, passage, block)
        expected = [silenced_by_hand(backbone, pixels, block, head) for head in range(len(got))]
        assert len(got) == backbone.blocks[block].attn.num_heads
        torch.testing.assert_close(got, torch.stack(expected), rtol=0, atol=1e-5)
        assert (got - passage.embedding).abs().max() > 1e-4


def test_a_head_without_values_says_nothing_new():
    backbone = backbone_of("vit_tiny_patch16_224", {"depth": 2})
    qkv = backbone.blocks[1].attn.qkv
    qkv.weight.data[2 * 192 + 64 : 2 * 192 + 128] = qkv.bias.data[2 * 192 + 64 : 2 * 192 + 128] = 0
    passage = pass_through(backbone, pixels_of(backbone))
    moved = (silenced_outputs(backbone, passage, 1) - passage.embedding).abs().amax(1)
    assert moved[1] < 1e-5 < moved[0]


def test_chunks_of_heads_give_the_same(monkeypatch):
    backbone = backbone_of("vit_tiny_patch16_224", {"depth": 2})
    passage = pass_through(backbone, pixels_of(backbone))
    whole = silenced_outputs(backbone, passage, 0)
    for tokens in (1, 45):
        monkeypatch.setattr(silencing, "TOKENS_AT_ONCE", tokens)
        torch.testing.assert_close(silenced_outputs(backbone, passage, 0), whole)


def test_each_chunk_of_heads_has_a_turn_of_its_own(monkeypatch):
    backbone = backbone_of("vit_tiny_patch16_224", {"depth": 2})
    passage, told = pass_through(backbone, pixels_of(backbone)), []
    hook = backbone.blocks[1].register_forward_pre_hook(lambda *_: told.append("ran"))

    @contextmanager
    def turn():
        told.append("begins")
        yield
        told.append("ends")

    monkeypatch.setattr(silencing, "TOKENS_AT_ONCE", 1)
    silenced_outputs(backbone, passage, 0, turn)
    hook.remove()
    assert told == ["begins", "ran", "ends"] * 3


def test_it_leaves_no_trace_and_runs_only_what_follows():
    backbone = backbone_of("vit_tiny_patch16_224", {"depth": 3})
    passage, ran = pass_through(backbone, pixels_of(backbone)), []
    hooks = [
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
        for index, block in enumerate(backbone.blocks)
    ]
    silenced_outputs(backbone, passage, 1)
    assert ran == [1, 2]
    for hook in hooks:
        hook.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.modules())


def test_another_thread_in_the_same_model_hears_all_heads():
    backbone = backbone_of("vit_tiny_patch16_224", {"depth": 2})
    pixels = pixels_of(backbone)
    with torch.no_grad():
        expected = embed(backbone, pixels)
    passage, found = pass_through(backbone, pixels), []

    def other():
        with torch.no_grad():
            found.append(embed(backbone, pixels))

    def run_another(*_):  # while the head is silent
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=other)
            thread.start()
            thread.join(20)

    hook = backbone.blocks[0].attn.qkv.register_forward_pre_hook(run_another)
    silenced_outputs(backbone, passage, 0)
    hook.remove()
    torch.testing.assert_close(found[0], expected)


def test_a_model_without_attention_is_refused():
    with pytest.raises(ModelError, match="feature map and no attention"):
        pass_through(create_backbone("resnet10t").eval(), torch.zeros(1, 3, 64, 64))
