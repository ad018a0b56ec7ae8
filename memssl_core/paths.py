"""Where things are kept."""

from __future__ import annotations

from pathlib import Path


def embedded_bundle() -> Path:
    """The folder of the model that the app opens with."""
    return Path(__file__).resolve().parent.parent / "assets" / "embedded"
