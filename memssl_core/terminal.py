"""The progress bar of work that tells how far it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress

from memssl_core.jobs import Emit


@contextmanager
def progress() -> Iterator[Emit]:
    """A listener for `progress` and `skipped_image` events that draws on standard error."""
    bar = Progress(console=Console(stderr=True), transient=True, redirect_stdout=False)
    task = bar.add_task("starting", total=None)

    def listen(event: str, *, step: int, **facts: Any) -> None:
        if event == "progress":
            if bar.console.is_interactive:  # not in a log
                bar.start()
            bar.update(task, completed=step, total=facts.get("total"), description=facts["words"])
        elif event == "skipped_image":
            bar.console.print(facts["message"], markup=False)

    try:
        yield listen
    finally:
        if bar.live.is_started:
            bar.stop()
