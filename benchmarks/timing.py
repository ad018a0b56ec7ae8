"""What the benchmarks share: medians of interleaved runs, peak memory, a line about the machine."""

from __future__ import annotations

import gc
import platform
import statistics
import threading
import time
from collections.abc import Callable

import psutil
import torch


def interleaved_s(rounds: int, **candidates: Callable[[], object]) -> dict[str, list[float]]:
    """Seconds of each candidate in every round, after one warm-up; taken in turn, so that drift meets all alike."""
    for run in candidates.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(seconds: dict[str, list[float]], name: str, base: str) -> tuple[float, float, float]:
    """Median, least and largest of the ratio name / base over rounds."""
    ratios = [a / b for a, b in zip(seconds[name], seconds[base], strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def extra_peak_mib(run: Callable[[], object]) -> float:
    """Resident memory that `run` needs at its worst beyond what was there, sampled every half millisecond."""
    process, peak, is_done = psutil.Process(), [0], threading.Event()
    gc.collect()
    before = process.memory_info().rss

    def sample() -> None:
        while not is_done.wait(5e-4):
            peak[0] = max(peak[0], process.memory_info().rss)

    sampler = threading.Thread(target=sample)
    sampler.start()
    run()
    is_done.set()
    sampler.join()
    return max(0, peak[0] - before) / 2**20


def machine() -> str:
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
