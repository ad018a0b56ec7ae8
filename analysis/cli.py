"""`python -m analysis VERB`: questions about a model, answered on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
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


def match(
    image_a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A")],
    image_b: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="B")] = None,
    rule: Literal["mutual", "argmax"] = "mutual",
    facet: Literal["token", "key", "query", "value"] | None = None,
    layer: int | None = None,
    n: int | None = None,
    size: int | None = None,
    foreground: Literal["none", "attention", "pca"] = "none",
    position: bool = True,
    check: Literal["crops", "homography", "mirror", "identity"] | None = None,
    seed: int = 0,
    model: Source = "embedded",
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Which patches of one picture the model finds in another.

    Args:
        image_a: a picture file
        image_b: the other one; leave it out with --check
        rule: mutual keeps the pairs of which each is the other's nearest by cosine; argmax gives each patch of A the
            largest raw product in B
        facet: what is compared: tokens, or keys, queries or values of the attention; left out, the measured best
        layer: transformer block or stage, 0-based; negatives count from the last; left out, the measured best
        n: only so many, the best ones
        size: long side in pixels at which the model reads each picture; as it is if left out
        foreground: only matches inside it on both sides, by attention or by the first principal component
        position: --no-position takes out what a linear fit can read of a patch's place
        check: make both pictures out of A, with known geometry, and tell how many matches are right
        seed: which draw of the check
        model: embedded, a bundle folder, or random:NAME@SEED
        out: draw the matches into a .png, .jpg or .webp file, or write their points to a .csv file
        json: print points and scores for a program
    """
    from analysis.matches import COLUMNS, known_accuracy
    from memssl_core.data.images import decode_image
    from memssl_core.data.pairs import known_pair

    _check_out(out, (*_PICTURES, ".csv"))
    if (image_b is None) == (check is None):
        raise ModelError("Two pictures are matched: name a second one, or make it from the first with --check crops.")
    known = known_pair(decode_image(image_a), check, seed) if check else None
    a, b = (known.a, known.b) if known else (decode_image(image_a), decode_image(image_b or ""))
    found = _workbench(model).match(a, b, rule, facet, layer, n, size, foreground=foreground, position=position)
    if out and out.suffix == ".csv":
        _write_csv(out, COLUMNS, found.rows)
    elif out:
        from analysis.draw import matches_sheet

        with _writing(out):
            matches_sheet(a, b, found).save(out)
    accuracy = known_accuracy(found, known.homography) if known else None
    if json:
        return _print_json(found.summary() | ({"accuracy": accuracy} if accuracy else {}))
    print(f"{len(found.scores)} matches, {found.facet} of layer {found.layer}, rule {found.rule}")
    print("cosine   A (x, y)         B (x, y)")
    for score, (x, y), (u, v) in zip(found.scores, found.points_a, found.points_b, strict=True):
        print(f"{score:6.3f}   ({x:6.1f}, {y:6.1f}) ({u:6.1f}, {v:6.1f})")
    if accuracy:
        told = ", ".join(f"{accuracy[f'acc@{radius}']:.1f} % within {radius}" for radius in (0, 1, 2))
        print(f"right: {told} patches; {accuracy['coverage']:.1f} % of what B shows is matched")


VERBS = {"attention": attention, "match": match, "neighbours": neighbours}
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


def _write_csv(out: Path, head: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    import csv

    with _writing(out), out.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])


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
