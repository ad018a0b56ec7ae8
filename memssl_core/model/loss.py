"""The objective: student and teacher agree, block by block, on which memory slots a view resembles.

Shapes: V student views, G teacher views (the first G of the V), B images, D projection width, K slots, S block size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Logits of unit rows lie within +-1/temperature. Up to this bound exponentials need no shift in float32: a block would
# have to hold e^28 slots for its sum to overflow, and e^-60 is still a normal number. Colder temperatures keep a
# running maximum.
_SAFE_LOGIT = 60.0
# Logits of one tile, in elements: few enough to stay in a CPU's cache, enough for its matrix product to run well
# (measured with benchmarks/loss_step.py on two cores); a GPU takes whole blocks of usual size.
_TILE_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 26}


def block_loss(
    student: Tensor,
    teacher: Tensor,
    memory: Tensor,
    order: Tensor | None = None,
    *,
    block_size: int,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Cross-entropy of the student's view-memory distributions under the teacher's, in streaming form.

    Args:
        student: [V, B, D] unit rows; teacher: [G, B, D] unit rows, no gradient; memory: [K, D] unit rows, no gradient.
        order: [<= K] distinct slots; each run of `block_size` is one block, the rest sits out (None: as stored).
    Returns: scalar in nats, the mean over pairs of different views, blocks and images.
    Raises: ValueError if shapes do not fit or `block_size` exceeds the slots in `order`.
    Source: Silva et al., ICML 2024, and the official criterion.py and random_partition.py for the value. It is
        computed from each view's log-sum-exp over a block and its softmax read-out of the block (docs/METHOD.md), so
        nothing as wide as the memory is kept: the backward pass is a product with one [V, B, D] table.
    """
    return block_loss_and_entropy(
        student,
        teacher,
        memory,
        order,
        block_size=block_size,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
    )[0]


def block_loss_and_entropy(
    student: Tensor,
    teacher: Tensor,
    memory: Tensor,
    order: Tensor | None = None,
    *,
    block_size: int,
    student_temperature: float,
    teacher_temperature: float,
) -> tuple[Tensor, Tensor]:
    """`block_loss` and the teacher's mean entropy (nats, no gradient): their difference is the KL divergence."""
    check_blocks(student, teacher, memory, order, block_size)
    return _BlockLoss.apply(student, teacher, memory, order, block_size, student_temperature, teacher_temperature)  # type: ignore[return-value]


def block_loss_reference(
    student: Tensor,
    teacher: Tensor,
    memory: Tensor,
    order: Tensor | None = None,
    *,
    block_size: int,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """The definition of `block_loss` in plain tensor operations; keeps every logit."""
    check_blocks(student, teacher, memory, order, block_size)
    slots = memory if order is None else memory[order]
    blocks = slots[: len(slots) // block_size * block_size].unflatten(0, (-1, block_size))
    log_p = (torch.einsum("vbd,nkd->vbnk", student, blocks) / student_temperature).log_softmax(-1)
    target = (torch.einsum("gbd,nkd->gbnk", teacher, blocks) / teacher_temperature).softmax(-1).detach()
    pairs = -torch.einsum("gbnk,vbnk->gv", target, log_p) / target.shape[1:3].numel()
    return pairs[_pairs(len(teacher), len(student), pairs.device)].mean()


def check_blocks(student: Tensor, teacher: Tensor, memory: Tensor, order: Tensor | None, block_size: int) -> None:
    """ValueError unless the arguments of `block_loss` fit together."""
    slots = len(memory) if order is None else len(order)
    if not 1 <= block_size <= slots:
        raise ValueError(f"block_size {block_size} must lie between 1 and the {slots} slots in use")
    if student.shape[1:] != teacher.shape[1:] or student.shape[-1] != memory.shape[-1]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (student, teacher, memory))
        raise ValueError(f"student [V, B, D], teacher [G, B, D] and memory [K, D] do not fit together: {shapes}")
    if not 1 <= len(teacher) <= len(student) or len(student) < 2:
        raise ValueError(f"{len(student)} student and {len(teacher)} teacher views leave no pair of different views")


def _pairs(teacher_views: int, student_views: int, device: torch.device) -> Tensor:
    """[G, V] bool: which teacher view is compared with which student view."""
    return ~torch.eye(teacher_views, student_views, dtype=torch.bool, device=device)


class _BlockLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student, teacher, memory, order, block_size, student_temperature, teacher_temperature):
        dtype = torch.promote_types(student.dtype, torch.float32)
        with torch.autocast(student.device.type, enabled=False):
            x, y = student.to(dtype), teacher.to(dtype)
            views, images, dim = x.shape
            slots = (len(memory) if order is None else len(order)) // block_size * block_size
            queries = torch.cat([(x / student_temperature).flatten(0, 1), (y / teacher_temperature).flatten(0, 1)])
            log_sums, readouts = _read_blocks(queries * math.log2(math.e), memory, order, slots, block_size)

            pairs = _pairs(len(y), views, x.device).to(dtype)
            counts = pairs.sum(0)  # [V] teacher views each student view is compared with
            terms = pairs.sum() * images * (slots // block_size)
            student_sums, teacher_sums = log_sums.split([views * images, len(y) * images])
            own, taught = (r.unflatten(0, (-1, images)) for r in readouts.split([views * images, len(y) * images]))
            targets = torch.einsum("gv,gbd->vbd", pairs, taught)
            matched = (x * targets).sum() / student_temperature
            loss = ((counts @ student_sums.unflatten(0, (views, images))).sum() - matched) / terms
            entropy = (teacher_sums.sum() - (y * taught).sum() / teacher_temperature) / (
                len(teacher_sums) * (slots // block_size)
            )
            gradient = (counts[:, None, None] * own - targets) / (terms * student_temperature)
        ctx.save_for_backward(gradient.to(student.dtype))
        ctx.mark_non_differentiable(entropy)
        return loss, entropy

    @staticmethod
    def backward(ctx, *grad_outputs):
        (gradient,) = ctx.saved_tensors
        return grad_outputs[0] * gradient, None, None, None, None, None, None


def _read_blocks(queries: Tensor, memory: Tensor, order: Tensor | None, slots: int, block_size: int):
    """Sums over blocks of each query's log-sum-exp [R] and softmax read-out [R, D].

    `queries` [R, D] are scaled by log2(e) / temperature, so that powers of two serve, which CPUs take faster.
    """
    rows, dim = queries.shape
    width = tile_width(queries, block_size)
    safe = bool(queries.norm(dim=1).max() <= _SAFE_LOGIT * math.log2(math.e))
    logits, tile = queries.new_empty(rows * width), queries.new_empty(width, dim)
    log_sums, readouts = queries.new_zeros(rows), torch.zeros_like(queries)
    for start in range(0, slots, block_size):
        total, readout = queries.new_zeros(rows), torch.zeros_like(queries)
        peak = queries.new_full((rows,), 0.0 if safe else -torch.inf)
        for low in range(start, start + block_size, width):
            high = min(low + width, start + block_size)
            keys = _rows_of(memory, order, low, high, tile)
            weights = torch.mm(queries, keys.T, out=logits[: rows * len(keys)].view(rows, len(keys)))
            if not safe:
                higher = torch.maximum(peak, weights.amax(1))
                shrink = (peak - higher).exp2()
                total, readout, peak = total * shrink, readout * shrink[:, None], higher
                weights -= peak[:, None]
            weights.exp2_()
            total += weights.sum(1)
            readout.addmm_(weights, keys)
        log_sums += peak * math.log(2) + total.log()
        readouts += readout / total[:, None]
    return log_sums, readouts


def tile_width(queries: Tensor, block_size: int) -> int:
    """Slots of one tile, for [R, D] queries."""
    elements = _TILE_ELEMENTS.get(queries.device.type, _TILE_ELEMENTS["cpu"])
    return min(block_size, max(128, elements // len(queries) // 64 * 64))


def _rows_of(memory: Tensor, order: Tensor | None, low: int, high: int, out: Tensor) -> Tensor:
    if order is None or memory.dtype != out.dtype:
        rows = memory[low:high] if order is None else memory[order[low:high].to(memory.device)]
        return rows.to(out.dtype)
    return torch.index_select(memory, 0, order[low:high].to(memory.device), out=out[: high - low])
