"""Checkpoints in the layouts the five official code bases write (METHOD.md 8), around any backbone."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn

TINY = "vit_tiny_patch16_224"
HIDDEN, DIM, SLOTS = 24, 16, 40
State = dict[str, Tensor]


def vit(name: str = TINY, seed: int = 0, **args: Any) -> nn.Module:
    """A random timm model in which no tensor is constant."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(name, num_classes=0, **args).requires_grad_(False).eval()
        for parameter in model.parameters():
            parameter += 0.1 * torch.rand_like(parameter)
    return model


def _random(**shapes: tuple[int, ...]) -> State:
    generator = torch.Generator().manual_seed(len(shapes))
    return {name.replace("__", "."): torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def _under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def _training(epoch: int = 800, **args: Any) -> dict[str, Any]:
    rates = {"state": {}, "param_groups": [{"lr": 1e-6, "params": [0, 1]}]}
    return {"optimizer": rates, "epoch": epoch, "args": Namespace(**args), "fp16_scaler": {"scale": 65536.0}}


def massl_head(width: int, *, batch_norm: bool = False) -> State:
    sizes = {0: (HIDDEN, width), 3 if batch_norm else 2: (HIDDEN, HIDDEN), 6 if batch_norm else 4: (DIM, HIDDEN)}
    state = _random(**{f"mlp__{i}__weight": size for i, size in sizes.items()})
    state |= _random(**{f"mlp__{i}__bias": size[:1] for i, size in sizes.items()})
    for i in (1, 4) if batch_norm else ():
        state |= nn.BatchNorm1d(HIDDEN).state_dict(prefix=f"mlp.{i}.")
        state[f"mlp.{i}.running_mean"] = torch.linspace(-1, 1, HIDDEN)
    return state


def massl(backbone: nn.Module, *, batch_norm: bool = False) -> dict[str, Any]:
    """The student's backbone is the teacher's plus 0.01; the queue's columns are the keys."""
    weights, head = backbone.state_dict(), massl_head(backbone.num_features, batch_norm=batch_norm)
    teacher = "module." if batch_norm else ""
    queue = torch.randn(DIM, SLOTS, generator=torch.Generator().manual_seed(3))
    return {
        "student": _under("module.backbone.", {key: value + 0.01 for key, value in weights.items()})
        | _under("module.head.", head),
        "teacher": _under(f"{teacher}backbone.", weights) | _under(f"{teacher}head.", head),
        "memory_bank": {"queue": nn.functional.normalize(queue, dim=0), "queue_ptr": torch.tensor([12])},
        **_training(
            arch="vit_tiny", patch_size=16, partition_size=8, student_temp=0.1, teacher_temp=0.07, use_bn_in_head=True
        ),
    }


def dino_backbone(backbone: nn.Module) -> dict[str, Any]:
    return backbone.state_dict()


def _with_last_layers(backbone: nn.Module, *names: str) -> tuple[State, State]:
    head = _random(mlp__0__weight=(HIDDEN, backbone.num_features), mlp__0__bias=(HIDDEN,), mlp__2__weight=(DIM, HIDDEN))
    for name in names:
        head |= _random(**{f"{name}__weight_g": (50, 1), f"{name}__weight_v": (50, DIM)})
    weights = backbone.state_dict()
    student = _under("module.backbone.", weights) | _under("module.head.", head)
    return student, _under("backbone.", weights) | _under("head.", head)


def dino_full(backbone: nn.Module) -> dict[str, Any]:
    student, teacher = _with_last_layers(backbone, "last_layer")
    loss = {"center": torch.zeros(1, 50)}
    return {"student": student, "teacher": teacher, "dino_loss": loss, **_training(arch="deit_tiny", patch_size=16)}


def ibot_backbone(backbone: nn.Module) -> dict[str, Any]:
    return {"state_dict": backbone.state_dict()}


def ibot_full(backbone: nn.Module) -> dict[str, Any]:
    student, teacher = _with_last_layers(backbone, "last_layer", "last_layer2")
    student["module.backbone.masked_embed"] = torch.zeros(1, backbone.num_features)
    loss = {"center": torch.zeros(1, 50), "center2": torch.zeros(1, 1, 50)}
    return {"student": student, "teacher": teacher, "ibot_loss": loss, **_training(arch="vit_tiny")}


def _with_fixed_positions(backbone: nn.Module) -> State:
    """The [CLS] row of a fixed sin-cos table is zero."""
    weights = backbone.state_dict()
    weights["pos_embed"] = torch.cat([torch.zeros_like(weights["pos_embed"][:, :1]), weights["pos_embed"][:, 1:]], 1)
    return weights


def mocov3(backbone: nn.Module, arch: str = "vit_small") -> dict[str, Any]:
    projector = _random(**{"0__weight": (HIDDEN, backbone.num_features), "3__weight": (HIDDEN, HIDDEN)})
    projector |= _random(**{"6__weight": (DIM, HIDDEN), "7__running_mean": (DIM,)})
    projector |= nn.BatchNorm1d(HIDDEN).state_dict(prefix="1.") | nn.BatchNorm1d(HIDDEN).state_dict(prefix="4.")
    weights = _with_fixed_positions(backbone)
    encoder = weights | _under("head.", projector)
    momentum = {key: value + 1 for key, value in encoder.items()}
    state = _under("module.base_encoder.", encoder) | _under("module.momentum_encoder.", momentum)
    state |= _under("module.predictor.", _random(**{"0__weight": (HIDDEN, DIM), "1__weight": (HIDDEN,)}))
    return {"epoch": 300, "arch": arch, "state_dict": state, "optimizer": {}, "scaler": {"scale": 65536.0}}


def mae_released(backbone: nn.Module) -> dict[str, Any]:
    return {"model": _with_fixed_positions(backbone)}


def mae_training(backbone: nn.Module) -> dict[str, Any]:
    width = backbone.num_features
    decoder = _random(mask_token=(1, 1, DIM), decoder_pos_embed=(1, 197, DIM), decoder_embed__weight=(DIM, width))
    decoder |= _random(decoder_embed__bias=(DIM,), decoder_blocks__0__attn__qkv__weight=(3 * DIM, DIM))
    decoder |= _random(decoder_norm__weight=(DIM,), decoder_pred__weight=(768, DIM), decoder_pred__bias=(768,))
    return {"model": _with_fixed_positions(backbone) | decoder, "scaler": {}, **_training(399)}


LAYOUTS: dict[str, tuple[str, Callable[[nn.Module], dict[str, Any]]]] = {
    "massl": ("massl", massl),
    "massl, batch norm": ("massl", lambda backbone: massl(backbone, batch_norm=True)),
    "dino backbone": ("dino", dino_backbone),
    "dino full": ("dino", dino_full),
    "ibot backbone": ("ibot", ibot_backbone),
    "ibot full": ("ibot", ibot_full),
    "mocov3": ("mocov3", lambda backbone: mocov3(backbone, "vit_tiny")),
    "mae released": ("mae", mae_released),
    "mae training": ("mae", mae_training),
}
"""name -> family and the function that lays a backbone out so"""


def flat(checkpoint: dict[str, Any]) -> State:
    """The tensors of a checkpoint as one .safetensors file names them: entry, dot, name."""
    found = {}
    for entry, value in checkpoint.items():
        if isinstance(value, Tensor):
            found[entry] = value
        elif entry not in ("optimizer", "args", "scaler", "fp16_scaler") and isinstance(value, dict):
            found |= _under(f"{entry}.", value)
    return {key: value.clone() for key, value in found.items()}
