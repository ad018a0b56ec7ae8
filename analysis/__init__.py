"""Questions about a model: arrays in, arrays out. Names load when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.attention import Attention
    from analysis.neighbours import Neighbours
    from analysis.workbench import Models, Workbench

_HOMES = {"Attention": "attention", "Neighbours": "neighbours", "Models": "workbench", "Workbench": "workbench"}
__all__ = ["Attention", "Models", "Neighbours", "Workbench"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
