"""Attention of chosen tokens over all tokens of a picture, and what people may write to choose them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from analysis.matches import holding
from memssl_core.data.images import Frame
from memssl_core.errors import ModelError
from memssl_core.model.features import BlockTokens, attention_chunks, attention_rows

One = str | int | tuple[float, float]
Query = One | Sequence[One]


@dataclass(frozen=True, eq=False)
class Attention:
    """Rows of attention; each sums to 1 over all N tokens, prefix tokens first, then patches row by row."""

    rows: np.ndarray
    """float32 [attention heads, R, N] of one transformer block, or [L, attention heads, N] of all (`attention_all`)"""
    grid: tuple[int, int]
    """(rows, columns) of patches"""
    n_prefix: int
    frame: Frame
    pixels: np.ndarray
    """float32 [3, H, W] as the backbone got them"""
    layers: tuple[int, ...]
    """the transformer block(s), 0-based"""
    queries: tuple[int, ...]
    """[R] query tokens; empty for the mean over all patches, which is one row"""
    norms: np.ndarray
    """float32 [1 or L, P]: the length of each patch token as it leaves the block(s), before the final norm. Patches
    with far longer tokens hold no place of the picture (Darcet et al., arXiv 2309.16588)"""

    def maps(self) -> np.ndarray:
        """float32 [..., rows, columns]: the patches' part of the rows."""
        return self.rows[..., self.n_prefix :].reshape(*self.rows.shape[:-1], *self.grid)

    def summary(self) -> dict[str, Any]:
        """Plain numbers for JSON; per row: mass on the patches, entropy (nats), the strongest patch and its centre."""
        rows = self.rows.astype(np.float64)
        best = self.rows[..., self.n_prefix :].argmax(-1)
        centres = np.array([self.frame.centre_of(int(patch)) for patch in best.flat])
        return {
            "layers": list(self.layers),
            "queries": list(self.queries) or "mean",
            "grid": list(self.grid),
            "n_prefix": self.n_prefix,
            "picture_px": [self.frame.width, self.frame.height],
            "patch_mass": rows[..., self.n_prefix :].sum(-1).tolist(),
            "entropy": (-(rows * np.log(np.maximum(rows, 1e-30))).sum(-1)).tolist(),
            "strongest_patch": best.tolist(),
            "strongest_px": centres.reshape(*best.shape, 2).tolist(),
        }


def parse_query(text: str) -> Query:
    """A query as people write it: `cls`, `mean`, `register:I`, a patch index, `x,y`, or several joined by `;`."""
    queries: list[One] = []
    for part in (part.strip() for part in text.split(";")):
        if re.fullmatch(r"\d{1,9}", part):
            queries.append(int(part))
        elif pixel := re.fullmatch(r"(-?[\d.]{1,12})\s*,\s*(-?[\d.]{1,12})", part):
            try:
                queries.append((float(pixel[1]), float(pixel[2])))
            except ValueError:
                raise _unknown(part) from None
        elif part in ("cls", "mean") or re.fullmatch(r"register:\d{1,4}", part):
            queries.append(part)
        else:
            raise _unknown(part)
    return queries[0] if len(queries) == 1 else queries


def query_tokens(query: Query, *, n_prefix: int, has_class_token: bool, frame: Frame) -> list[int]:
    """The tokens a query means, none for 'mean'. ModelError, one sentence, if there is no such token."""
    if isinstance(query, str) and (";" in query or query not in ("cls", "mean")):
        query = parse_query(query)
    patches = frame.rows * frame.columns
    if query == "mean":
        return []
    if isinstance(query, tuple) and len(query) == 2 and not any(isinstance(part, (str, tuple)) for part in query):
        patch = frame.patch_at(*query)  # type: ignore[misc, arg-type]
        if patch is None:
            where = f"({query[0]:g}, {query[1]:g})"
            raise ModelError(
                f"{where} lies outside the picture of {frame.width}×{frame.height} pixels; click inside it."
            )
        return [n_prefix + patch]
    if query == "cls":
        if not has_class_token:
            raise ModelError(
                "This model has no class token; ask for a patch, or for 'mean', the mean over all patches."
            )
        return [0]
    if isinstance(query, str):
        first = int(has_class_token)
        token = first + int(query.removeprefix("register:"))
        if token >= n_prefix:
            raise ModelError(f"There is no {query}; this model has {n_prefix - first} register tokens.")
        return [token]
    if isinstance(query, (int, np.integer)):
        if not 0 <= query < patches:
            raise ModelError(f"There is no patch {query}; this picture has patches 0 to {patches - 1}.")
        return [n_prefix + int(query)]
    if not isinstance(query, Sequence) or not query or len(query) > patches + n_prefix or "mean" in query:
        raise _unknown(query)
    parts: Any = [tuple(part) if isinstance(part, list) else part for part in query]
    known = {"n_prefix": n_prefix, "has_class_token": has_class_token, "frame": frame}
    return [token for part in parts for token in query_tokens(part, **known)]


def rows_of_block(vit_block: Any, entered: BlockTokens, queries: list[int], n_prefix: int) -> np.ndarray:
    """What entered a block's attention -> float32 [attention heads, R, N]; no queries: the mean over patches."""
    if queries:
        return attention_rows(vit_block.attn, entered, queries)[0].float().cpu().numpy()
    patches = torch.arange(n_prefix, entered.tokens.shape[1], device=entered.tokens.device)
    chunks = attention_chunks(vit_block.attn, entered, patches)
    total: Any = sum(rows[0].float().sum(1, keepdim=True) for _, rows in chunks)  # keeping each sum scatters the heap
    return (total / len(patches)).cpu().numpy()


def strongest_heads(weights: np.ndarray, mass: float = 1.0) -> np.ndarray:
    """Weights [attention heads, P] -> int64 [P]: the head with the largest weight among those that keep the patch, -1
    where none does. A head keeps the fewest strongest patches that hold `mass` (0..1) of its weight.

    Source: iBOT, analysis/attention_map/visualize_attention.py, which colours patches so.
    """
    kept = np.stack([holding(row, mass) for row in weights]) if mass < 1 else np.ones(weights.shape, bool)
    return np.where(kept.any(0), np.where(kept, weights, -1).argmax(0), -1)


def _unknown(query: object) -> ModelError:
    forms = "cls, mean, register:I, a patch index, x,y in pixels, or several of these joined by ;"
    return ModelError(f"{str(query)[:40]!r} is no query; write {forms}.")
