"""Batch normalisation over the batches of all processes, on CPUs too, which torch.nn.SyncBatchNorm refuses."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Module = TypeVar("Module", bound=nn.Module)


class BatchNorm(nn.BatchNorm1d):
    """[B, C, ...] -> the same: torch's batch normalisation, in training over the batches of all processes.

    Every process must call it as often, each with its own batch of any size, and gets what one process would get for
    the joint batch: output, gradients, running statistics. Without a process group it is torch's own.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or _processes() == 1:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            rows = x.to(torch.promote_types(x.dtype, torch.float32))
            axes, per_channel = [0, *range(2, x.ndim)], (1, -1, *[1] * (x.ndim - 2))
            own_count = rows.new_full((1,), x.numel() // x.shape[1])
            *sums, count = _sum(torch.cat([rows.sum(axes), own_count])).split([x.shape[1], 1])
            mean = sums[0] / count
            centred = rows - mean.view(per_channel)
            variance = _sum(centred.square().sum(axes)) / count
            self._track(mean.detach(), variance.detach(), count.detach())
            normal = centred * (variance + self.eps).rsqrt().view(per_channel)
            if self.affine:
                normal = normal * self.weight.view(per_channel) + self.bias.view(per_channel)
        return normal.to(x.dtype)

    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Running statistics as torch keeps them: of the unbiased variance."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        unbiased = variance * count / (count - 1).clamp(min=1)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected [B, C, ...], got {input.ndim} dimensions")


class _BatchNormAct(BatchNorm):
    """timm's layer of a batch normalisation, a dropout of feature maps and an activation."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


def sync_batch_norms(module: Module) -> Module:
    """The module, its batch normalisations replaced by ones over all processes that share weights and names with them.

    On CUDA these are torch.nn.SyncBatchNorm, so move the module to its device first; elsewhere `BatchNorm`.
    """
    if any(parameter.is_cuda for parameter in module.parameters()):
        return convert_sync_batchnorm(module)  # type: ignore[return-value]
    return _converted(module)  # type: ignore[return-value]


def _converted(module: nn.Module) -> nn.Module:
    if isinstance(module, _BatchNorm) and not isinstance(module, BatchNorm):
        return _like(module)
    for name, child in module.named_children():
        setattr(module, name, _converted(child))
    return module


def _like(norm: _BatchNorm) -> BatchNorm:
    kind = _BatchNormAct if isinstance(norm, BatchNormAct2d) else BatchNorm
    synced = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    synced._parameters.update(norm._parameters)
    synced._buffers.update(norm._buffers)
    for name, child in norm.named_children():
        synced.add_module(name, child)
    return synced.train(norm.training)


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Sum(torch.autograd.Function):
    """The sum over all processes. Each process's loss depends on all of it, so gradients are summed too."""

    @staticmethod
    def forward(ctx, x):
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, *grad_outputs):
        total = grad_outputs[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def _sum(x: Tensor) -> Tensor:
    return _Sum.apply(x)  # type: ignore[return-value]
