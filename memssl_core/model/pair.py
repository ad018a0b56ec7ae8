"""Student and teacher: the trained network and its slow-moving average."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import PatchDropout
from torch import Tensor, nn

from memssl_core.config import TrainConfig
from memssl_core.errors import ConfigError
from memssl_core.model.backbone import create_backbone, embed
from memssl_core.model.head import Head


class Network(nn.Module):
    """A backbone and its projection head: pixels [B, 3, H, W] -> unit projections [B, D]."""

    backbone: Any
    head: Head

    def __init__(self, backbone: nn.Module, head: Head) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(embed(self.backbone, pixels))


class Pair(nn.Module):
    """Student and teacher start equal; the teacher gets no gradient and sees the global views only.

    The teacher stays in train mode without stochastic depth, as published, so a BatchNorm of its head keeps the
    statistics of the teacher's own batches.
    """

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()

        def network(**rates: Any) -> Network:
            backbone: Any = create_backbone(config.backbone, **config.model_args(), **rates)
            if not isinstance(getattr(backbone, "cls_token", None), nn.Parameter):
                raise ConfigError(
                    f"{config.backbone} has no class token to train; choose one such as vit_small_patch16_224."
                )
            nn.init.trunc_normal_(backbone.cls_token, std=0.02)  # timm starts it at 1e-6, the published code at 0.02
            head = Head(
                backbone.num_features, config.head_hidden, config.projection_dim, batch_norm=config.head_batch_norm
            )
            return Network(backbone, head)

        self.student = network(drop_path_rate=config.drop_path, patch_drop_rate=config.patch_drop)
        self.teacher = network()
        self.teacher.load_state_dict(copy.deepcopy(self.student.state_dict()))
        self.teacher.requires_grad_(False)

    def forward(self, global_views: Tensor, local_views: Tensor) -> tuple[Tensor, Tensor]:
        """[2, B, 3, H, W] and [V-2, B, 3, h, w] normalised pixels -> projections [V, B, D] and [2, B, D]."""
        images = global_views.shape[1]
        with torch.no_grad():
            teacher = self.teacher(global_views.flatten(0, 1))
        embeddings = [embed(self.student.backbone, global_views.flatten(0, 1))]
        if len(local_views):
            with _all_patches(self.student.backbone):
                embeddings.append(embed(self.student.backbone, local_views.flatten(0, 1)))
        student = self.student.head(torch.cat(embeddings))
        return student.unflatten(0, (-1, images)), teacher.unflatten(0, (-1, images))

    @torch.no_grad()
    def move_teacher(self, momentum: float) -> None:
        """teacher <- momentum * teacher + (1 - momentum) * student, for every parameter."""
        teacher: list[Tensor] = list(self.teacher.parameters())
        student: list[Tensor] = list(self.student.parameters())
        torch._foreach_lerp_(teacher, student, 1 - momentum)


@contextmanager
def _all_patches(backbone: Any) -> Iterator[None]:
    drop = backbone.patch_drop
    backbone.patch_drop = nn.Identity() if isinstance(drop, PatchDropout) else drop
    try:
        yield
    finally:
        backbone.patch_drop = drop
