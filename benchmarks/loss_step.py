"""How close is the objective to its own two matrix products, and how far from the published form?

python benchmarks/loss_step.py [--rounds N]: forward and backward of `block_loss`, the two products alone (the logits
of all views and the read-outs of the memory, in the same tiles), and the published form: full logits, gather by the
permutation, both softmaxes for each pair of views. One run, fp32, V 8, B 16, D 256, K 65 536, S 16 384.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context

import torch
import tyro
from timing import extra_peak_mib, interleaved_s, machine, ratio
from torch import Tensor
from torch.nn import functional as F

from memssl_core.model.loss import block_loss, tile_width

TEMPERATURES = {"student_temperature": 0.1, "teacher_temperature": 0.04}


@dataclass(frozen=True)
class Setting:
    views: int = 8
    images: int = 16
    dim: int = 256
    slots: int = 65_536
    block_size: int = 16_384
    rounds: int = 15

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        torch.manual_seed(0)
        shapes = ((self.views, self.images, self.dim), (2, self.images, self.dim), (self.slots, self.dim))
        student, teacher, memory = (F.normalize(torch.randn(shape), dim=-1) for shape in shapes)
        return student.requires_grad_(), teacher, memory, torch.randperm(self.slots)


def streaming(setting: Setting, tensors: tuple[Tensor, ...]) -> float:
    student = tensors[0]
    student.grad = None
    loss = block_loss(*tensors, block_size=setting.block_size, **TEMPERATURES)
    loss.backward()
    return loss.item()


def published(setting: Setting, tensors: tuple[Tensor, ...]) -> float:
    """The official order of operations: every logit, re-indexed and stacked into blocks, one pair after another."""
    student, teacher, memory, order = tensors
    student.grad = None

    def blocks(rows: Tensor, temperature: float) -> Tensor:
        gathered = (rows @ memory.T)[:, order] / temperature
        return torch.stack(gathered.split(setting.block_size, dim=1))

    student_logits = [blocks(view, TEMPERATURES["student_temperature"]) for view in student]
    teacher_logits = [blocks(view, TEMPERATURES["teacher_temperature"]) for view in teacher]
    total, pairs = torch.zeros(()), 0
    for j, targets in enumerate(teacher_logits):
        for i, logits in enumerate(student_logits):
            if i != j:
                total = total - (targets.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()
                pairs += 1
    loss = total / pairs
    loss.backward()
    return loss.item()


def two_products(setting: Setting, tensors: tuple[Tensor, ...]) -> None:
    student, teacher, memory, _ = tensors
    queries = torch.cat([student.detach().flatten(0, 1), teacher.flatten(0, 1)])
    width = tile_width(queries, setting.block_size)
    logits, readout = queries.new_empty(len(queries) * width), torch.zeros_like(queries)
    for keys in memory.split(width):
        weights = torch.mm(queries, keys.T, out=logits[: len(queries) * len(keys)].view(len(queries), -1))
        readout.addmm_(weights, keys)


def peak_of(name: str, setting: Setting) -> float:
    """Extra peak of one run in a fresh process, after a tiny one that loads what torch loads once."""
    run = {"streaming": streaming, "published": published}[name]
    small = replace(setting, slots=64, block_size=16)
    run(small, small.tensors())
    tensors = setting.tensors()
    return extra_peak_mib(partial(run, setting, tensors))


def main(setting: Setting) -> None:
    tensors = setting.tensors()
    forms = {f.__name__: partial(f, setting, tensors) for f in (streaming, two_products, published)}
    values = streaming(setting, tensors), published(setting, tensors)
    print(f"{setting} ({machine()})")
    print(f"loss: streaming {values[0]:.6f}, published form {values[1]:.6f}")
    for base in ("two_products", "published"):
        seconds = interleaved_s(setting.rounds, streaming=forms["streaming"], base=forms[base])
        median, low, high = ratio(seconds, "streaming", "base")
        print(f"time: streaming / {base} = {median:.3f} (from {low:.3f} to {high:.3f} in {setting.rounds} rounds)")
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        ours, theirs = pool.starmap(peak_of, [("streaming", setting), ("published", setting)], chunksize=1)
    print(f"extra peak memory: streaming / published = {ours / theirs:.4f} ({ours:.0f} MiB of {theirs:.0f} MiB)")


if __name__ == "__main__":
    main(tyro.cli(Setting, description=__doc__))
