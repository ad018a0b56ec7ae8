"""Questions about a model: arrays in, arrays out. Names load when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.attention import Attention
    from analysis.gallery import Gallery, open_gallery
    from analysis.models import Models
    from analysis.neighbours import Neighbours
    from analysis.workbench import Workbench

_HOMES = {
    "Attention": "attention",
    "Gallery": "gallery",
    "Models": "models",
    "Neighbours": "neighbours",
    "Workbench": "workbench",
    "open_gallery": "gallery",
}
__all__ = ["Attention", "Gallery", "Models", "Neighbours", "Workbench", "open_gallery"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
