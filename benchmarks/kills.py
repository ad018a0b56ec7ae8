"""What do kills cost a run? Nothing: after many of them its bundle has the bytes of a run that was left alone.

python benchmarks/kills.py [--kills N] [--workers N]: a small run is killed with SIGKILL at random steps (seeded) and
started again, at least every third time while a checkpoint is half written; after each kill every checkpoint must be
readable. At the end the bundles are compared file by file, the card apart, which tells the training time.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from timing import machine

from memssl_core.jobs import read_events
from memssl_core.training.checkpoint import checkpoints, load_checkpoint

DATA = "drawn:0:64:64"


@dataclass(frozen=True)
class Setting:
    kills: int = 20
    workers: int = 0
    steps: int = 60
    save_every: int = 1
    """steps; so often that every third kill finds a file half written"""
    seed: int = 0


def command(setting: Setting, run: Path) -> list[str]:
    flags = {"steps": setting.steps, "save-every": setting.save_every, "workers": setting.workers, "threads": 1}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return [
        *(sys.executable, "-m", "memssl_core", "train", "--data", DATA, "--preset", "smoke"),
        *("--run-dir", str(run), "--probe-images", "20", *words),
    ]


def step_of(run: Path) -> int:
    return max((event["step"] for event in read_events(run / "events.jsonl")[0]), default=0)


def killed(setting: Setting, run: Path, at: int, *, half_written: bool) -> tuple[int, bool]:
    """Start the run, kill it at a step, or at the first half-written checkpoint after it; its step, and whether there
    was one."""
    process = subprocess.Popen(command(setting, run), stderr=subprocess.DEVNULL, start_new_session=True)
    folder = run / "checkpoints"
    while process.poll() is None and step_of(run) < at:
        time.sleep(0.001)
    while half_written and process.poll() is None and not list(folder.glob("*.pt.*.tmp")):
        pass
    is_over = process.poll() is not None
    if not is_over:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not is_over, "the run ended before it was killed; choose more steps"
    return step_of(run), bool(list(folder.glob("*.pt.*.tmp")))


def files(bundle: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(bundle.iterdir()) if path.name != "README.md"}


def main(setting: Setting) -> None:
    print(f"{setting} ({machine()})")
    draw = random.Random(setting.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, run, half = Path(folder, "whole"), Path(folder, "run"), 0
        subprocess.run(command(setting, whole), check=True, capture_output=True)
        steps = sorted(draw.sample(range(1, setting.steps - 2), setting.kills))
        for number, at in enumerate(steps):
            step, was_half = killed(setting, run, at, half_written=number % 3 == 0)
            half += was_half
            found = [load_checkpoint(path)["step"] for path in checkpoints(run / "checkpoints")]
            print(f"  killed at step {step}{', a checkpoint half written' if was_half else ''}; readable: {found}")
        subprocess.run(command(setting, run), check=True, capture_output=True)
        one, other = files(whole / "bundle"), files(run / "bundle")
        different = [name for name in one if one[name] != other.get(name)]
        print(f"{setting.kills} kills, {half} of them with a checkpoint half written")
        print(f"bundle of {len(one)} files: {'equal to the last bit' if not different else f'DIFFERENT: {different}'}")


if __name__ == "__main__":
    main(tyro.cli(Setting, description=__doc__))
