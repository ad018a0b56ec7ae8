"""The command line: `python -m memssl_core VERB`. Results on standard output, talk on standard error."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from memssl_core.config import PRESETS, TrainConfig
from memssl_core.errors import MemsslError


@dataclass(frozen=True)
class Train:
    """Train a model with a memory; the same command goes on with a run that was interrupted."""

    data: str
    """class folder, flat folder, parquet file, or drawn:SEED:COUNT[:SIZE]; several joined by +"""
    run_dir: Path
    """where the run's config, events, checkpoints and bundle are kept"""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    preset: Literal["vit-s16-800ep", "vit-b16-400ep", "demo", "smoke"] = "demo"
    """the settings to start from; any field below changes one of them"""


@dataclass(frozen=True)
class Draw:
    """Draw pictures of the drawn gallery into a class folder."""

    source: tyro.conf.Positional[str]
    """drawn:SEED:COUNT[:SIZE]"""
    out: Path
    """a folder that is empty or does not exist yet"""
    sheet: Path | None = None
    """also write a contact sheet of the first pictures here"""


def train(argv: list[str]) -> None:
    preset = next((b for a, b in zip(argv, argv[1:], strict=False) if a == "--preset"), "demo")
    preset = next((a.split("=", 1)[1] for a in argv if a.startswith("--preset=")), preset)
    default = PRESETS.get(preset, TrainConfig())
    wanted = tyro.cli(
        Train,
        args=argv,
        prog="python -m memssl_core train",
        default=Train(tyro.MISSING, tyro.MISSING, default, preset=preset),  # type: ignore[arg-type]
    )
    from memssl_core.training.loop import train as run_training
    from memssl_core.training.terminal import progress

    stop = _StopOnSignal()
    with progress() as listen:
        bundle = run_training(wanted.config, wanted.data, wanted.run_dir, listen=listen, should_stop=stop)
    if stop():
        print(f"Saved. The same command goes on with {wanted.run_dir}.", file=sys.stderr)
    else:
        print(bundle)


def draw(argv: list[str]) -> None:
    wanted = tyro.cli(Draw, args=argv, prog="python -m memssl_core draw")
    from rich.progress import track

    from memssl_core.data.datasets import open_images
    from memssl_core.errors import DataError

    if not wanted.source.startswith("drawn:"):
        raise DataError(f"{wanted.source!r} is not a drawn source; write drawn:SEED:COUNT or drawn:SEED:COUNT:SIZE.")
    if wanted.out.exists() and any(wanted.out.iterdir()):
        raise DataError(f"{wanted.out} is not empty; choose another --out.")
    images = open_images(wanted.source)
    digits = len(str(len(images) - 1))
    for i in track(range(len(images)), description="Drawing", console=_stderr_console()):
        path = wanted.out / (images.class_name(i) or "") / f"{i:0{digits}d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        images.read(i).save(path)
    if wanted.sheet:
        from memssl_core.data.drawn import sheet

        seed, count, *size = (int(x) for x in wanted.source.split(":")[1:])
        sheet(seed, min(count, 64), *size).save(wanted.sheet)
    print(wanted.out)


VERBS: dict[str, Callable[[list[str]], None]] = {"train": train, "draw": draw}


def main(argv: list[str] | None = None) -> int:
    return run_verbs("memssl_core", VERBS, sys.argv[1:] if argv is None else argv)


def run_verbs(package: str, verbs: dict[str, Callable[[list[str]], None]], argv: list[str]) -> int:
    """Exit status of `python -m PACKAGE VERB …`: 0 done, 1 a mistake explained in one sentence, 2 wrong usage."""
    usage = f"usage: python -m {package} {{{','.join(verbs)}}} ...; each with --help"
    if not argv or argv[0] not in verbs:
        asked = bool(argv) and argv[0] in ("-h", "--help")
        print(usage, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    try:
        verbs[argv[0]](argv[1:])
    except MemsslError as reason:
        print(reason, file=sys.stderr)
        return 1
    return 0


class _StopOnSignal:
    """Becomes true at the first SIGINT or SIGTERM; a second one ends at once."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, _: Any) -> None:
        self.asked = True
        signal.signal(number, signal.SIG_DFL)
        print("Stopping after this step and saving…", file=sys.stderr)

    def __call__(self) -> bool:
        return self.asked


def _stderr_console():
    from rich.console import Console

    return Console(stderr=True)
