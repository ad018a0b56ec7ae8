"""What do snapshots cost a run? A share of the demo preset's time, and the bytes of one.

python benchmarks/snapshot_cost.py [--steps N] [--rounds N]: the demo preset with and without its snapshots, in turn,
from the first step's probe to the last checkpoint, the bundle left out. The share is told twice: of the two runs of a
round (which sees the machine's noise), and of the seconds that the snapshots themselves took. Then one snapshot of the
published ViT-S/16 run, untrained.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest.mock import patch

import torch
import tyro
from timing import machine, ratio

from memssl_core.config import PRESETS, TrainConfig
from memssl_core.data.datasets import open_images
from memssl_core.data.views import view_loader
from memssl_core.training import loop
from memssl_core.training.film import Pinned
from memssl_core.training.probe import Probe
from memssl_core.training.snapshots import MOST_KEPT, snapshot_files, take, write
from memssl_core.training.state import TrainState

LIMIT_SHARE, LIMIT_BYTES = 0.03, 5_000_000


@dataclass(frozen=True)
class Setting:
    steps: int = 300
    rounds: int = 3
    threads: int | None = None
    """of torch; its own choice if left out"""
    data: str = "drawn:7:5000"


@dataclass
class Watch:
    """Seconds of a run, and those of its snapshots."""

    began: float = 0.0
    ended: float = 0.0
    snapshots_s: list[float] = field(default_factory=list)

    def hear(self, event: str, **_: object) -> None:
        if event == "started":
            self.began = time.perf_counter()
        elif event in ("saved", "snapshot"):
            self.ended = time.perf_counter()


def run_s(setting: Setting, *, with_snapshots: bool) -> tuple[float, list[float], int]:
    """Seconds of a run, of each of its snapshots, and the bytes of the largest."""
    watch, ours = Watch(), loop._snapshot

    def timed(*arguments) -> None:
        began = time.perf_counter()
        ours(*arguments)
        watch.snapshots_s.append(time.perf_counter() - began)

    config = replace(PRESETS["demo"], steps=setting.steps, threads=setting.threads)
    with (
        tempfile.TemporaryDirectory() as scratch,
        patch.object(loop, "_snapshot", timed if with_snapshots else lambda *_: None),
        patch.object(loop, "_export", lambda *_: None),
    ):
        loop.train(config, setting.data, Path(scratch) / "run", listen=watch.hear)
        sizes = [path.stat().st_size for path in snapshot_files(Path(scratch) / "run")]
    return watch.ended - watch.began, watch.snapshots_s, max(sizes, default=0)


def one_s(config: TrainConfig, data: str) -> tuple[float, int]:
    """Median seconds of a snapshot of an untrained run, and its bytes."""
    images = open_images(data)
    state, probe = TrainState(config, images), Probe.of(images, config)
    (batch,) = view_loader(images, replace(config, workers=0), start=0, stop=1)
    state.memory.push(state.memory.vectors.clone(), torch.arange(state.memory.slots) % len(images), step=0)
    pinned, seconds = Pinned.of(images, probe.ids, probe.transform, state.device), []
    with tempfile.TemporaryDirectory() as scratch:
        for state.step in range(5):
            began = time.perf_counter()
            path = write(Path(scratch), take(state, batch, pinned))
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds), path.stat().st_size


def main(setting: Setting) -> None:
    print(f"{setting} ({machine()})")
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    shares, largest = [], 0
    for number in range(setting.rounds):
        for name in ("with", "without") if number % 2 else ("without", "with"):
            took_s, snapshots_s, size = run_s(setting, with_snapshots=name == "with")
            seconds[name].append(took_s)
            if name == "with":
                shares.append(sum(snapshots_s) / (took_s - sum(snapshots_s)))
                largest = max(largest, size)
                each = ", ".join(f"{one * 1000:.0f}" for one in snapshots_s)
                print(f"  round {number + 1}: {len(snapshots_s)} snapshots of {each} ms in {took_s:.1f} s")
    median, low, high = ratio(seconds, "with", "without")
    print(f"time: with / without snapshots = {median:.4f} (from {low:.4f} to {high:.4f} in {setting.rounds} rounds)")
    print(f"of their own: {statistics.median(shares):.2%} of the rest of the run (at most {LIMIT_SHARE:.0%})")
    print(f"size: the largest has {largest / 1e6:.2f} MB (at most {LIMIT_BYTES / 1e6:.0f} MB)")

    published = replace(PRESETS["vit-s16-800ep"], device="cpu", batch_size=4, threads=setting.threads)
    one, size = one_s(published, "drawn:7:64:224")
    every = published.snapshot_every
    print(
        f"vit-s16-800ep: one snapshot on this CPU {one * 1000:.0f} ms and {size / 1e6:.2f} MB, {MOST_KEPT} of them "
        f"{MOST_KEPT * size / 1e6:.0f} MB; every {every} steps they are {LIMIT_SHARE:.0%} of the time only if a step "
        f"takes less than {one / LIMIT_SHARE / every * 1000:.2f} ms"
    )


if __name__ == "__main__":
    main(tyro.cli(Setting, description=__doc__))
