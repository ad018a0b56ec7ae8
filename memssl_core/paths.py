"""Where things are kept: the embedded bundle, runs, caches."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """`$MEMSSL_HOME`, else the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("MEMSSL_HOME") or platformdirs.user_cache_dir("memssl"))


def runs() -> Path:
    """`$MEMSSL_HOME/runs`, else `./runs`."""
    return home() / "runs" if os.environ.get("MEMSSL_HOME") else Path("runs")


def embedded_bundle() -> Path:
    return Path(__file__).resolve().parent.parent / "assets" / "embedded"
