"""Slow, obvious versions of what the packages compute; written from the papers with loops and floats."""

from __future__ import annotations

import math


def loss_by_loops(student, teacher, memory, order, *, block_size, student_temperature, teacher_temperature) -> float:
    """The objective, triple by triple: mean over pairs of different views, blocks and images (lists of floats in)."""
    blocks = [order[i : i + block_size] for i in range(0, len(order) - block_size + 1, block_size)]
    terms = []
    for i, views in enumerate(student):
        for j, targets in enumerate(teacher):
            if i == j:
                continue
            for block in blocks:
                for x, y in zip(views, targets, strict=True):
                    p = softmax([dot(x, memory[k]) / student_temperature for k in block])
                    q = softmax([dot(y, memory[k]) / teacher_temperature for k in block])
                    terms.append(-sum(b * math.log(a) for a, b in zip(p, q, strict=True)))
    return sum(terms) / len(terms)


def softmax(logits: list[float]) -> list[float]:
    high = max(logits)
    weights = [math.exp(x - high) for x in logits]
    return [w / sum(weights) for w in weights]


def dot(a, b) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def votes_by_loops(gallery, labels, query, k: int, temperature: float) -> int:
    """The class with most votes among the k nearest; ties to the lower row, then to the lower class."""
    scores = [dot(query, row) / math.sqrt(dot(query, query) * dot(row, row)) for row in gallery]
    nearest = sorted(range(len(gallery)), key=lambda i: (-scores[i], i))[:k]
    votes: dict[int, float] = {}
    for i in nearest:
        votes[labels[i]] = votes.get(labels[i], 0.0) + math.exp(scores[i] / temperature)
    return min(votes, key=lambda c: (-votes[c], c))


def effect_by_loops(whole, silenced, temperature: float, top: int) -> tuple[float, float]:
    """KL in nats between what a memory answers with all heads and with one silenced, and the share of the top kept.

    Lists of cosines with every slot, all different.
    """
    p, q = (softmax([cosine / temperature for cosine in cosines]) for cosines in (whole, silenced))
    kl = sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
    before, after = (set(sorted(range(len(cosines)), key=lambda i: -cosines[i])[:top]) for cosines in (whole, silenced))
    return kl, len(before & after) / len(before)
