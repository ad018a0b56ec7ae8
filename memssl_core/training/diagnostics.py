"""Signs of learning and of collapse (docs/METHOD.md, "what to watch"): what a step can tell of itself for the price of
one block's softmax, what the memory tells, and what is asked of fixed pictures at a probe."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from memssl_core.evaluation.health import rankme
from memssl_core.model.memory import Memory
from memssl_core.model.pair import Network

_CHUNK_ELEMENTS = 1 << 24  # scores held at a time while the whole memory is asked, 64 MiB


@torch.no_grad()
def watch(student: Tensor, teacher: Tensor, block: Tensor, *, teacher_temperature: float) -> dict[str, float]:
    """Gauges of one step on one block.

    Args: student [V, B, D] and teacher [G, B, D] unit rows, block [S, D] unit rows.
    Returns a dict of floats; of the teacher's distributions q over the block, R = G B rows, in shares of ln S:
        conditional_entropy: mean H(q); 1 tells no slots apart, 0 is one slot each;
        marginal_entropy: H(mean q); low when all pictures wake the same few slots;
        collapse_gauge: mutual information of picture and slot over its largest value min(ln R, ln S), 0..1; near 0 in
            every collapse;
        perplexity: exp(mean H(q)), the number of slots a view recalls, 1..S;
    of the strongest slots, student view 0 against the last teacher view, in shares of the pictures:
        agreement, agreement_top5: the teacher's strongest is the student's, or among its five strongest; chance 1/S;
    and of the rows themselves, cosines:
        alignment: mean student view . teacher view over the V G - G pairs of different views;
        spread: mean between different pictures of the last teacher view; 1 when all lie at one point, nan for a
            single picture.
    Source: agreement is what the official code logs; alignment after Wang and Isola, ICML 2020, as a cosine.
    """
    rows = teacher.flatten(0, 1).float()
    log_q = (rows @ block.T / teacher_temperature).log_softmax(-1)
    conditional = -(log_q.exp() * log_q).sum(-1).mean()
    mean = log_q.exp().mean(0)
    marginal = -torch.special.xlogy(mean, mean).sum()
    log_s, log_rows = (torch.log(torch.tensor(float(n), device=rows.device)) for n in (len(block), len(rows)))

    x, y = student.float(), teacher.float()
    strongest = (y[-1] @ block.T).argmax(-1, keepdim=True)
    found = (x[0] @ block.T).topk(min(5, len(block)), -1).indices == strongest
    pairs = (len(x) - 1) * len(y) * x.shape[1]
    same_view = (x[: len(y)] * y).sum()
    images = y.shape[1]
    figures = {
        "conditional_entropy": conditional / log_s.clamp(min=1e-12),
        "marginal_entropy": marginal / log_s.clamp(min=1e-12),
        "collapse_gauge": (marginal - conditional) / torch.minimum(log_s, log_rows).clamp(min=1e-12),
        "perplexity": conditional.exp(),
        "agreement": found[:, 0].float().mean(),
        "agreement_top5": found.any(-1).float().mean(),
        "alignment": ((x.sum(0) * y.sum(0)).sum() - same_view) / pairs,
        "spread": (y[-1].sum(0).square().sum() - y[-1].square().sum()) / (images * (images - 1)),
    }
    return _floats(figures)


@torch.no_grad()
def memory_facts(memory: Memory, rows: Tensor, image_ids: Tensor) -> dict[str, float]:
    """What the memory is like, before this step writes to it.

    Args: rows [B, D] unit teacher rows of the view that is stored; image_ids [B] int64 of their pictures.
    Returns a dict of numbers:
        memory_written: how many keys were ever written, a whole number; modulo K it is the slot written next;
        memory_fill: min(1, keys written / K), the share that is not noise any more;
        memory_age_steps: mean number of steps between a stored key and the newest; (K/B - 1)/2 once it is full;
        mean_key_norm: length of the mean slot, about K^-1/2 for noise and 1 when all keys are one;
        self_match_rate: share of the pictures whose strongest slot of the whole memory is a key of their own. At most
            the share of pictures that have one, (K/N)^2 / 2 of N pictures for K <= N.
    Costs one product of rows and memory, 1 part in 4 V + 8 of the objective's.
    """
    known = memory.step >= 0
    ages = memory.step.max() - memory.step
    chunk = max(1, _CHUNK_ELEMENTS // memory.slots)
    strongest = torch.cat([(part.float() @ memory.vectors.T).argmax(-1) for part in rows.split(chunk)])
    own = memory.image_id[strongest] == image_ids.to(memory.image_id)
    figures = {
        "memory_fill": (memory.written / memory.slots).clamp(max=1),
        "memory_age_steps": (ages * known).sum() / known.sum().clamp(min=1),
        "mean_key_norm": memory.vectors.mean(0).norm(),
        "self_match_rate": own.float().mean(),
    }
    return {"memory_written": int(memory.written), **_floats(figures)}


class Earlier(NamedTuple):
    """Teacher projections [N, D] of the probe's pictures at an earlier probe."""

    step: int
    projections: Tensor


@torch.no_grad()
def probe_facts(
    student: Network, teacher: Network, embeddings: Tensor, *, step: int, earlier: Earlier | None = None
) -> tuple[dict[str, float], Earlier]:
    """What fixed pictures and the weights tell at a probe, and what the next probe is to be handed as `earlier`.

    Args: student and teacher, networks of equal architecture with a `head`; embeddings [N, C] of the same pictures in
        the same order at every probe, by the teacher's backbone.
    Returns a dict of numbers:
        rankme_projection: RankMe of the teacher's projections (eval mode), 1..min(N, D);
        teacher_lag: |student - teacher| / |student| over all parameters as one vector;
        drift: mean cosine of each picture's projection with its earlier one, and drift_steps, the steps between: how
            far the space has moved away from keys of that age. Left out when there is nothing to compare with.
    """
    projections = project(teacher, embeddings)
    facts: dict[str, float] = {
        "rankme_projection": rankme(projections) if len(projections) else 0.0,
        "teacher_lag": teacher_lag(student, teacher),
    }
    if earlier is not None and 0 < len(projections) == len(earlier.projections) and step > earlier.step:
        facts["drift"] = (projections * earlier.projections).sum(-1).mean().item()
        facts["drift_steps"] = step - earlier.step
    return facts, Earlier(step, projections)


@torch.no_grad()
def project(network: Network, embeddings: Tensor) -> Tensor:
    """[N, C] embeddings -> [N, D] unit projections on the CPU, by the head in eval mode; its mode is put back."""
    head = network.head
    was_training = head.training
    try:
        weight = next(head.parameters())
        return head.eval()(embeddings.to(weight)).float().cpu()
    finally:
        head.train(was_training)


@torch.no_grad()
def teacher_lag(student: Network, teacher: Network) -> float:
    """|student - teacher| / |student|, all parameters taken as one vector."""
    own: list[Tensor] = list(student.parameters())
    slow: list[Tensor] = list(teacher.parameters())
    apart = torch.stack(torch._foreach_norm(torch._foreach_sub(own, slow))).norm()
    return (apart / torch.stack(torch._foreach_norm(own)).norm()).item()


def _floats(figures: dict[str, Tensor]) -> dict[str, float]:
    """One transfer for all of them."""
    return dict(zip(figures, torch.stack([value.float() for value in figures.values()]).tolist(), strict=True))
