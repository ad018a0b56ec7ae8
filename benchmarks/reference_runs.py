"""What does a healthy small run look like, and what do broken ones? The curves in assets/reference.

python benchmarks/reference_runs.py: where the stored runs end, as ratios to the healthy one, and what the alarms say of
each. With --make, train them first (half an hour on two quiet cores), or with --only NAME one of them.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from memssl_core.config import TrainConfig
from memssl_core.jobs import read_events, write_atomically
from memssl_core.training.alarms import Alarms, reference_curves, reference_folder

DATA, IMAGES = "drawn:0:4096:64", 4096
HEALTHY = TrainConfig(
    backbone="vit_tiny_patch16_224",
    patch_size=8,
    width=96,
    depth=4,
    attention_heads=3,
    drop_path=0.0,
    patch_drop=0.5,
    head_hidden=256,
    projection_dim=128,
    head_batch_norm=True,
    memory_slots=1024,
    block_size=128,
    teacher_temperature_start=0.025,
    teacher_temperature=0.025,
    teacher_temperature_warmup_epochs=0.0,
    global_size=64,
    global_scale=(0.5, 1.0),
    local_views=2,
    local_size=32,
    local_scale=(0.2, 0.5),
    colour_jitter=(0.4, 0.4, 0.4, 0.25),
    grey=0.3,
    blur_radius=(0.1, 0.6),
    batch_size=32,
    steps=1500,
    lr=8e-3,
    min_lr=1e-4,
    warmup_epochs=0.5,
    weight_decay_end=0.04,
    momentum=0.98,
    momentum_end=0.996,
    device="cpu",
    threads=1,
    workers=0,
    log_every=10,
    save_every=1500,
    probe_every=150,
    probe_images=2000,
)
BROKEN = replace(HEALTHY, steps=300, log_every=5, save_every=300, probe_every=100, probe_images=1000)
RUNS: dict[str, tuple[str, TrainConfig]] = {
    "healthy": ("Healthy: it learns, slowly", HEALTHY),
    "uniform-collapse": (
        "Uniform collapse: the teacher's temperature is ten times the student's",
        replace(BROKEN, teacher_temperature=1.0, teacher_temperature_start=1.0, lr=16e-3, momentum=0.95),
    ),
    "shared-slots": (
        "Collapse onto shared slots: no momentum, a high rate, no batch normalisation",
        replace(BROKEN, momentum=0.0, momentum_end=0.0, lr=0.1, head_batch_norm=False, teacher_temperature=0.04),
    ),
    "plateau": ("Plateau: the rate is ten thousand times too low", replace(BROKEN, lr=1e-6, min_lr=1e-7, steps=450)),
    "rate-too-high": (
        "The rate is fifty times too high, without warm-up",
        replace(BROKEN, lr=0.4, warmup_epochs=0.0, teacher_temperature=0.04, teacher_temperature_start=0.04),
    ),
}
KEPT = (
    *("loss", "kl", "conditional_entropy", "marginal_entropy", "collapse_gauge", "perplexity", "agreement"),
    *("agreement_top5", "alignment", "spread", "memory_fill", "mean_key_norm", "self_match_rate"),
    *("grad_norm", "clipped_share", "largest_gradient"),
    *("knn_top1", "rankme", "rankme_projection", "teacher_lag", "drift", "drift_steps"),
)
SHOWN = ("loss", "collapse_gauge", "spread", "mean_key_norm", "rankme", "knn_top1")


@dataclass(frozen=True)
class Setting:
    make: bool = False
    """train the runs and store their curves"""
    only: tuple[str, ...] = ()
    """names of runs; all if left out"""


def make(name: str, folder: Path) -> Path:
    """Train a run and keep what a chart needs of its events, as one file of `folder`."""
    from memssl_core.training.loop import train

    title, config = RUNS[name]
    with tempfile.TemporaryDirectory() as scratch:
        train(config, DATA, Path(scratch) / name)
        events = read_events(Path(scratch) / name / "events.jsonl")[0]
    started = {"event": "started", "step": 0, "title": title, "steps": config.steps, "images": IMAGES}
    lines = [{**started, "data": DATA, "config": asdict(config)}, *trimmed(events)]
    target = folder / f"{name}.jsonl"
    write_atomically(target, "".join(json.dumps(line) + "\n" for line in lines).encode())
    return target


def trimmed(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`step` and `probe` events with the figures that are KEPT, to four digits, without any clock."""
    return [
        {"event": event["event"], "step": event["step"]}
        | {name: short(event[name]) for name in KEPT if event.get(name) is not None}
        for event in events
        if event["event"] in ("step", "probe")
    ]


def short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.4g}")


def ends(events: list[dict[str, Any]]) -> dict[str, float]:
    """The last value of each figure that is SHOWN."""
    return {name: value for event in events for name, value in event.items() if name in SHOWN}


def said(events: list[dict[str, Any]], config: TrainConfig) -> list[str]:
    """What the alarms say of a run, with the steps at which they do."""
    listener = Alarms(config, IMAGES, config.steps or 0, IMAGES // config.batch_size)
    return [f"step {event['step']}: {sentence}" for event in events for sentence in listener.hear(**event)]


def main(setting: Setting) -> None:
    names = setting.only or tuple(RUNS)
    for name in names if setting.make else ():
        print(f"{name}: {make(name, reference_folder()).stat().st_size / 1000:.0f} kB")
    curves = reference_curves()
    healthy = ends(curves["healthy"])
    print("at the end, x of healthy" + "".join(f"{name:>16}" for name in SHOWN))
    for name, events in curves.items():
        own = ends(events)
        ratios = "".join(f"{own[figure]:>9.4g}{own[figure] / healthy[figure]:>6.2f}x" for figure in SHOWN)
        print(f"{name:<24}{ratios}")
    for name in (name for name in names if name in curves):
        print(f"\n{RUNS[name][0]}", *said(curves[name], RUNS[name][1]), sep="\n  ")


if __name__ == "__main__":
    main(tyro.cli(Setting, description=__doc__))
