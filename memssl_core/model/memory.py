"""The memory: a ring of earlier projections, and the order in which a step cuts it into blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NOISE, UNKNOWN = -1, -2


class Memory(nn.Module):
    """K unit vectors in a ring; the oldest is overwritten first. It starts as noise and has no parameters.

    Buffers, all in the checkpoint: vectors [K, D] float32 unit rows; image_id [K] int64 (-1 noise, -2 a key whose
    image is unknown); step [K] int64 (-1 noise); box [K, 4] float32 (x0, y0, x1, y1 of the crop, 0..1 of its image);
    cursor, the slot written next; written, how many keys were ever pushed.
    Source: Silva et al., ICML 2024; official memory_bank.py, without its demand that slots divide by the batch.
    """

    vectors: Tensor
    image_id: Tensor
    step: Tensor
    box: Tensor
    cursor: Tensor
    written: Tensor

    def __init__(self, slots: int, dim: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        noise = torch.randn(slots, dim, generator=generator)
        self.register_buffer("vectors", F.normalize(noise, dim=1))
        self.register_buffer("image_id", torch.full((slots,), NOISE))
        self.register_buffer("step", torch.full((slots,), -1))
        self.register_buffer("box", torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(slots, 1))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))

    @property
    def slots(self) -> int:
        return len(self.vectors)

    @torch.no_grad()
    def push(
        self, rows: Tensor, image_ids: Tensor | None = None, boxes: Tensor | None = None, step: int | None = None
    ) -> Tensor:
        """Write [B, D] unit rows over the oldest slots, whatever B; of B > K the last K stay.

        Args: image_ids [B] int64 (None: unknown), boxes [B, 4] in 0..1 (None: the whole image), step of the training.
        Returns: [min(B, K)] int64, the slots written, in the order of the rows that stayed.
        """
        count = len(rows)
        kept = slice(max(0, count - self.slots), count)
        slots = (self.cursor + torch.arange(count, device=rows.device)[kept]) % self.slots
        self.vectors[slots] = rows[kept].to(self.vectors.dtype)
        self.image_id[slots] = UNKNOWN if image_ids is None else image_ids[kept].to(self.image_id)
        self.box[slots] = self.box.new_tensor([0, 0, 1, 1]) if boxes is None else boxes[kept].to(self.box)
        self.step[slots] = -1 if step is None else step
        self.cursor.copy_((self.cursor + count) % self.slots)
        self.written.add_(count)
        return slots


def block_order(seed: int, step: int, slots: int) -> Tensor:
    """[slots] int64 permutation of a step: the same on every rank and after a resume."""
    generator = torch.Generator().manual_seed(_mixed(seed, step))
    return torch.randperm(slots, generator=generator)


def _mixed(seed: int, step: int) -> int:
    """One 63-bit seed out of two numbers (SplitMix64's finaliser), so that neighbouring steps share nothing."""
    mask = (1 << 64) - 1
    value = (seed * 0x9E3779B97F4A7C15 + step + 1) & mask
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = ((value ^ (value >> shift)) * factor) & mask
    return (value ^ (value >> 31)) >> 1
