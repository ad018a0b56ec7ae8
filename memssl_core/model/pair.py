"""Student and teacher: the trained network and its slow-moving average."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import PatchDropout, PatchDropoutWithIndices
from torch import Tensor, nn

from memssl_core.config import TrainConfig
from memssl_core.errors import ConfigError
from memssl_core.model.backbone import embed, embedding_width, fit_backbone
from memssl_core.model.head import Head

_FIELDS = {"patch_size": "patch_size", "embed_dim": "width", "depth": "depth", "num_heads": "attention_heads"}
_DROPS = (PatchDropout, PatchDropoutWithIndices)


class Network(nn.Module):
    """A backbone and its projection head."""

    backbone: Any
    head: Head

    def __init__(self, backbone: nn.Module, head: Head) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, *groups: Tensor) -> Tensor:
        """Groups of normalised pixels [B_i, 3, H_i, W_i], sizes their own -> unit projections [sum of B_i, D].

        All embeddings go through the head at once. Patches are dropped, if at all, in the first group only.
        """
        embeddings = [embed(self.backbone, groups[0])]
        with _all_patches(self.backbone):
            embeddings += [embed(self.backbone, pixels) for pixels in groups[1:]]
        return self.head(torch.cat(embeddings))


class Pair(nn.Module):
    """Student and teacher start equal; the teacher gets no gradient and sees the global views only.

    The teacher stays in train mode without stochastic depth, as published, so each BatchNorm of it keeps the statistics
    of the teacher's own batches. Copies of the student's would be those of other weights and of local views: measured,
    they serve it worse (docs/METHOD.md).
    """

    model_args: dict[str, int]
    """the sizes that timm's create_model got: those of the config that the backbone's family has"""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.model_args = {}

        def network(drop_path: float, patch_drop: float) -> Network:
            backbone = self._backbone(config, drop_path, patch_drop)
            head = Head(
                embedding_width(backbone), config.head_hidden, config.projection_dim, batch_norm=config.head_batch_norm
            )
            return Network(backbone, head)

        self.student = network(config.drop_path, config.patch_drop)
        self.teacher = network(0.0, 0.0)
        self.teacher.load_state_dict(copy.deepcopy(self.student.state_dict()))
        self.teacher.requires_grad_(False)
        _check_views(self.teacher.backbone, config)
        if config.checkpoint_blocks:
            _checkpoint_blocks(self.student.backbone, config)

    def _backbone(self, config: TrainConfig, drop_path: float, patch_drop: float) -> nn.Module:
        sizes, rates = config.model_args(), {"drop_path_rate": drop_path, "patch_drop_rate": patch_drop}
        backbone, taken = fit_backbone(config.backbone, {**sizes, **rates})
        self.model_args = {name: value for name, value in taken.items() if name in sizes}
        lacking = [field for argument, field in _FIELDS.items() if argument in sizes and argument not in taken]
        if patch_drop and not isinstance(getattr(backbone, "patch_drop", None), _DROPS):
            lacking.append("patch_drop")
        if lacking:
            raise ConfigError(
                f"{config.backbone} has no {', '.join(lacking)}; set what it lacks to None (patch_drop to 0), "
                "or choose a vision transformer."
            )
        if isinstance(token := getattr(backbone, "cls_token", None), nn.Parameter):
            nn.init.trunc_normal_(token, std=0.02)  # timm starts it at 1e-6, the published code at 0.02
        return backbone

    def forward(
        self, global_views: Tensor, local_views: Tensor, student: nn.Module | None = None
    ) -> tuple[Tensor, Tensor]:
        """[2, B, 3, H, W] and [V-2, B, 3, h, w] normalised pixels -> projections [V, B, D] and [2, B, D].

        Args: student, what to call in place of `self.student`: a wrapper of it.
        """
        images = global_views.shape[1]
        groups = [views.flatten(0, 1) for views in (global_views, local_views) if len(views)]
        with torch.no_grad():
            teacher = self.teacher(groups[0])
        projections = (student or self.student)(*groups)
        return projections.unflatten(0, (-1, images)), teacher.unflatten(0, (-1, images))

    @torch.no_grad()
    def move_teacher(self, momentum: float) -> None:
        """teacher <- momentum * teacher + (1 - momentum) * student, for every parameter."""
        teacher: list[Tensor] = list(self.teacher.parameters())
        student: list[Tensor] = list(self.student.parameters())
        torch._foreach_lerp_(teacher, student, 1 - momentum)


def _checkpoint_blocks(backbone: Any, config: TrainConfig) -> None:
    # A BatchNorm in such a block moves the student's running statistics twice a step, towards the same batch.
    try:
        backbone.set_grad_checkpointing(True)
    except (AttributeError, AssertionError) as reason:
        raise ConfigError(f"{config.backbone} cannot checkpoint its blocks; switch checkpoint_blocks off.") from reason


@torch.no_grad()
def _check_views(backbone: nn.Module, config: TrainConfig) -> None:
    """ConfigError unless the backbone reads both sizes of views. In eval mode: nothing is drawn, no statistics move."""
    backbone.eval()
    for field in ("global_size", "local_size")[: 2 if config.local_views else 1]:
        side = getattr(config, field)
        try:
            embed(backbone, torch.zeros(1, 3, side, side))
        except (AssertionError, RuntimeError, ValueError) as reason:
            raise ConfigError(
                f"{config.backbone} cannot read views of {field} {side}; choose other sizes or another backbone."
            ) from reason
    backbone.train()


@contextmanager
def _all_patches(backbone: Any) -> Iterator[None]:
    drop = getattr(backbone, "patch_drop", None)
    if not isinstance(drop, _DROPS) or not drop.training:
        yield
        return
    drop.eval()
    try:
        yield
    finally:
        drop.train()
