"""What the verbs of the command line share."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from memssl_core.errors import ModelError

if TYPE_CHECKING:
    from analysis.workbench import Workbench

Picture = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IMG")]
Source = Annotated[str, tyro.conf.arg(metavar="SRC")]
Job = Annotated[Path | None, tyro.conf.arg(metavar="DIR")]
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def workbench_of(source: str) -> Workbench:
    from analysis.workbench import Workbench
    from memssl_core.sources import open_model

    return Workbench(open_model(source))


def check_out(out: Path | None, suffixes: tuple[str, ...]) -> None:
    if out and out.suffix.lower() not in suffixes:
        raise ModelError(f"{out.name} has an ending this verb does not write; use one of {', '.join(suffixes)}.")


def write_csv(out: Path, head: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    import csv

    with writing(out), out.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Names the file that cannot be written, and tells of the one that was."""
    try:
        yield
    except OSError as reason:
        raise ModelError(f"{out} cannot be written: {reason.strerror}; choose another place.") from reason
    print(f"wrote {out}", file=sys.stderr)


def print_json(value: object) -> None:
    print(json.dumps(value, allow_nan=False))
