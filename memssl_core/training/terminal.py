"""The progress bar of a training run, fed by its events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from memssl_core.jobs import Emit


@contextmanager
def progress() -> Iterator[Emit]:
    """A listener for the trainer's events that draws on standard error."""
    columns = (
        TextColumn("step"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task("starting", total=None)

    def listen(event: str, *, step: int, **facts: Any) -> None:
        if event == "started":
            bar.start()
            bar.update(task, total=facts["steps"], completed=step)
            word = "Going on" if facts["resumed"] else "Starting"
            bar.console.print(f"{word} at step {step} of {facts['steps']}, {facts['images']} pictures.")
            if facts.get("restored"):
                bar.console.print(facts["restored"], markup=False)
        elif event == "step":
            bar.update(
                task,
                completed=step,
                description=f"loss {facts['loss']:.3f} · {facts['images_per_s']:.0f} images/s · "
                f"collapse gauge {facts['collapse_gauge']:.2f} · agreement {facts['agreement']:.0%}",
            )
        elif event == "probe":
            figures = " · ".join(
                f"{name} {value:.3g}" for name, value in facts.items() if isinstance(value, int | float)
            )
            bar.console.print(f"Probe at step {step}: {figures}")
        elif event in ("skipped_image", "alarm"):
            bar.console.print(facts["message"], markup=False)
        elif event == "finished":
            bar.update(task, completed=step)

    try:
        yield listen
    finally:
        bar.stop()
