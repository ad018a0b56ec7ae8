"""A run's numbers for an experiment tracker: trackio, TensorBoard or wandb, none of which the trainer needs."""

from __future__ import annotations

import importlib
import json
import math
import secrets
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from memssl_core.errors import MemsslError, RunError
from memssl_core.jobs import write_atomically

PROJECT = "memssl"
ID_FILE = "tracker.json"
_ENDS = ("stopped", "finished", "failed")
_PREFIXES = {"step": "train", "probe": "probe"}


class _Sink(NamedTuple):
    log: Callable[[dict[str, float], int], None]
    finish: Callable[[], None]


class Tracker:
    """A listener of a run's events: numbers of `step` go out as `train/NAME`, those of `probe` as `probe/NAME`.

    What it is connected to is opened by `started` and closed when the run ends, or by `finish`. A tracker that fails
    is left out for the rest of the run, with a warning: the run goes on, and its own events.jsonl has everything.
    """

    def __init__(self, open_sink: Callable[[int], _Sink]) -> None:
        self._open, self._sink, self._has_failed = open_sink, None, False

    def __call__(self, event: str, *, step: int, **facts: Any) -> None:
        if event == "started" and self._sink is None:
            self._sink = self._guarded(lambda: self._open(step))
        elif event in _PREFIXES and (sink := self._sink):
            numbers = {f"{_PREFIXES[event]}/{name}": float(x) for name, x in facts.items() if _is_number(x)}
            self._guarded(lambda: sink.log(numbers, step))
        elif event in _ENDS:
            self.finish()

    def finish(self) -> None:
        """Close what was opened; again does nothing."""
        if sink := self._sink:
            self._sink = None
            self._guarded(sink.finish)

    def _guarded(self, action: Callable[[], Any]) -> Any:
        if self._has_failed:
            return None
        try:
            with redirect_stdout(sys.stderr):  # where libraries talk
                return action()
        except Exception as reason:  # a training of days is worth more than its mirror
            self._has_failed, self._sink = True, None
            warnings.warn(
                f"Tracking has stopped ({type(reason).__name__}: {reason}). Training goes on, events.jsonl has it all.",
                stacklevel=2,
            )
            return None


def tracker(kind: str, run_dir: Path | str, config: dict[str, Any]) -> Tracker:
    """A listener that forwards to `trackio`, `tensorboard` (files in RUN/tensorboard) or `wandb`.

    A run that goes on is one run there too: its id is in RUN/tracker.json.
    Raises: MemsslError at once when `kind` is none of these or its package is not installed.
    """
    if kind not in _SINKS:
        raise RunError(f"--track {kind}: there is no such tracker; choose {', '.join(_SINKS)} or leave it out.")
    module, connect = _SINKS[kind]
    try:
        library = importlib.import_module(module)
    except ImportError as reason:
        raise MemsslError(
            f"--track {kind} needs the package {kind}, which is not installed; run `pip install {kind}`, or leave "
            "--track out: the run's own page and events.jsonl show the same numbers."
        ) from reason
    plain = json.loads(json.dumps(config))
    return Tracker(lambda step: connect(library, Path(run_dir), plain, step))


def _tensorboard(library: Any, run_dir: Path, config: dict[str, Any], step: int) -> _Sink:
    writer = library.SummaryWriter(log_dir=str(run_dir / "tensorboard"), purge_step=step + 1 if step else None)
    if not step:
        writer.add_text("config", f"```json\n{json.dumps(config, indent=2)}\n```", global_step=0)

    def log(numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, global_step=step)

    return _Sink(log, writer.close)


def _wandb(library: Any, run_dir: Path, config: dict[str, Any], step: int) -> _Sink:
    run = library.init(
        project=PROJECT, name=run_dir.name, id=_run_id(run_dir), dir=str(run_dir), config=config, resume="allow"
    )
    run.define_metric("step")  # its own counter only rises, and a run that goes on may repeat some steps
    run.define_metric("*", step_metric="step")
    return _Sink(lambda numbers, step: run.log({**numbers, "step": step}), run.finish)


def _trackio(library: Any, run_dir: Path, config: dict[str, Any], step: int) -> _Sink:
    name = f"{run_dir.name}-{_run_id(run_dir)}"  # it knows runs by their names
    library.init(project=PROJECT, name=name, config=config, resume="allow")
    return _Sink(lambda numbers, step: library.log(numbers, step=step), library.finish)


_SINKS: dict[str, tuple[str, Callable[[Any, Path, dict[str, Any], int], _Sink]]] = {
    "trackio": ("trackio", _trackio),
    "tensorboard": ("torch.utils.tensorboard", _tensorboard),
    "wandb": ("wandb", _wandb),
}


def _run_id(run_dir: Path) -> str:
    """The id of this run at trackers, drawn once."""
    path = run_dir / ID_FILE
    try:
        return str(json.loads(path.read_bytes())["id"])
    except (OSError, ValueError, KeyError, TypeError):
        drawn = secrets.token_hex(4)
        write_atomically(path, json.dumps({"id": drawn}).encode())
        return drawn


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
