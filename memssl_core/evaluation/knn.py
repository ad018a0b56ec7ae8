"""Weighted k-NN classification of embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from memssl_core.evaluation.result import Result

_CHUNK = 1024
_SPARE = 16


def knn(
    gallery,
    gallery_labels,
    queries,
    query_labels,
    *,
    k: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
) -> Result:
    """Each of a query's k nearest gallery rows votes exp(cosine / temperature) for its class.

    Args: gallery [N, C] and queries [M, C] embeddings of any length (made unit), labels [N] and [M] integers.
    Returns: 'top1@k' and 'top5@k' in per cent for each k; a k above N counts all N (config's k_eff says so). Equal
        scores go to the lower gallery row, equal votes to the lower class; top-5 counts classes that got a vote.
    Raises: ValueError without gallery or queries, for lengths that differ, or for values that are not finite.
    Source: Wu et al., CVPR 2018; temperature and k as in the evaluation scripts of DINO.
    """
    gallery, queries = _unit(gallery, "gallery"), _unit(queries, "queries")
    classes, labels = np.unique(
        np.concatenate([np.asarray(gallery_labels), np.asarray(query_labels)]), return_inverse=True
    )
    own, wanted = torch.from_numpy(labels).split([len(gallery_labels), len(query_labels)])
    if len(own) != len(gallery) or len(wanted) != len(queries):
        raise ValueError(f"{len(gallery)} gallery rows have {len(own)} labels, {len(queries)} queries {len(wanted)}")
    counts = [min(n, len(gallery)) for n in k]
    right = {n: np.zeros(2) for n in k}
    for chunk, answers in zip(queries.split(_CHUNK), wanted.split(_CHUNK), strict=True):
        scores, rows = _nearest(chunk @ gallery.T, max(counts))
        votes = (scores.double() / temperature - scores[:, :1].double() / temperature).exp()
        for n, count in zip(k, counts, strict=True):
            tally = votes.new_zeros(len(chunk), len(classes))
            tally.scatter_add_(1, own[rows[:, :count]], votes[:, :count])
            ranked, order = tally.sort(dim=1, descending=True, stable=True)
            hits = (order == answers[:, None]) & (ranked > 0)
            right[n] += hits[:, 0].sum().item(), hits[:, :5].sum().item()
    metrics = {
        f"{name}@{n}": float(100 * right[n][i] / len(queries)) for n in k for i, name in enumerate(("top1", "top5"))
    }
    config = {"k": list(k), "k_eff": counts, "temperature": temperature, "ties": "lower row, lower class"}
    return Result(
        protocol="knn", version="1.0.0", metrics=metrics, n_query=len(queries), n_gallery=len(gallery), config=config
    )


def _unit(rows, name: str) -> Tensor:
    tensor = torch.as_tensor(rows).float().cpu()
    if tensor.ndim != 2 or not len(tensor):
        raise ValueError(f"{name} must be rows [N, C] with N >= 1, not {tuple(tensor.shape)}")
    if not tensor.isfinite().all():
        raise ValueError(f"{name} hold values that are not finite")
    return F.normalize(tensor, dim=1, eps=1e-12)


def _nearest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest of each row, equal ones in the order of their columns: values and columns [M, count]."""
    reach = min(count + _SPARE, scores.shape[1])
    values, columns = scores.topk(reach, dim=1)
    if reach < scores.shape[1] and (values[:, count - 1] == values[:, -1]).any():
        values, columns = scores.sort(dim=1, descending=True, stable=True)
    else:
        columns = columns.sort(dim=1).values
        values, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
        columns = columns.gather(1, order)
    return values[:, :count], columns[:, :count]
