"""`python -m analysis VERB`: questions about a model, answered on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from memssl_core.errors import MemsslError, ModelError

if TYPE_CHECKING:
    from analysis.workbench import Workbench

Picture = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IMG")]
Source = Annotated[str, tyro.conf.arg(metavar="SRC")]


def attention(
    image: Picture,
    layer: int = -1,
    query: str = "cls",
    size: int | None = None,
    model: Source = "embedded",
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Where a token of a picture reads: attention over the patches in one transformer block.

    Args:
        image: a picture file
        layer: transformer block, 0-based; negatives count from the last
        query: cls, mean, register:I, a patch index, x,y in pixels, or several of these joined by ;
        size: long side in pixels at which the model reads the picture; as it is if left out
        model: embedded, a bundle folder, or random:NAME@SEED
        out: write the rows to a .npz file, or maps over the picture to a .png, .jpg or .webp file
        json: print numbers for a program
    """
    from analysis.attention import parse_query

    _check_out(out, (*_PICTURES, ".npz"))
    found = _workbench(model).attention(image, layer, parse_query(query), size)
    if out and out.suffix == ".npz":
        import numpy as np

        with _writing(out), out.open("wb") as file:
            np.savez(file, rows=found.rows, grid=np.array(found.grid), n_prefix=np.array(found.n_prefix))
    elif out:
        from analysis.draw import attention_sheet
        from memssl_core.data.images import decode_image

        with _writing(out):
            attention_sheet(decode_image(image), found).save(out)
    summary = found.summary()
    if json:
        return _print_json(summary)
    rows, columns = found.grid
    print(f"transformer block {found.layers[0]}, {rows}×{columns} patches, each row: one attention head and one query")
    print("head query  on patches  entropy  strongest at (x, y)")
    for head, masses in enumerate(summary["patch_mass"]):
        for index, mass in enumerate(masses):
            x, y = summary["strongest_px"][head][index]
            entropy = summary["entropy"][head][index]
            print(f"{head:4d} {index:5d}  {mass:10.1%}  {entropy:7.3f}  ({x:.0f}, {y:.0f})")


def neighbours(
    image: Picture,
    space: Literal["memory", "embedding"] = "memory",
    k: int = 20,
    model: Source = "embedded",
    out: Path | None = None,
    json: bool = False,
) -> None:
    """The memories nearest to a picture, by exact search.

    Args:
        image: a picture file
        space: memory compares projections, as the loss does; embedding compares the backbone's output
        k: how many
        model: embedded or a bundle folder
        out: write the neighbours' thumbnails to a .png, .jpg or .webp file
        json: print a list for a program
    """
    _check_out(out, _PICTURES)
    found = _workbench(model).neighbours(image, space, k)
    if out:
        from analysis.draw import neighbours_sheet
        from memssl_core.data.images import decode_image

        with _writing(out):
            neighbours_sheet(decode_image(image), found).save(out)
    if json:
        return _print_json(found.records())
    print(f"{len(found.ids)} nearest slots in {found.space} space, exact search")
    print(" score    slot    step  class       picture")
    for record in found.records():
        where = f"{record['class_name'] or '':<10}  {record['uri'] or ''}"
        print(f"{record['score']:6.3f} {record['id']:7d} {record['step']:7d}  {where}")


VERBS = {"attention": attention, "neighbours": neighbours}
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def main(argv: list[str] | None = None) -> int:
    """Run a verb. 0 done, 1 a mistake told in one sentence; wrong usage leaves through SystemExit(2)."""
    try:
        tyro.extras.subcommand_cli_from_dict(VERBS, prog="python -m analysis", args=argv)
    except MemsslError as mistake:
        print(mistake, file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stderr.close()
    return 0


def _workbench(source: str) -> Workbench:
    from analysis.workbench import Workbench
    from memssl_core.sources import open_model

    return Workbench(open_model(source))


def _check_out(out: Path | None, suffixes: tuple[str, ...]) -> None:
    if out and out.suffix.lower() not in suffixes:
        raise ModelError(f"{out.name} has an ending this verb does not write; use one of {', '.join(suffixes)}.")


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Names the file that cannot be written, and tells of the one that was."""
    try:
        yield
    except OSError as reason:
        raise ModelError(f"{out} cannot be written: {reason.strerror}; give --out another place.") from reason
    print(f"wrote {out}", file=sys.stderr)


def _print_json(value: object) -> None:
    print(json.dumps(value, allow_nan=False))
