"""What a protocol answers with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Result:
    """Figures of one protocol; accuracies in per cent with full precision, rounded only for display."""

    protocol: str
    version: str
    metrics: dict[str, float]
    spread: dict[str, dict[str, Any]] = field(default_factory=dict)
    n_query: int
    n_gallery: int
    config: dict[str, Any] = field(default_factory=dict)
    oracle: bool = False
    """whether a choice was made with the labels of the queries"""
