"""Where things are kept."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def embedded_bundle() -> Path:
    """The folder of the model that the app opens with."""
    return Path(__file__).resolve().parent.parent / "assets" / "embedded"


def home() -> Path:
    """What the program keeps for a person: $MEMSSL_HOME, else the system's place for caches."""
    told = os.environ.get("MEMSSL_HOME")
    return Path(told).expanduser() if told else platformdirs.user_cache_path("memssl")


def runs_dir() -> Path:
    """Training runs: $MEMSSL_HOME/runs, else ./runs."""
    return home() / "runs" if os.environ.get("MEMSSL_HOME") else Path("runs")


def jobs_dir() -> Path:
    return home() / "jobs"


def bundles_dir() -> Path:
    """Bundles that were made here."""
    return home() / "bundles"


def galleries_dir() -> Path:
    """Galleries to be searched: a folder each."""
    return home() / "galleries"


def maps_dir() -> Path:
    """Neighbour graphs of memories, and maps that do not lie in a bundle: a folder for each bundle hash."""
    return home() / "maps"


def without_folders(source: str) -> str:
    """A data or model source as strangers may read it: of a folder or file only its last name."""
    return "+".join(_last_name(part) for part in source.split("+"))


def _last_name(source: str) -> str:
    scheme, colon, rest = source.partition(":")
    if not colon:
        return Path(source).name
    return source if scheme in ("hub", "hf", "timm", "random", "drawn") else f"{scheme}:{Path(rest).name}"
